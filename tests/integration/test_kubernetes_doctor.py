"""``dynamo doctor`` on a real control plane: what is missing, and what to apply."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

import control_plane
from dynamo.cli.cluster import cluster
from dynamo.cli.findings import Finding
from dynamo.cli.kubernetes.rendering import template
from dynamo.core.config import Settings
from kubernetes_namespace import Namespace, Pod, fresh_namespace

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]
BOUND_S = 20
ACCOUNT = "hello"


@pytest.fixture
async def namespace() -> AsyncIterator[Namespace]:
    async with fresh_namespace(control_plane.shared()) as fresh:
        await fresh.call("POST", "v1/serviceaccounts", {"metadata": {"name": ACCOUNT}})
        yield fresh


def settings(namespace: Namespace, token: str | None, pod: Pod | None = None) -> Settings:
    kubeconfig = namespace.plane.kubeconfig(token, namespace=namespace.name)
    told = {} if pod is None else pod.environment
    return Settings.from_env({**told, "KUBECONFIG": str(kubeconfig)}, discovery_backend="kubernetes")


async def until(wanted: Callable[[list[Finding]], bool], asked: Settings) -> list[Finding]:
    """Look again until controllers and caches of the cluster have caught up."""
    async with asyncio.timeout(BOUND_S):
        while not wanted(findings := await cluster(asked, BOUND_S)):
            await asyncio.sleep(0.02)
    return findings


def wrong(findings: list[Finding]) -> list[str]:
    return [f"{one.text}; {one.remedy}" for one in findings if one.level == "wrong"]


async def test_what_is_missing_is_told_until_nothing_is(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0", labels={"app.kubernetes.io/name": ACCOUNT}, ready=False)
    asked = settings(namespace, await namespace.token(ACCOUNT), pod)
    who, resource = f"{namespace.name}/{ACCOUNT}", "dynamoworkermetadatas.nvidia.com"
    one = f"{who} may not list, watch, create, patch, delete {resource} in namespace {namespace.name}"
    other = f"{who} may not list, watch endpointslices.discovery.k8s.io in namespace {namespace.name}"
    remedy = f"dynamo manifests kubernetes --only rbac --namespace {namespace.name} --name {ACCOUNT}"
    assert wrong(await cluster(asked, BOUND_S)) == [
        f"{text}; {remedy} | kubectl apply -f -" for text in (one, other)
    ]

    apply(namespace, "rbac")
    (said,) = wrong(await until(lambda found: not any("may not" in one.text for one in found), asked))
    assert "names this pod" in said
    assert remedy.replace("rbac", "discovery") in said

    apply(namespace, "discovery")
    findings = await until(lambda found: not wrong(found), asked)
    assert [(one.level, "hidden" in one.text) for one in findings][-1] == ("note", True)

    await namespace.kubelet.set_ready(pod, True)
    findings = await until(lambda found: all(one.level == "ok" for one in found), asked)
    assert [one.text for one in findings] == [
        f"{who} may do all that a worker does, in namespace {namespace.name}",
        "the cluster has dynamoworkermetadatas.nvidia.com/v1alpha1",
        f"EndpointSlices in namespace {namespace.name} call 1 of 1 pods ready, this one too",
    ]


def apply(namespace: Namespace, part: str) -> None:
    text = template(part).substitute(name=ACCOUNT, namespace=namespace.name)
    namespace.plane.kubectl("apply", "-f", "-", stdin=text)


async def test_a_caller_needs_no_pod_and_knows_whether_there_are_any(namespace: Namespace) -> None:
    findings = await cluster(settings(namespace, None), BOUND_S)
    assert [one.level for one in findings] == ["note", "note", "note", "ok", "ok", "note"]
    assert "names any pod" in findings[-1].text


def test_a_cluster_without_the_custom_resource_is_told_what_to_apply() -> None:
    with control_plane.ControlPlane() as plane:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "POD_"))}
        env |= {"KUBECONFIG": str(plane.kubeconfig()), "DYN_DISCOVERY_BACKEND": "kubernetes"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "dynamo.cli", "doctor"],
            env=env, capture_output=True, text=True, timeout=BOUND_S, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    (said,) = (line for line in done.stdout.splitlines() if line.startswith("wrong  kubernetes:"))
    assert said == (
        "wrong  kubernetes: the cluster has no dynamoworkermetadatas.nvidia.com/v1alpha1; of nvidia.com it "
        "has nothing; by an administrator: dynamo manifests kubernetes --only crd | kubectl apply -f -"
    )
