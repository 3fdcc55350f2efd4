"""The Discovery port over a store of this process: what a runtime sees."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from dynamo.adapters.discovery.clients import OpenClient, check_owner
from dynamo.adapters.discovery.mem.store import MemStore
from dynamo.core.codec import decode_instance, encode_instance
from dynamo.core.errors import ClosedError, ConflictError, LeaseLostError, UnavailableError
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, InstanceKey, Scope
from dynamo.core.ports.discovery import Capability, Lease, Liveness, Watch
from dynamo.core.watching import ConflatingWatch

PULSES = 5  # in a TTL


class MemLease(Lease):
    """``wanted`` is what the store must show for this lease; whoever deletes it by hand sees it come back."""

    def __init__(self, discovery: MemDiscovery, instance_id: int, incarnation: int) -> None:
        self.instance_id, self.incarnation = instance_id, incarnation
        self.wanted: dict[EndpointId, Instance] = {}
        self.renewed_at = time.monotonic()
        self._discovery, self._store = discovery, discovery.store
        self._loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._reason = ""
        self._ended = False

    async def put(self, instance: Instance) -> None:
        check_owner(instance, self.instance_id, self.incarnation)
        record = decode_instance(encode_instance(instance))
        await asyncio.sleep(0)
        if self._put(record):
            return
        ttl_s = self._discovery.capability.ttl_s
        async with self._discovery.watch(Scope.of(instance.endpoint_id)) as watch:
            with anyio.move_on_after(ttl_s):
                while not self._put(record):
                    await watch.receive()
                return
        raise ConflictError(
            f"{instance.endpoint_id}#{self.instance_id} belongs to another incarnation, still alive after "
            f"{ttl_s:g} s; stop that one, or let this one draw an id of its own"
        )

    def _put(self, record: Instance) -> bool:
        with self._store.lock:
            self._check_usable()
            if not self._store.put(self, record):
                return False
            self.wanted[record.endpoint_id] = record
            return True

    async def remove(self, endpoint_id: EndpointId) -> None:
        await asyncio.sleep(0)
        with self._store.lock:
            self.wanted.pop(endpoint_id, None)
            if self._store.down:
                raise UnavailableError(self._store.reason)
            self._store.remove(self, (endpoint_id, self.instance_id))

    async def lost(self) -> str:
        await self._lost.wait()
        return self._reason

    def _check_usable(self) -> None:
        if self._ended:
            raise ClosedError(f"the lease of {self.instance_id} has ended")
        if self._reason:
            raise LeaseLostError(self._reason)
        if self._store.down:
            raise UnavailableError(self._store.reason)

    def restore(self) -> None:
        """Make the store say what this lease wants."""
        with self._store.lock:
            if not (self._ended or self._reason or self._store.down):
                for key in [key for key, entry in self._store.entries.items() if entry.owner is self]:
                    if key[0] not in self.wanted:  # its removal failed in an outage
                        self._store.remove(self, key)
                for instance in self.wanted.values():
                    if instance.key not in self._store.entries:
                        self._store.put(self, instance)

    def drop(self) -> None:
        self.wanted.clear()
        for key in [key for key, entry in self._store.entries.items() if entry.owner is self]:
            self._store.remove(self, key)

    def lose(self, reason: str) -> None:
        if not (self._reason or self._ended):
            self._reason = reason
            self.drop()
            self._soon(self._lost.set)

    def end(self) -> None:
        self._ended = True
        self.drop()

    def deleted(self) -> None:
        self._soon(self.restore)

    def _soon(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: its owner is gone
            pass


class MemDiscovery(OpenClient):
    """One client. ``store`` is the backend itself, for tests."""

    def __init__(self, store: MemStore, ttl_s: float) -> None:
        can = Capability(
            scheme="mem",
            liveness=Liveness.TTL,
            ttl_s=ttl_s,
            dynamic=True,
            cross_process=False,
            cross_host=False,
        )
        super().__init__(can, f"mem://{store.name}")
        self.store = store
        self.pulses = 0
        self._pid = os.getpid()
        self._watches: dict[ConflatingWatch, Scope] = {}
        self._leases: dict[MemLease, None] = {}
        self._seen: dict[
            MemDiscovery, tuple[int, float]
        ] = {}  # pulses of the others, and their age in seconds
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        self.check_open()
        watch = ConflatingWatch()
        with self.store.lock:
            self._watches[watch] = scope
            self.store.sync(watch, scope)
        try:
            yield watch
        finally:
            with self.store.lock:
                del self._watches[watch]

    @asynccontextmanager
    async def lease(self, *, instance_id: int, incarnation: int) -> AsyncIterator[Lease]:
        self.check_open()
        await asyncio.sleep(0)
        if self.store.down:
            raise UnavailableError(self.store.reason)
        lease = MemLease(self, instance_id, incarnation)
        with self.store.lock:
            self._leases[lease] = None
        try:
            yield lease
        finally:
            with self.store.lock:
                lease.end()
                del self._leases[lease]

    async def check(self) -> Health:
        await asyncio.sleep(0)
        if self.store.down:
            return Health(status=Status.DOWN, detail=self.store.reason)
        return Health(status=Status.UP, detail=f"mem://{self.store.name}")

    def changed(self, key: InstanceKey, instance: Instance | None) -> None:
        """The store's word on one key; None: it is gone, or cannot be read."""
        if not self.store.down:
            for watch, scope in self._watches.items():
                if scope.covers(key[0]):
                    watch.remove(*key) if instance is None else watch.put(instance)
        if instance is None:
            for lease in self._leases:
                if lease.wanted.get(key[0]) is not None and lease.instance_id == key[1]:
                    lease.deleted()

    def sync(self) -> None:
        """The store went away, came back, or had taken this client for dead."""
        for lease in self._leases:
            lease.restore()
        for watch, scope in self._watches.items():
            self.store.sync(watch, scope)

    def lose(self, reason: str) -> None:
        for lease in self._leases:
            lease.lose(reason)

    def pulse(self) -> None:
        """Renew our leases and bury who stopped pulsing."""
        with self.store.lock:
            self.pulses += 1
            if self not in self.store.clients:
                self.store.clients[self] = None
                self.sync()
            self.renew()
            self.bury()
        interval_s = self._capability.ttl_s / PULSES
        self._timer = asyncio.get_running_loop().call_later(interval_s, self.pulse)

    def renew(self) -> None:
        now, ttl_s = time.monotonic(), self._capability.ttl_s
        for lease in self._leases:
            if not self.store.down:
                lease.renewed_at = now
            elif now - lease.renewed_at >= ttl_s:
                lease.lose(f"{self.store.reason}: unrenewed for {ttl_s:g} s")

    def bury(self) -> None:
        interval_s = self._capability.ttl_s / PULSES
        seen, self._seen = self._seen, {}
        for other in [other for other in self.store.clients if other is not self]:
            pulses, still_s = seen.get(other, (other.pulses, -interval_s))
            still_s = still_s + interval_s if pulses == other.pulses else 0.0
            self._seen[other] = (other.pulses, still_s)
            if still_s > other.capability.ttl_s - interval_s:
                del self.store.clients[other]
                other.lose(f"mem: the client's loop did not run for {still_s:g} s")

    def close(self) -> None:
        super().close()
        if self._timer is not None:
            self._timer.cancel()
        with self.store.lock:
            self.store.clients.pop(self, None)

    def check_open(self) -> None:
        super().check_open()
        if self._pid != os.getpid():
            raise ClosedError(f"mem://{self.store.name}: opened by the parent of this process")
