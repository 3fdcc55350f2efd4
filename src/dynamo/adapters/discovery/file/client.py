"""The Discovery port over one tree: what a runtime sees."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from dynamo.adapters.discovery.clients import OpenClient, check_owner
from dynamo.adapters.discovery.file.keeping import OwnLease
from dynamo.adapters.discovery.file.layout import FORBIDDEN
from dynamo.adapters.discovery.file.tree import ANSWER_S, Tree
from dynamo.core.codec import encode_instance
from dynamo.core.errors import ConflictError, DynamoError
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Capability, Lease, Liveness, Watch
from dynamo.core.watching import ConflatingWatch

TICK_S = 0.25  # a lease learns this often that its loop runs, a watch that the disk hangs
RETRY_S = 0.05  # while another owner's lease is waited for


class FileLease(Lease):
    """A lease of this runtime; ``own`` is the thread's part of it."""

    def __init__(self, tree: Tree, instance_id: int, incarnation: int, stall_s: float) -> None:
        self._tree, self._loop = tree, asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self.own = OwnLease(instance_id, incarnation, stall_s, self._tell)

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._lost.set)
        except RuntimeError:  # the loop is closed: nobody waits
            pass

    async def take(self) -> None:
        """Take it, from an older incarnation after at most a TTL.

        Raises ConflictError, UnavailableError, ConfigError.
        """
        own, ttl_s = self.own, self._tree.key.ttl_s
        deadline: float | None = None
        while True:
            try:
                holder = await self._tree.run(lambda: self._tree.keeper.take(own), "take a lease")
            except OSError as error:
                raise self._tree.layout.error("write", error, fatal=FORBIDDEN) from error
            if holder is None:
                return
            now = time.monotonic()
            deadline = deadline or now + ttl_s
            if now > deadline:
                raise ConflictError(
                    f"instance {own.instance_id} in {self._tree.layout.root} belongs to {holder}, still "
                    f"alive after {ttl_s:g} s; stop that one, or let this one draw an id of its own"
                )
            await asyncio.sleep(min(RETRY_S, ttl_s / 10))

    async def put(self, instance: Instance) -> None:
        own, keeper = self.own, self._tree.keeper
        check_owner(instance, own.instance_id, own.incarnation)
        record = encode_instance(instance)
        try:
            await self._tree.run(
                lambda: keeper.put(own, instance.endpoint_id, record), f"register {instance}"
            )
        except OSError as error:
            raise self._tree.layout.error("write", error) from error
        self._tree.submit(self._tree.sweep_soon)

    async def remove(self, endpoint_id: EndpointId) -> None:
        own, keeper = self.own, self._tree.keeper
        try:
            await self._tree.run(lambda: keeper.remove(own, endpoint_id), f"unregister {endpoint_id}")
        except OSError as error:
            raise self._tree.layout.error("remove", error) from error
        self._tree.submit(self._tree.sweep_soon)

    async def lost(self) -> str:
        await self._lost.wait()
        return self.own.reason

    def tick(self, now: float) -> None:
        """The loop runs. On a shared disk the lease ends by the clock, even while the thread hangs."""
        self.own.turns += 1
        key = self._tree.key
        if key.shared and self.own.held is not None and now - self.own.kept_at >= key.ttl_s:
            self.own.lose(f"{self._tree.layout.root} took no renewal for {key.ttl_s:g} s")

    async def end(self) -> None:
        """Remove what is registered under it; bounded, and done later if the disk does not answer in time."""

        def release() -> None:
            self._tree.keeper.release(self.own)
            self._tree.sweep_soon()

        if self._tree.forked:
            return  # the parent keeps it
        with anyio.move_on_after(ANSWER_S, shield=True):
            try:
                await self._tree.run(release, "end a lease", surely=True)
            except DynamoError:
                pass  # it stays in the thread's queue


class FileDiscovery(OpenClient):
    """One runtime's client of a tree."""

    def __init__(self, tree: Tree, stall_s: float) -> None:
        key = tree.key
        super().__init__(capability(shared=key.shared, ttl_s=key.ttl_s), str(tree.layout.root))
        self._tree, self._stall_s = tree, stall_s
        self._leases: set[FileLease] = set()
        self._watches: set[ConflatingWatch] = set()
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        self.check_open()
        watch = ConflatingWatch()
        self._watches.add(watch)
        self._tree.follow(watch, scope)
        try:
            yield watch
        finally:
            self._watches.discard(watch)
            self._tree.unfollow(watch)

    @asynccontextmanager
    async def lease(self, *, instance_id: int, incarnation: int) -> AsyncIterator[Lease]:
        self.check_open()
        lease = FileLease(self._tree, instance_id, incarnation, self._stall_s)
        self._leases.add(lease)
        try:
            await lease.take()
            yield lease
        finally:
            self._leases.discard(lease)
            await lease.end()  # noqa: ASYNC102 - shielded and bounded inside

    async def check(self) -> Health:
        layout, writes = self._tree.layout, bool(self._leases)

        def probe() -> None:
            os.listdir(layout.services)
            if writes:
                layout.probe()

        try:
            await self._tree.run(probe, "look")
        except OSError as error:
            return Health(status=Status.DOWN, detail=str(layout.error("use", error)))
        except DynamoError as error:
            return Health(status=Status.DOWN, detail=str(error))
        if self._tree.sweeper.away:
            return Health(status=Status.STALE, detail=self._tree.sweeper.away)
        return Health(status=Status.UP, detail=f"{layout.root} ({layout.source})")

    def start(self) -> None:
        """Begin to tell the thread that our loop runs, and our watches that the thread hangs."""
        now = time.monotonic()
        for lease in self._leases:
            lease.tick(now)
        if self._watches and (reason := self._tree.hung()):
            for watch in self._watches:
                watch.stale(reason)
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self.start)

    def close(self) -> None:
        """End that."""
        super().close()
        if self._timer is not None:
            self._timer.cancel()


def capability(*, shared: bool, ttl_s: float) -> Capability:
    """Of a disk that one host uses, or of one that hosts share, where a death shows later than the TTL."""
    return Capability(
        scheme="file",
        liveness=Liveness.TTL,
        ttl_s=ttl_s * 4 / 3 if shared else ttl_s,
        dynamic=True,
        cross_process=True,
        cross_host=shared,
    )
