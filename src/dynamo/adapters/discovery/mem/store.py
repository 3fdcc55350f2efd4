"""What the clients of one name share, and by whose hand it may change."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from dynamo.core.codec import decode_instance
from dynamo.core.errors import BadPayloadError
from dynamo.core.model import Instance, InstanceKey, Scope
from dynamo.core.watching import ConflatingWatch

if TYPE_CHECKING:
    from dynamo.adapters.discovery.mem.client import MemDiscovery, MemLease

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
            log.warning("mem://%s: record %s#%d is passed over: %s", self.name, *key, error)
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
