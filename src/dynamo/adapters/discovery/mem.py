"""Discovery within one process: ``mem://name``, the reference that the contract is written against.

All clients of one name share a store; plain ``mem://`` is the name ``default``. The store goes when its last
client closes. Records pass through the codec, so that what another backend could not carry fails here too.
Clients may live on loops of different threads. Each pulses while its loop runs; one whose pulse stood still
for a TTL's worth of another's pulses is dead. No clock decides that: a loop that was blocked buries nobody.

=============  ============================
capability
=============  ============================
liveness       ttl: ``?ttl_s=``, else 10 s
dynamic        yes
cross_process  no
cross_host     no
=============  ============================

Errors: UnavailableError while ``MemStore.outage`` is on; the others as in the port.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import anyio
from attrs import define, field, frozen

from dynamo.adapters.discovery.options import ttl_option
from dynamo.core.codec import decode_instance, encode_instance
from dynamo.core.config import Settings
from dynamo.core.errors import (
    BadPayloadError,
    ClosedError,
    ConfigError,
    ConflictError,
    LeaseLostError,
    UnavailableError,
)
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, InstanceKey, Scope, check_name
from dynamo.core.ports.discovery import Capability, Discovery, Identity, Lease, Liveness, Watch
from dynamo.core.registry import url_options
from dynamo.core.watching import ConflatingWatch

PULSES = 5  # in a TTL

log = logging.getLogger(__name__)


@frozen(eq=False)
class Entry:
    """A record and whose it is."""

    instance: Instance | None  # None: it cannot be read
    owner: MemLease | None  # None: written by hand


@define(eq=False)
class MemStore:
    """What the clients of one name share; its methods may be called from any thread.

    ``outage``, ``expire``, ``delete`` and ``write`` are for tests: what an operator would do, or a failure.
    """

    name: str
    down: bool = False
    entries: dict[InstanceKey, Entry] = field(factory=dict)
    clients: dict[MemDiscovery, None] = field(factory=dict)
    lock: threading.RLock = field(factory=threading.RLock)

    @property
    def reason(self) -> str:
        """Why nothing works during an outage."""
        return f"mem://{self.name} is away (MemStore.outage)"

    def sync(self, watch: ConflatingWatch, scope: Scope) -> None:
        """Bring a watch to the present state, whatever it showed before."""
        if self.down:
            watch.stale(self.reason)
        else:
            found = (entry.instance for entry in self.entries.values())
            watch.reset(tuple(i for i in found if i is not None and scope.covers(i.endpoint_id)))

    def put(self, owner: MemLease, instance: Instance) -> bool:
        """Register; False: the live lease of another incarnation holds the key."""
        held = self.entries.get(instance.key)
        if held is not None and held.owner is not None and held.owner.incarnation != owner.incarnation:
            return False
        self._set(instance.key, Entry(instance, owner))
        return True

    def remove(self, owner: MemLease, key: InstanceKey) -> None:
        held = self.entries.get(key)
        if held is not None and held.owner is owner:
            self._unset(key)

    def outage(self, on: bool) -> None:
        """Take the backend away from every client, or bring it back."""
        with self.lock:
            self.down = on
            for client in self.clients:
                client.sync()

    def expire(self) -> None:
        """Drop every lease, as after a partition longer than the TTL."""
        with self.lock:
            for client in self.clients:
                client.lose("mem: the store dropped the lease")

    def delete(self, key: InstanceKey) -> None:
        """Remove a key behind its owner's back."""
        with self.lock:
            self._unset(key)

    def write(self, key: InstanceKey, record: bytes) -> None:
        """Store a record that no lease owns."""
        instance: Instance | None = None
        try:
            instance = decode_instance(record)
        except BadPayloadError as error:
            log.warning("mem://%s: record %s#%x is passed over: %s", self.name, *key, error)
        with self.lock:
            self._set(key, Entry(instance, None))

    def _set(self, key: InstanceKey, entry: Entry) -> None:
        self.entries[key] = entry
        for client in self.clients:
            client.changed(key, entry.instance)

    def _unset(self, key: InstanceKey) -> None:
        if self.entries.pop(key, None) is not None:
            for client in self.clients:
                client.changed(key, None)


_stores: weakref.WeakValueDictionary[str, MemStore] = weakref.WeakValueDictionary()
_stores_lock = threading.Lock()


def _in_child() -> None:
    _stores.clear()  # what the parent's runtimes registered is nobody's here
    _stores_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_stores_lock.acquire, after_in_parent=_stores_lock.release, after_in_child=_in_child
    )


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
        if (instance.instance_id, instance.incarnation) != (self.instance_id, self.incarnation):
            raise ConfigError(f"{instance} does not belong to the lease of {self.instance_id:x}")
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
            f"{instance.endpoint_id}#{self.instance_id:x} belongs to another incarnation, still alive after "
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
            raise ClosedError(f"the lease of {self.instance_id:x} has ended")
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


class MemDiscovery(Discovery):
    """One client. ``store`` is the backend itself, for tests."""

    def __init__(self, store: MemStore, ttl_s: float) -> None:
        self.store = store
        self.pulses = 0
        self._pid = os.getpid()
        self._capability = Capability(
            scheme="mem",
            liveness=Liveness.TTL,
            ttl_s=ttl_s,
            dynamic=True,
            cross_process=False,
            cross_host=False,
        )
        self._watches: dict[ConflatingWatch, Scope] = {}
        self._leases: dict[MemLease, None] = {}
        self._seen: dict[
            MemDiscovery, tuple[int, float]
        ] = {}  # pulses of the others, and their age in seconds
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def capability(self) -> Capability:
        return self._capability

    async def identity(self) -> Identity | None:
        return None

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        self._check_open()
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
        self._check_open()
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
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        with _stores_lock, self.store.lock:
            self.store.clients.pop(self, None)
            if not self.store.clients and _stores.get(self.store.name) is self.store:
                del _stores[self.store.name]

    def _check_open(self) -> None:
        if self._closed or self._pid != os.getpid():
            why = "this client is closed" if self._closed else "opened by the parent of this process"
            raise ClosedError(f"mem://{self.store.name}: {why}")


def open_mem(url: str, settings: Settings) -> AbstractAsyncContextManager[MemDiscovery]:
    """``mem://name?ttl_s=10``; without a name it is ``default``. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.path.strip("/") or parts.fragment:
        raise ConfigError(f"{url}: expected mem://name")
    ttl_s = ttl_option(url, url_options(url, ("ttl_s",)))
    return _open(check_name("mem store", parts.netloc or "default"), ttl_s)


@asynccontextmanager
async def _open(name: str, ttl_s: float) -> AsyncIterator[MemDiscovery]:
    with _stores_lock:
        store = _stores.get(name)
        if store is None:
            store = _stores[name] = MemStore(name=name)
        client = MemDiscovery(store, ttl_s)
        client.pulse()
    try:
        yield client
    finally:
        client.close()
