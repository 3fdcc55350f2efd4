"""What ``dynamo manifests kubernetes`` prints: complete, consistent, and the files of ``deploy/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("yaml", reason="the extra services is not installed")

import yaml
from click.testing import CliRunner

from dynamo.cli.app import dynamo, run
from dynamo.cli.kubernetes.rendering import rules
from dynamo.core.config import Settings

DEPLOY = Path(__file__).parents[3] / "deploy" / "kubernetes"
AS_IN_DEPLOY = ("hello:Frontend", "--worker", "Backend=2", "--image", "registry.example.com/hello:1.0")


def printed(*arguments: str) -> list[Any]:
    """The documents of a command line."""
    done = CliRunner().invoke(dynamo, ["manifests", "kubernetes", *arguments], standalone_mode=False)
    assert done.exception is None, done.exception
    return list(yaml.safe_load_all(done.output))


def named(documents: list[Any], kind: str) -> dict[str, Any]:
    return {one["metadata"]["name"]: one for one in documents if one["kind"] == kind}


def test_deploy_is_what_the_command_writes(tmp_path: Path) -> None:
    again = f"dynamo manifests kubernetes {' '.join(AS_IN_DEPLOY)} --output deploy/kubernetes"
    assert run(["manifests", "kubernetes", *AS_IN_DEPLOY, "--output", str(tmp_path)]) == 0
    written = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text("utf-8") for path in DEPLOY.glob("*.yaml")}
    assert kept == written, f"edit src/dynamo/cli/kubernetes, then: {again}"


def test_every_name_is_filled_in() -> None:
    documents = printed(
        *("demo.hello:Frontend", "--worker", "Backend=3", "--worker", "Pre_Fill", "--frontend", "Gate=2"),
        *("--image", "localhost:5000/hello@sha256:ab", "--name", "on", "--namespace", "123"),
    )
    namespaced = [one for one in documents if one["kind"] != "CustomResourceDefinition"]
    assert {one["metadata"]["namespace"] for one in namespaced} == {"123"}
    assert all(one["metadata"]["name"].startswith("on") for one in namespaced)
    deployments = named(documents, "Deployment")
    assert {name: one["spec"]["replicas"] for name, one in deployments.items()} == {
        "on-backend": 3, "on-pre-fill": 1, "on-gate": 2,
    }  # fmt: skip
    (container,) = deployments["on-pre-fill"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "localhost:5000/hello@sha256:ab"
    assert container["command"] == [
        "dynamo", "serve", "demo.hello:Frontend", "--service-name", "Pre_Fill", "--Pre_Fill.workers=1",
    ]  # fmt: skip
    (subject,) = named(documents, "RoleBinding")["on-discovery"]["subjects"]
    assert (subject["name"], subject["namespace"]) == ("on", "123")
    assert named(documents, "RoleBinding")["on-discovery"]["roleRef"]["name"] in named(documents, "Role")
    assert subject["name"] in named(documents, "ServiceAccount")


@pytest.mark.parametrize("name", ["dynamo-backend", "dynamo-frontend"])
def test_a_deployment_fits_what_is_around_it(name: str) -> None:
    documents = printed(*AS_IN_DEPLOY, "--shutdown-timeout", "300")
    deployment = named(documents, "Deployment")[name]["spec"]
    template = deployment["template"]
    labels: dict[str, str] = template["metadata"]["labels"]
    services = named(documents, "Service")

    def chosen(selector: dict[str, str]) -> bool:
        return selector.items() <= labels.items()

    assert chosen(deployment["selector"]["matchLabels"])
    assert chosen(services["dynamo-discovery"]["spec"]["selector"])
    assert chosen(services["dynamo-frontend"]["spec"]["selector"]) == (name == "dynamo-frontend")
    assert template["spec"]["serviceAccountName"] in named(documents, "ServiceAccount")
    (container,) = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    targets = {port["targetPort"] for one in services.values() if chosen(one["spec"]["selector"])
               for port in one["spec"].get("ports", ())}  # fmt: skip
    assert targets <= ports.keys()

    given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    settings = Settings.from_env(given)
    assert (settings.discovery_backend, settings.namespace) == ("kubernetes", "dynamo")
    assert (settings.tcp_port, settings.system_port) == (ports["calls"], ports["system"])
    supervisor_s = settings.graceful_shutdown_timeout_s + settings.drain_grace_s + 20  # see dynamo.cli.crew
    assert settings.graceful_shutdown_timeout_s == 300
    assert template["spec"]["terminationGracePeriodSeconds"] > supervisor_s
    fields = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"]
              for one in container["env"] if "fieldRef" in one.get("valueFrom", {})}  # fmt: skip
    assert fields == {
        "POD_NAME": "metadata.name",
        "POD_UID": "metadata.uid",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_IP": "status.podIP",
    }


def test_the_slices_of_the_discovery_service_are_found_by_its_labels() -> None:
    (service,) = printed("--only", "discovery")
    assert service["spec"]["clusterIP"] == "None"  # as a string: kubectl refuses null
    assert "publishNotReadyAddresses" not in service["spec"]
    assert (
        service["metadata"]["labels"].items()
        >= {
            "nvidia.com/dynamo-discovery-backend": "kubernetes",
            "nvidia.com/dynamo-discovery-enabled": "true",
        }.items()
    )


def test_parts_need_only_what_is_in_them() -> None:
    kinds = [one["kind"] for one in printed("--only", "rbac,crd")]
    assert kinds == ["CustomResourceDefinition", "ServiceAccount", "Role", "RoleBinding"]
    assert [one["kind"] for one in printed()] == [*kinds, "Service"]
    assert [*named(printed(*AS_IN_DEPLOY, "--no-frontend", "--only", "worker,frontend"), "Deployment")] == [
        "dynamo-backend"
    ]


def test_arguments_go_to_dynamo_serve() -> None:
    documents = printed(*AS_IN_DEPLOY, "--", "-f", 'my "config".yaml')
    for one in named(documents, "Deployment").values():
        (container,) = one["spec"]["template"]["spec"]["containers"]
        assert container["command"][6:8] == ["-f", 'my "config".yaml']


@pytest.mark.parametrize(
    "more, remark",
    [
        ("", "no --worker: these run Frontend alone; if it depends on other services, "),
        ("--frontend Gate=2", "no --worker: these run Gate alone; if it depends on other services, "),
        ("--worker Backend", ""),
        ("--only frontend", ""),
    ],
)
def test_a_frontend_without_workers_is_remarked_on(
    more: str, remark: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside what is printed, which kubectl reads: a service may well depend on no other."""
    assert run(["manifests", "kubernetes", "hello:Frontend", "--image", "x", *more.split()]) == 0
    said = capsys.readouterr()
    assert "Deployment" in {document["kind"] for document in yaml.safe_load_all(said.out)}
    assert said.err == (remark and f"{remark}give --worker SERVICE for each\n")


