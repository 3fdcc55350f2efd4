"""The Role of ``dynamo manifests kubernetes`` is what the adapter needs, verb by verb, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

import attrs
import yaml

import control_plane
from dynamo.adapters.discovery.kubernetes import open_kubernetes
from dynamo.cli.kubernetes.rendering import rules, template
from dynamo.core.config import Settings
from dynamo.core.errors import AuthError
from dynamo.core.model import EndpointId, Instance, Phase, Scope
from dynamo.core.ports.discovery import Change, Put, Removed, Snapshot, Stale, Watch
from kubernetes_namespace import Namespace, fresh_namespace

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]
BOUND_S = 20
ACCOUNT = "dynamo"
ENDPOINT = EndpointId(namespace="demo", component="backend", name="generate")
RULES = tuple(rules())
FAILS = {
    ("dynamoworkermetadatas", "list"): "open",
    ("dynamoworkermetadatas", "watch"): "watch",
    ("dynamoworkermetadatas", "create"): "register",
    ("dynamoworkermetadatas", "patch"): "register",
    ("dynamoworkermetadatas", "delete"): "unregister",
    ("endpointslices", "list"): "open",
    ("endpointslices", "watch"): "watch",
}


@pytest.fixture
async def namespace() -> AsyncIterator[Namespace]:
    """With everything that a deployment has, and one pod of it."""
    plane = control_plane.shared()
    async with fresh_namespace(plane) as fresh:
        for part in ("rbac", "discovery"):
            text = template(part).substitute(name=ACCOUNT, namespace=fresh.name)
            plane.kubectl("apply", "-f", "-", stdin=text)
        yield fresh


async def worker(namespace: Namespace) -> tuple[Settings, str]:
    """Of a worker in a pod that is ready: its settings, and its ServiceAccount's token."""
    pod = await namespace.kubelet.start("worker-0", labels={"app.kubernetes.io/name": ACCOUNT})
    token = await namespace.token(ACCOUNT)
    kubeconfig = namespace.plane.kubeconfig(token, namespace=namespace.name)
    return Settings.from_env({**pod.environment, "KUBECONFIG": str(kubeconfig)}), token


async def without(namespace: Namespace, group: str, resource: str, verb: str) -> None:
    """The Role loses one verb."""
    text = template("rbac").substitute(name=ACCOUNT, namespace=namespace.name)
    (role,) = (one for one in yaml.safe_load_all(text) if one["kind"] == "Role")
    for rule in role["rules"]:
        if rule["apiGroups"] == [group] and rule["resources"] == [resource]:
            rule["verbs"].remove(verb)
    name = role["metadata"]["name"]
    await namespace.patch(f"rbac.authorization.k8s.io/v1/roles/{name}", {"rules": role["rules"]})


async def allowed(namespace: Namespace, token: str, rule: tuple[str, str, str]) -> bool:
    """What the API server thinks by now: its authorizer follows roles, a moment later."""
    group, resource, verb = rule
    wanted = {"namespace": namespace.name, "group": group, "resource": resource, "verb": verb}
    kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    answer = await namespace.request(
        "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        {**kind, "spec": {"resourceAttributes": wanted}}, token=token,
    )  # fmt: skip
    return bool(answer["status"]["allowed"])


class FailedError(Exception):
    """A step of a worker's or a caller's life, and why it was refused."""

    def __init__(self, step: str, why: str) -> None:
        super().__init__(f"{step}: {why}")
        self.step, self.why = step, why


@contextmanager
def step(name: str) -> Iterator[None]:
    try:
        yield
    except AuthError as error:
        raise FailedError(name, str(error)) from error


async def see(watch: Watch, wanted: type[Change]) -> None:
    """Wait for such a change; a refusal comes as the reason why what is seen is stale."""
    while not isinstance(change := await watch.receive(), wanted):
        if isinstance(change, Stale):
            raise FailedError("watch", change.reason)


async def live(settings: Settings) -> None:
    """Do all that workers and callers do, from start to end. Raises FailedError."""
    async with AsyncExitStack() as stack:
        with step("open"):
            discovery = await stack.enter_async_context(open_kubernetes("kubernetes://", settings))
        identity = await discovery.identity(ENDPOINT)
        assert identity is not None
        instance = Instance(
            endpoint_id=ENDPOINT,
            instance_id=identity.instance_id,
            incarnation=7,
            addresses=("tcp://10.0.0.1:9000",),
        )
        watch = await stack.enter_async_context(discovery.watch(Scope()))
        await see(watch, Snapshot)
        with step("lease"):
            owning = discovery.lease(instance_id=instance.instance_id, incarnation=instance.incarnation)
            lease = await stack.enter_async_context(owning)
        with step("register"):
            await lease.put(instance)
        await see(watch, Put)
        with step("drain"):
            await lease.put(attrs.evolve(instance, phase=Phase.DRAINING))
        await see(watch, Put)
        with step("unregister"):
            await lease.remove(ENDPOINT)
        await see(watch, Removed)


async def test_the_role_is_enough(namespace: Namespace) -> None:
    settings, token = await worker(namespace)
    async with asyncio.timeout(BOUND_S):
        for rule in RULES:
            while not await allowed(namespace, token, rule):
                await asyncio.sleep(0.01)
        await live(settings)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule[2]}-{rule[1]}")
async def test_without_one_verb_an_operation_fails_and_says_which(
    namespace: Namespace, rule: tuple[str, str, str]
) -> None:
    group, resource, verb = rule
    await without(namespace, *rule)
    settings, token = await worker(namespace)
    async with asyncio.timeout(BOUND_S):
        for one in RULES:
            while await allowed(namespace, token, one) == (one == rule):
                await asyncio.sleep(0.01)
        with pytest.raises(FailedError) as failed:
            await live(settings)
    assert failed.value.step == FAILS[resource, verb]
    assert f'{{apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]}}' in failed.value.why
    assert "dynamo manifests kubernetes" in failed.value.why
