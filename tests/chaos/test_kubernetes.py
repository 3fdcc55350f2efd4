"""What can happen to Kubernetes' API server, to what it knows and to the way there, while calls go on.

By default with short outages; ``nox -s soak`` has those of 30 s, 20 s and 60 s. How soon all is right counts
from the moment that the API server is ready again: every record says what it did and has an owner who watches
it, and every client sees it. How soon Kubernetes' own controller tells of a pod that is
not ready any more is printed beside it: that is none of ours.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from attrs import asdict, define, frozen

from chaos.load import Load
from control_plane import CRD, ControlPlane
from dynamo.adapters.discovery.kubernetes.records import CLAIM, claims_of
from dynamo.runtime import Client, DistributedRuntime
from dynamo.testing.proxy import FaultProxy
from integration.kubernetes_workers import RECORDS, records
from kubernetes_namespace import Namespace, Pod, fresh_namespace
from matrix.deployment import ProcessWorker
from matrix.worker import COMPONENT

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]

Tell = Callable[[object], None]

WORKERS = ("w1", "w2", "w3")
CLIENTS = ("c1", "c2")
RATE_PER_S = 100.0  # of each of the clients
DEADLINE_S = 30.0
RECOVERY_S = 10.0
QUESTION = f"{CLAIM}abc"
CONTROLLER_S = 60.0  # for Kubernetes' controller to go on after an outage


@frozen(kw_only=True)
class Scale:
    """How long things take, in seconds."""

    killed_s: tuple[float, ...]
    frozen_s: float
    cut_s: float


QUICK = Scale(killed_s=(3.0,), frozen_s=5.0, cut_s=10.0)
FULL = Scale(killed_s=(3.0, 30.0), frozen_s=20.0, cut_s=60.0)


@define
class Window:
    """One fault, and what came after it, in seconds."""

    fault: str
    lasted_s: float  # until the API server was ready again
    right_s: float  # from then on, until records, their owners and clients were right
    controller_s: float = 0.0  # from then on, until an EndpointSlice followed its pod
    followed_s: float = 0.0  # from there, until the clients did
    calls: int = 0
    failed: int = 0
    longest_s: float = 0.0


class Scene:
    """Two clients and three workers in a namespace; ``w1`` and ``c1`` have a way of their own to it."""

    def __init__(self, namespace: Namespace, way: FaultProxy) -> None:
        self.namespace, self.plane, self.way = namespace, namespace.plane, way
        self.pods: dict[str, Pod] = {}
        self.workers: dict[str, ProcessWorker] = {}
        self.clients: list[Client] = []
        self.loads: list[Load] = []
        self.recorded: dict[str, Any] = {}
        self.windows: list[Window] = []

    async def records(self) -> dict[str, Any]:
        """What the objects say, and whose they are."""
        found = await records(self.namespace)
        return {
            name: (one["spec"], one["metadata"]["ownerReferences"][0]["uid"]) for name, one in found.items()
        }

    def listed(self, names: set[str]) -> bool:
        """Every client lists exactly these, and is up to date."""
        tables = [client._membership for client in self.clients]
        return all(
            table.synced and table.stale is None and {one.name for one in table.instances()} == names
            for table in tables
        )

    async def right(self) -> bool:
        """Every worker has the record that it had, and is seen by every client."""
        try:
            return await self.records() == self.recorded and self.listed({*WORKERS})
        except httpx.HTTPError:  # a server that has just begun may still be busy
            return False

    async def until_right(self) -> float:
        began = time.monotonic()
        while not await self.right():
            seen = [(table.stale, table.instances()) for table in (one._membership for one in self.clients)]
            assert time.monotonic() - began < 3 * RECOVERY_S, (seen, self.recorded)
            await asyncio.sleep(0.02)
        await self._ask_owners()
        return time.monotonic() - began

    async def _ask_owners(self) -> None:
        """Each record is owned by a process that follows it."""
        for name in WORKERS:
            question = {"metadata": {"annotations": {QUESTION: "does its owner live?"}}}
            await self.namespace.patch(f"{RECORDS}/{name}", question)
        async with asyncio.timeout(3 * RECOVERY_S):
            while any(claims_of(one) for one in (await records(self.namespace)).values()):
                await asyncio.sleep(0.01)

    async def suffer(self, fault: str, do: Callable[[], Awaitable[None]]) -> None:
        """Let it happen, wait until all is right again, and see whether readiness still comes through."""
        ended = [len(load.ended) for load in self.loads]
        began = time.monotonic()
        await do()
        over = time.monotonic()
        window = Window(fault, lasted_s=over - began, right_s=await self.until_right())
        window.controller_s, window.followed_s = await self._unready(over)
        self.windows.append(window)
        for load, before in zip(self.loads, ended, strict=True):
            while len(load.ended) < before + RATE_PER_S:  # what is over at once is felt later
                await asyncio.sleep(0.02)
            await load.steady()
        calls = [call for load, before in zip(self.loads, ended, strict=True) for call in load.ended[before:]]
        window.calls, window.failed = len(calls), sum(call.error is not None for call in calls)
        window.longest_s = max(call.after_s for call in calls)

    async def _unready(self, over: float) -> tuple[float, float]:
        """A pod fails its probe, and passes the next one: how late that is told, and how late it is seen."""
        kubelet, pod = self.namespace.kubelet, self.pods["w3"]
        async with asyncio.timeout(CONTROLLER_S):
            await kubelet.set_ready(pod, False)
            while pod.name in await self.namespace.ready_pods():
                await asyncio.sleep(0.01)
            told = time.monotonic()
            while not self.listed({"w1", "w2"}):
                await asyncio.sleep(0.005)
            seen = time.monotonic()
            await kubelet.set_ready(pod, True)
            while not self.listed({*WORKERS}):
                await asyncio.sleep(0.02)
        return told - over, seen - told

    # What happens.

    async def killed(self, after_s: float, *, compacted: bool = False) -> None:
        """With history compacted a record is lost too, which no event will ever tell."""
        self.plane.kill()
        if compacted:
            key = f"/registry/nvidia.com/dynamoworkermetadatas/{self.namespace.name}/w2"
            assert await asyncio.to_thread(self.plane.etcd.ctl, "del", key) == "1\n"
            await asyncio.to_thread(self.plane.compact)
        await asyncio.sleep(after_s)
        self.plane.launch()
        await self.plane.ready()

    async def frozen(self, for_s: float) -> None:
        self.plane.apiserver.pause()
        await asyncio.sleep(for_s)
        self.plane.apiserver.resume()

    async def deleted(self) -> None:
        await self.namespace.call("DELETE", RECORDS)

    async def cut_off(self, for_s: float) -> None:
        """Meanwhile the worker is called as before; before its end its record is deleted."""
        self.way.black_hole()
        await asyncio.sleep(for_s)
        for load in self.loads:
            await load.answered_by(*WORKERS)
        await self.namespace.call("DELETE", f"{RECORDS}/w1")
        self.way.heal()


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        plane = stack.enter_context(ControlPlane(CRD))
        namespace = await stack.enter_async_context(fresh_namespace(plane))
        await namespace.service()
        way = await stack.enter_async_context(FaultProxy("127.0.0.1", plane.apiserver.port))
        made = Scene(namespace, way)

        def settings(name: str) -> dict[str, Any]:
            server = f"https://{way.address}" if name in ("w1", "c1") else None
            return {
                "discovery_backend": "kubernetes",
                "kubeconfig": str(plane.kubeconfig(namespace=namespace.name, server=server)),
                "request_plane": "tcp",
                "tcp_host": "127.0.0.1",
                "graceful_shutdown_timeout_s": 5.0,
            }

        for name in WORKERS:
            pod = made.pods[name] = await namespace.kubelet.start(name)
            identity = {"pod_name": pod.name, "pod_uid": pod.uid}
            made.workers[name] = await ProcessWorker.start(name, settings(name) | identity, folder)
            stack.push_async_callback(made.workers[name].clear)
        for worker in made.workers.values():
            await worker.ready()
        made.recorded = await made.records()
        assert set(made.recorded) == set(WORKERS)
        for name in CLIENTS:
            runtime = await stack.enter_async_context(DistributedRuntime(**settings(name)))
            client = await runtime.endpoint(f"{COMPONENT}.echo").client()
            await client.wait_for_instances(len(WORKERS))
            made.clients.append(client)
            load = Load(client, {"pause_s": 0.005}, RATE_PER_S, DEADLINE_S, idempotent=True)
            made.loads.append(await stack.enter_async_context(load))
        for load in made.loads:
            await load.steady()
        yield made


async def suffer_all(scale: Scale, folder: Path, tell: Tell) -> None:
    """Print what was counted, then look."""
    async with scene(folder) as here:
        for killed_s in scale.killed_s:
            await here.suffer(f"API server killed for {killed_s:g} s", partial(here.killed, killed_s))
        await here.suffer(f"API server frozen for {scale.frozen_s:g} s", partial(here.frozen, scale.frozen_s))
        await here.suffer("history compacted, a record lost", partial(here.killed, 0.0, compacted=True))
        await here.suffer("all records deleted by hand", here.deleted)
        await here.suffer(
            f"a worker and a client cut off for {scale.cut_s:g} s", partial(here.cut_off, scale.cut_s)
        )
    for window in here.windows:
        row = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(window).items()
        }
        tell(json.dumps(row))
    for window in here.windows:
        assert window.failed == 0, window
        assert window.right_s < RECOVERY_S, window
        assert window.followed_s < RECOVERY_S, window
    for load in here.loads:
        assert not load.failed, load


@pytest.mark.timeout(240)
async def test_faults_of_the_api_server(tmp_path: Path, tell: Tell) -> None:
    await suffer_all(QUICK, tmp_path, tell)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_the_same_for_as_long_as_outages_last(tmp_path: Path, tell: Tell) -> None:
    await suffer_all(FULL, tmp_path, tell)