def test_rules_are_told_one_by_one() -> None:
    (role,) = named(printed("--only", "rbac"), "Role").values()
    count = sum(len(rule["verbs"]) * len(rule["resources"]) for rule in role["rules"])
    told = list(rules())
    assert ("discovery.k8s.io", "endpointslices", "watch") in told
    assert len(told) == len(set(told)) == count


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--image x", "give MODULE:SERVICE"),
        ("--only frontend", "give MODULE:SERVICE"),
        ("hello", "MODULE:SERVICE"),
        ("hello.py:x:y/z", "expected module:Service"),
        ("hello:Frontend", "give --image"),
        ("hello:Frontend --image x --only worker", "give --worker"),
        ("hello:Frontend --image x --no-frontend", "give --worker"),
        ("hello:Frontend --image x --no-frontend --frontend Gate", "not both"),
        ("hello:Frontend --image x --worker Frontend", "'frontend' is given twice"),
        ("hello:Frontend --image x --worker Crd", "another file"),
        ("hello:Frontend --image x --worker B=two", "'two' is no number"),
        ("hello:Frontend --image x --worker B-", "'B-': expected the name of a service"),
        ("hello:Frontend --image x --worker B_", "cannot be a Deployment's name"),
        ("--only crds", "no part 'crds'"),
        ("--only crd --name 1st", "--name '1st'"),
        ("--only crd --namespace My", "--namespace 'My'"),
        ("--only crd --output /dev/null", "/dev/null"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["manifests", "kubernetes", *arguments.split()]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert words in said.err
