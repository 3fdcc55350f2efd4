"""A real control plane takes what ``dynamo manifests kubernetes`` prints, and pods made from it are seen."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

import yaml

import control_plane
from dynamo.core.config import Settings
from dynamo.runtime import DistributedRuntime
from kubernetes_namespace import DISCOVERABLE, NODE, Namespace, fresh_namespace

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]
BOUND_S = 20
HELLO = ("hello:Frontend", "--worker", "Backend=2", "--image", "registry.example.com/hello:1.0")
STRICTEST = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


@pytest.fixture
async def namespace() -> AsyncIterator[Namespace]:
    async with fresh_namespace(control_plane.shared()) as fresh:
        yield fresh


def printed(namespace: Namespace, *arguments: str) -> str:
    """What the command prints for this namespace."""
    command = (sys.executable, "-m", "dynamo.cli", "manifests", "kubernetes", *arguments)
    done = subprocess.run(
        [*command, "--namespace", namespace.name], capture_output=True, text=True, timeout=BOUND_S, check=True
    )
    return done.stdout


async def test_a_dry_run_takes_everything(namespace: Namespace) -> None:
    text = printed(namespace, *HELLO)
    said = namespace.plane.kubectl("apply", "--dry-run=server", "-f", "-", stdin=text)
    kinds = [one["kind"].lower() for one in yaml.safe_load_all(text)]
    assert [line.partition("/")[0].partition(".")[0] for line in said.splitlines()] == kinds
    assert all(line.endswith(" (server dry run)") for line in said.splitlines())


async def test_applying_it_again_changes_nothing(namespace: Namespace) -> None:
    text = printed(namespace, *HELLO)
    namespace.plane.kubectl("apply", "-f", "-", stdin=text)
    again = namespace.plane.kubectl("apply", "-f", "-", stdin=text).splitlines()
    assert len(again) == len(list(yaml.safe_load_all(text)))
    assert [line for line in again if not line.endswith(" unchanged")] == []


async def test_its_pods_are_allowed_where_least_is_and_are_seen_while_they_are_ready(
    namespace: Namespace,
) -> None:
    await namespace.request(
        "PATCH", f"/api/v1/namespaces/{namespace.name}", {"metadata": {"labels": STRICTEST}},
        headers={"Content-Type": "application/merge-patch+json"},
    )  # fmt: skip
    namespace.plane.kubectl("apply", "-f", "-", stdin=printed(namespace, *HELLO))
    deployments = await namespace.call("GET", "apps/v1/deployments")
    names = sorted(one["metadata"]["name"] for one in deployments["items"])
    assert names == ["dynamo-backend", "dynamo-frontend"]
    pods = [await namespace.kubelet.run(template_of(one)) for one in deployments["items"]]
    await until(namespace, {"dynamo-discovery": {pod.name for pod in pods},
                            "dynamo-frontend": {"dynamo-frontend-0"}})  # fmt: skip
    for pod in pods:
        await namespace.kubelet.set_ready(pod, False)
    await until(namespace, {"dynamo-discovery": set(), "dynamo-frontend": set()})
    found = await namespace.call(
        "GET", "discovery.k8s.io/v1/endpointslices",
        params={"labelSelector": ",".join(f"{name}={value}" for name, value in DISCOVERABLE.items())},
    )  # fmt: skip
    assert {service_of(one) for one in found["items"]} == {"dynamo-discovery"}


async def test_kubectl_shows_who_serves_what(namespace: Namespace) -> None:
    await namespace.service()
    pod = await namespace.kubelet.start("worker-0")
    variables = {**pod.environment, "KUBECONFIG": str(namespace.plane.kubeconfig(namespace=namespace.name))}
    settings = Settings.from_env(variables, discovery_backend="kubernetes", tcp_host="127.0.0.1")
    options = {name: getattr(settings, name) for name in Settings.options() if settings.is_set(name)}
    async with DistributedRuntime(**options) as runtime, AsyncExitStack() as stack:
        for name in ("generate", "load"):
            serving = runtime.endpoint(f"demo.backend.{name}").serve(anything)
            await stack.enter_async_context(serving)
        heading, line = namespace.plane.kubectl(
            "get", "dynamoworkermetadatas", namespace=namespace.name
        ).splitlines()  # fmt: skip
        described = namespace.plane.kubectl("describe", "dwm", pod.name, namespace=namespace.name)
        instance_id = str(runtime.connection_id())
    words = ("NAME", "DYNAMO NAMESPACE", "COMPONENT", "ENDPOINTS", "INSTANCE", "READY", "AGE")
    assert re.split("  +", heading.strip()) == [*words]
    *shown, age = line.split()
    assert shown == ["worker-0", "demo", "backend", "generate,load", instance_id, "2/2"]
    assert re.fullmatch(r"\d+s", age)
    for told in ("demo/backend/generate:", "tcp://127.0.0.1:", "Phase:        ready", f"UID:      {pod.uid}"):
        assert " ".join(told.split()) in " ".join(described.split())
    assert max(map(len, described.splitlines())) < 120  # no JSON in a line


async def anything(request: object) -> AsyncIterator[object]:
    yield request


def template_of(deployment: dict[str, Any]) -> dict[str, Any]:
    """The pod that its controller would make first."""
    template: dict[str, Any] = json.loads(json.dumps(deployment["spec"]["template"]))
    template["metadata"]["name"] = f"{deployment['metadata']['name']}-0"
    template["spec"]["nodeName"] = NODE
    return template


def service_of(part: dict[str, Any]) -> str:
    return str(part["metadata"]["labels"]["kubernetes.io/service-name"])


async def until(namespace: Namespace, wanted: dict[str, set[str]]) -> None:
    """Wait for the pods that each Service's EndpointSlices call ready."""
    async with asyncio.timeout(BOUND_S):
        while True:
            ready: dict[str, set[str]] = {}
            for part in (await namespace.call("GET", "discovery.k8s.io/v1/endpointslices"))["items"]:
                pods = ready.setdefault(service_of(part), set())
                pods |= {
                    endpoint["targetRef"]["name"]
                    for endpoint in part["endpoints"] or ()
                    if endpoint["conditions"]["ready"]
                }
            if ready == wanted:
                return
            await asyncio.sleep(0.02)
