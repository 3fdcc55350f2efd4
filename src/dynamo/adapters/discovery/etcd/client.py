"""The Discovery port over one etcd cluster: what a runtime sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from dynamo.adapters.discovery.clients import OpenClient, check_owner
from dynamo.adapters.discovery.etcd.cluster import Cluster
from dynamo.adapters.discovery.etcd.configuration import EtcdConfig
from dynamo.adapters.discovery.etcd.feed import Feed
from dynamo.adapters.discovery.etcd.keys import range_of
from dynamo.adapters.discovery.etcd.leasing import END_S, OwnLease
from dynamo.adapters.discovery.etcd.scoping import Scoped
from dynamo.adapters.discovery.etcd.thread import Tasks
from dynamo.core.codec import encode_instance
from dynamo.core.errors import ClosedError, DynamoError
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Capability, Lease, Liveness, Watch
from dynamo.core.watching import ConflatingWatch

TICK_S = 0.25  # the thread learns this often that our loop runs
CHECK_S = 2.0


class EtcdLease(Lease):
    """A lease of this runtime; ``own`` is the thread's part of it."""

    def __init__(self, tasks: Tasks, own: OwnLease, lost: asyncio.Event) -> None:
        self._tasks, self._own, self._lost = tasks, own, lost

    async def put(self, instance: Instance) -> None:
        own = self._own
        check_owner(instance, own.instance_id, own.incarnation)
        await self._tasks.run(own.put(instance.endpoint_id, encode_instance(instance)))

    async def remove(self, endpoint_id: EndpointId) -> None:
        await self._tasks.run(self._own.remove(endpoint_id))

    async def lost(self) -> str:
        await self._lost.wait()
        return self._own.reason


class EtcdDiscovery(OpenClient):
    """One runtime's client."""

    def __init__(self, tasks: Tasks, cluster: Cluster) -> None:
        super().__init__(capability(cluster.config), cluster.config.where)
        self._tasks, self._cluster = tasks, cluster
        self._turns = 0
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        self.check_open()
        watch = ConflatingWatch()
        feed = Feed(self._cluster, [range_of(scope)], Scoped(scope, watch))
        leave = self._tasks.spawn(feed.run())
        try:
            yield watch
        finally:
            leave()

    @asynccontextmanager
    async def lease(self, *, instance_id: int, incarnation: int) -> AsyncIterator[Lease]:
        self.check_open()
        loop, lost = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            try:
                loop.call_soon_threadsafe(lost.set)
            except RuntimeError:  # the loop is closed: nobody waits
                pass

        own = OwnLease(self._cluster, instance_id, incarnation, lambda: self._turns, tell)
        try:
            await self._tasks.run(own.take())
            yield EtcdLease(self._tasks, own, lost)
        finally:
            if not self._tasks.forked:  # else the parent keeps it
                await self._finish(own)  # noqa: ASYNC102 - shielded and bounded inside

    async def _finish(self, own: OwnLease) -> None:
        with anyio.move_on_after(2 * END_S + 0.5, shield=True):
            try:
                await self._tasks.run(own.end())
            except ClosedError:
                pass

    async def check(self) -> Health:
        where = self._cluster.config.where
        try:
            version = await self._tasks.run(self._cluster.version(CHECK_S))
        except DynamoError as error:
            return Health(status=Status.DOWN, detail=str(error))
        return Health(status=Status.UP, detail=f"etcd {version} at {where}")

    def start(self) -> None:
        """Begin to tell the thread that our loop runs."""
        self._turns += 1
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self.start)

    def close(self) -> None:
        """End that."""
        super().close()
        if self._timer is not None:
            self._timer.cancel()


def capability(config: EtcdConfig) -> Capability:
    return Capability(
        scheme="etcd",
        liveness=Liveness.TTL,
        ttl_s=float(config.ttl_s),
        dynamic=True,
        cross_process=True,
        cross_host=True,
    )
