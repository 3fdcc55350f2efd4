"""The tests' control plane is a real one: it forgets, freezes, comes back and forbids as Kubernetes does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import httpx
import pytest

import control_plane
from control_plane import ControlPlane
from kubernetes_namespace import Namespace, fresh_namespace

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]

BOUND_S = 15.0
CONFIG_MAP_RULE = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}


@pytest.fixture
async def namespace() -> AsyncIterator[Namespace]:
    async with fresh_namespace(control_plane.shared()) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def own() -> Iterator[ControlPlane]:
    """One whose faults no other test sees."""
    with ControlPlane() as plane:
        yield plane


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not await holds():
            await asyncio.sleep(0.02)


async def test_endpoint_slices_follow_what_the_kubelet_says(namespace: Namespace) -> None:
    await namespace.service()
    one = await namespace.kubelet.start("one")
    await namespace.kubelet.start("two", ready=False)

    async def ready(*names: str) -> None:
        async def as_wanted() -> bool:
            return await namespace.ready_pods() == set(names)

        await until(as_wanted)

    await ready("one")
    await namespace.kubelet.set_ready(one, False)
    await ready()
    await namespace.kubelet.set_ready(one, True)
    await ready("one")
    again = await namespace.kubelet.replace(one)
    assert again.uid != one.uid
    assert again.name == one.name
    await ready("one")
    await namespace.kubelet.delete(again, grace_s=30)
    await ready()
    terminating = await namespace.call("GET", "v1/pods/one")
    assert terminating["metadata"]["deletionTimestamp"]
    await namespace.kubelet.delete(again)
    pods = (await namespace.call("GET", "v1/pods"))["items"]
    assert [pod["metadata"]["name"] for pod in pods] == ["two"]


async def test_what_a_pod_owns_goes_with_it(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("owner")
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}
    body = {"metadata": {"name": "owned", "ownerReferences": [owner]}}
    await namespace.call("POST", "v1/configmaps", body)
    await namespace.kubelet.delete(pod)

    async def gone() -> bool:
        return not (await namespace.call("GET", "v1/configmaps"))["items"]

    await until(gone)


async def test_a_token_may_do_what_its_role_says(namespace: Namespace) -> None:
    await namespace.grant("reader", [CONFIG_MAP_RULE])
    token = await namespace.token("reader")
    assert (await namespace.call("GET", "v1/configmaps", token=token))["items"] == []
    with pytest.raises(httpx.HTTPStatusError, match=r"403.*cannot list resource \\\"pods\\\""):
        await namespace.call("GET", "v1/pods", token=token)
    await namespace.grant("reader", [])

    async def forbidden() -> bool:
        try:
            await namespace.call("GET", "v1/configmaps", token=token)
        except httpx.HTTPStatusError as error:
            return error.response.status_code == httpx.codes.FORBIDDEN
        return False

    await until(forbidden)


async def test_who_does_not_know_its_authority_does_not_trust_it(namespace: Namespace) -> None:
    async with httpx.AsyncClient(trust_env=False) as stranger:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.get(f"{namespace.plane.url}/readyz")


async def test_kubectl_sees_it_through_a_kubeconfig(namespace: Namespace) -> None:
    await namespace.kubelet.start("seen")
    listed = await asyncio.to_thread(
        namespace.plane.kubectl, "get", "pods", "-o", "json", namespace=namespace.name
    )
    assert [item["metadata"]["name"] for item in json.loads(listed)["items"]] == ["seen"]


async def config_maps(own: ControlPlane) -> int:
    """How many there are in a namespace where one more was made now."""
    async with fresh_namespace(own) as namespace:
        await namespace.call("POST", "v1/configmaps", {"metadata": {"name": "kept"}})
        own.kill()
        own.launch()
        await own.ready()
        return len((await namespace.call("GET", "v1/configmaps"))["items"])


async def test_a_killed_api_server_comes_back_at_its_port_with_all_it_had(own: ControlPlane) -> None:
    url, pid = own.url, own.apiserver.pid
    assert await config_maps(own) == 1
    assert own.url == url
    assert own.apiserver.pid != pid


async def test_what_a_compaction_has_forgotten_is_gone_after_a_restart(own: ControlPlane) -> None:
    """A watch is gone after any restart, as the API server remembers none of what came before it."""
    async with fresh_namespace(own) as namespace:
        began = (await namespace.call("GET", "v1/configmaps"))["metadata"]["resourceVersion"]
        await namespace.call("POST", "v1/configmaps", {"metadata": {"name": "later"}})
        own.kill()
        own.compact()
        own.launch()
        await own.ready()
        with pytest.raises(httpx.HTTPStatusError, match=r": 410 .*\"reason\":\"Expired\""):
            exactly = {"resourceVersion": began, "resourceVersionMatch": "Exact"}
            await namespace.call("GET", "v1/configmaps", params=exactly)
        watch = {"watch": "true", "resourceVersion": began, "timeoutSeconds": "1"}

        async def expired() -> bool:
            try:
                event = await namespace.call("GET", "v1/configmaps", params=watch)
            except httpx.HTTPStatusError as error:
                assert error.response.status_code == httpx.codes.TOO_MANY_REQUESTS  # noqa: PT017
                return False
            assert event["type"] == "ERROR", event
            assert event["object"]["code"] == httpx.codes.GONE
            return True

        await until(expired)


async def test_a_frozen_api_server_is_noticed_by_the_clients_own_deadline(own: ControlPlane) -> None:
    async with fresh_namespace(own) as namespace:
        await namespace.call("GET", "v1/configmaps")
        own.apiserver.pause()
        try:
            began = time.monotonic()
            with pytest.raises(httpx.ReadTimeout):
                await namespace.call("GET", "v1/configmaps", timeout=0.3)
            assert time.monotonic() - began < 5.0
        finally:
            own.apiserver.resume()
        assert (await namespace.call("GET", "v1/configmaps"))["items"] == []
