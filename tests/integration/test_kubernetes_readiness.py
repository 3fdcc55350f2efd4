"""Who is seen on Kubernetes: records of ready pods, the very ones that wrote them; and how records end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import attrs
import pytest

import control_plane
from dynamo.adapters.discovery.kubernetes import open_kubernetes
from dynamo.adapters.discovery.kubernetes.naming import instance_id_of
from dynamo.core.errors import ConflictError, LeaseLostError
from dynamo.core.model import Phase
from dynamo.core.ports.discovery import Put, Removed
from dynamo.runtime import DistributedRuntime
from dynamo.testing.discovery import ENDPOINT, an_instance, by_key, lease_for
from dynamo.testing.discovery_owner import OwnerProcess
from dynamo.testing.proxy import FaultProxy
from integration.kubernetes_workers import caller, records, settings, worker
from kubernetes_namespace import Namespace, Pod, fresh_namespace
from matrix.deployment import reserved

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]


@pytest.fixture
async def namespace() -> AsyncIterator[Namespace]:
    async with fresh_namespace(control_plane.shared()) as namespace:
        await namespace.service()
        yield namespace


async def test_an_instance_is_seen_while_its_pod_is_ready(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0", ready=False)
    async with worker(namespace, pod) as one, caller(namespace) as follower:
        assert follower.live == {}
        for _ in range(2):
            await namespace.kubelet.set_ready(pod, True)
            assert await follower.next() == Put(instance=one.instance)
            await namespace.kubelet.set_ready(pod, False)
            assert await follower.next() == Removed(
                endpoint_id=ENDPOINT, instance_id=one.instance.instance_id
            )


async def test_a_pod_that_terminates_is_seen_no_more(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with worker(namespace, pod), caller(namespace) as follower:
        await follower.until(lambda live: len(live) == 1)
        await namespace.kubelet.delete(pod, grace_s=30)
        await follower.until(lambda live: not live)


async def test_readiness_and_records_come_in_any_order(namespace: Namespace) -> None:
    async with caller(namespace) as follower:
        first = await namespace.kubelet.start("first", ready=True)
        second = await namespace.kubelet.start("second", ready=False)
        async with worker(namespace, first) as one, worker(namespace, second) as two:
            await namespace.kubelet.set_ready(second, True)
            await follower.until(lambda live: live == by_key(one.instance, two.instance))


async def test_with_its_pod_the_record_goes(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with caller(namespace) as follower:
        owner = await owner_process(namespace, pod, incarnation=1)
        await follower.until(lambda live: len(live) == 1)
        await owner.kill()
        assert await records(namespace), "nobody but its pod takes it away"
        await namespace.kubelet.delete(pod)
        await follower.until(lambda live: not live)
        async with asyncio.timeout(10):
            while await records(namespace):
                await asyncio.sleep(0.02)


async def test_a_process_that_outlives_its_pod_is_not_seen_again(namespace: Namespace) -> None:
    """As after a forced deletion on a node that is cut off: it puts its record back, which is garbage."""
    pod = await namespace.kubelet.start("worker-0")
    async with worker(namespace, pod), caller(namespace) as follower:
        await follower.until(lambda live: len(live) == 1)
        before = (await records(namespace))["worker-0"]["metadata"]["uid"]
        await namespace.kubelet.delete(pod)
        await follower.until(lambda live: not live)
        uids = {before}
        async with asyncio.timeout(10):
            while len(uids) < 3:
                uids |= {record["metadata"]["uid"] for record in (await records(namespace)).values()}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await follower.next()


async def owner_process(namespace: Namespace, pod: Pod, incarnation: int) -> OwnerProcess:
    """A worker of that pod, to be killed; its object bears its id."""
    kubeconfig = namespace.plane.kubeconfig(namespace=namespace.name)
    return await OwnerProcess.start(
        "kubernetes://",
        an_instance(1, incarnation=incarnation),
        env={**pod.environment, "KUBECONFIG": str(kubeconfig)},
    )


async def test_a_pod_of_the_same_name_gets_a_record_of_its_own(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with caller(namespace) as follower:
        async with worker(namespace, pod, incarnation=1) as old:
            await follower.until(lambda live: live == by_key(old.instance))
            before = (await records(namespace))["worker-0"]["metadata"]
            successor = await namespace.kubelet.replace(pod)
            await follower.until(lambda live: not live)
        async with worker(namespace, successor, incarnation=2) as new:
            await follower.until(lambda live: live == by_key(new.instance))
            after = (await records(namespace))["worker-0"]["metadata"]
        assert new.instance.instance_id == old.instance.instance_id
        assert after["uid"] != before["uid"]
        assert after["ownerReferences"][0]["uid"] == successor.uid != before["ownerReferences"][0]["uid"]


async def test_what_a_killed_process_left_behind_is_replaced(namespace: Namespace) -> None:
    """As after a crash of the container: the same pod, another incarnation."""
    pod = await namespace.kubelet.start("worker-0")
    async with caller(namespace) as follower:
        first = await owner_process(namespace, pod, incarnation=1)
        await follower.until(lambda live: len(live) == 1)
        await first.kill()
        began = time.monotonic()
        second = await owner_process(namespace, pod, incarnation=2)
        try:
            assert time.monotonic() - began < 8  # 2 of them to ask whether anybody is there
            await follower.until(lambda live: [one.incarnation for one in live.values()] == [2])
            assert follower.changes[-2] == Removed(endpoint_id=ENDPOINT, instance_id=1)
        finally:
            await second.leave()


async def test_two_processes_that_claim_one_name_are_told_how_not_to(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with worker(namespace, pod) as one, caller(namespace) as follower:
        async with one.client.lease(instance_id=one.instance.instance_id, incarnation=9) as rival:
            with pytest.raises(ConflictError, match="DYN_KUBE_DISCOVERY_MODE=container"):
                await rival.put(attrs.evolve(one.instance, incarnation=9))
        assert follower.live == by_key(one.instance)


async def test_an_owner_that_was_cut_off_while_another_took_its_place_loses_the_lease(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo.adapters.discovery.kubernetes.claiming.ANSWER_S", 0.3)
    pod, plane = await namespace.kubelet.start("worker-0"), namespace.plane
    one, other = an_instance(1, incarnation=1), an_instance(1, incarnation=2)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy("127.0.0.1", plane.apiserver.port))
        way = str(plane.kubeconfig(namespace=namespace.name, server=f"https://{proxy.address}"))
        cut, rival = [
            await stack.enter_async_context(open_kubernetes("kubernetes://", settings(namespace, pod, **way)))
            for way in ({"kubeconfig": way}, {})
        ]
        follower = await stack.enter_async_context(caller(namespace))
        async with lease_for(cut, one) as lost:
            await lost.put(one)
            await follower.until(lambda live: live == by_key(one))
            proxy.refuse()
            proxy.reset()
            async with lease_for(rival, other) as lease:
                await lease.put(other)
                await follower.until(lambda live: live == by_key(other))
                proxy.heal()
                async with asyncio.timeout(10):
                    assert "now belongs to incarnation 2" in await lost.lost()
                with pytest.raises(LeaseLostError, match="incarnation 2"):
                    await lost.put(one)
        async with lease_for(cut, one) as again:
            await again.put(one)
            await follower.until(lambda live: live == by_key(one))


async def test_a_changed_port_and_draining_are_each_a_put(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with worker(namespace, pod) as one, caller(namespace) as follower:
        for change in ({"addresses": (f"tcp://{pod.ip}:5001",)}, {"phase": Phase.DRAINING}):
            changed = attrs.evolve(one.instance, **change)
            await one.lease.put(changed)
            assert await follower.next() == Put(instance=changed)


async def label(namespace: Namespace, name: str, value: str | None) -> None:
    labels = {f"nvidia.com/dynamo-discovery-{name}": value}
    await namespace.patch("v1/services/workers", {"metadata": {"labels": labels}})


async def test_only_services_with_both_labels_and_the_own_namespace_count(namespace: Namespace) -> None:
    async with fresh_namespace(namespace.plane) as other:  # with a Service that lacks a label
        await other.service()
        await label(other, "enabled", None)
        here = await namespace.kubelet.start("worker-0")
        there = await other.kubelet.start("worker-0")
        async with caller(namespace) as ours, caller(other) as theirs:
            async with worker(namespace, here) as one, worker(other, there) as two:
                await ours.until(lambda live: live == by_key(one.instance))
                await label(other, "enabled", "true")
                await theirs.until(lambda live: live == by_key(two.instance))
                await other.patch(
                    "v1/services/workers",
                    {"metadata": {"labels": {"nvidia.com/dynamo-discovery-backend": None}}},
                )
                await theirs.until(lambda live: not live)
                assert ours.changes[1:] == [Put(instance=one.instance)]


async def test_the_workers_of_one_pod_are_numbered_and_so_are_their_ports(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0", containers=["main", "side"])
    with reserved(1) as (port,):
        options = {
            "kubeconfig": str(namespace.plane.kubeconfig(namespace=namespace.name)),
            **{f"pod_{name}": getattr(pod, name) for name in ("name", "uid", "namespace")},
            "discovery_backend": "kubernetes",
            "tcp_host": "127.0.0.1",
            "tcp_port": port,
            "drain_grace_s": 0.0,
        }

        async def serve(request: object) -> object:
            return request

        async with DistributedRuntime(**options) as one, DistributedRuntime(**options) as two:
            endpoints = [runtime.endpoint("a.b.c") for runtime in (one, two)]
            async with endpoints[0].serve(serve) as first, endpoints[1].serve(serve) as second:
                index = int(second.addresses[-1].rpartition(":")[2]) - port
                assert 1 <= index < 10  # 1, unless somebody else listens there
                assert first.addresses[-1] == f"tcp://127.0.0.1:{port}"
                names = {"worker-0": first.instance_id, f"worker-0-{index}": second.instance_id}
                assert set(await records(namespace)) == set(names)
                assert {name: instance_id_of(name) for name in names} == names
                client = await endpoints[0].client()
                await client.wait_for_instances(2)
                assert sorted(client.instance_ids()) == sorted(names.values())
    assert not await records(namespace)


async def test_records_are_named_after_containers_on_demand(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    mode: dict[str, Any] = {"kube_discovery_mode": "container", "container_name": "main"}
    async with worker(namespace, pod, **mode) as one, worker(namespace, pod, incarnation=2, **mode) as two:
        assert set(await records(namespace)) == {"worker-0-main", "worker-0-main-1"}
        assert one.instance.instance_id == instance_id_of("worker-0-main")
        assert two.instance.instance_id == instance_id_of("worker-0-main-1")


async def test_kubectl_shows_what_a_person_asks_for(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with worker(namespace, pod) as one:
        shown = namespace.plane.kubectl("get", "dynamoworkermetadatas", namespace=namespace.name).splitlines()
        assert shown[0].split("  ")[0] == "NAME"
        values = ("worker-0", "contract", "worker", "generate", str(one.instance.instance_id), "1/1")
        assert shown[1].split()[:-1] == list(values)
        described = namespace.plane.kubectl("describe", "dynamoworkermetadatas", namespace=namespace.name)
        assert f"tcp://{pod.ip}:5000" in described
