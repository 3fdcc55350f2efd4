"""Between an adapter's feed and the one reader of a watch: a conflating buffer, and the one reducer."""

from __future__ import annotations

import asyncio
import threading

from dynamo.core.model import EndpointId, Instance, InstanceKey
from dynamo.core.ports.discovery import Change, Put, Removed, Snapshot, Stale, Watch


class ConflatingWatch(Watch):
    """Holds the present and the delivered state, and hands out their difference.

    Memory is bounded by present plus delivered instances, whatever the reader does. Feeding (``reset``,
    ``put``, ``remove``, ``replace``, ``stale``) is synchronous and may come from any thread; reading belongs
    to one task.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._present: dict[InstanceKey, Instance] = {}
        self._delivered: dict[InstanceKey, Instance] = {}
        self._dirty: dict[InstanceKey, None] = {}  # insertion order is delivery order
        self._synced = False  # the feed gave the whole state, and the backend has not gone since
        self._away = False
        self._resync = False  # a snapshot is due
        self._stale: Stale | None = None
        self._waiter: asyncio.Future[None] | None = None

    def reset(self, instances: tuple[Instance, ...]) -> None:
        """The whole state is this: the start, or the end of an outage."""
        with self._lock:
            self._reset(instances)
            self._notify()

    def put(self, instance: Instance) -> None:
        with self._lock:
            self._put(instance)
            self._notify()

    def remove(self, endpoint_id: EndpointId, instance_id: int) -> None:
        with self._lock:
            self._remove((endpoint_id, instance_id))
            self._notify()

    def replace(self, instances: tuple[Instance, ...]) -> None:
        """Feed a complete listing as differences; the first, and one after ``stale``, is a snapshot."""
        with self._lock:
            if not self._synced:
                self._reset(instances)
            else:
                listed = {instance.key for instance in instances}
                for key in [key for key in self._present if key not in listed]:
                    self._remove(key)
                for instance in instances:
                    self._put(instance)
            self._notify()

    def stale(self, reason: str) -> None:
        """The backend is away. Repeating it while away tells the reader nothing new."""
        with self._lock:
            if not self._away:
                self._away, self._synced = True, False
                self._stale = Stale(reason=reason)
                self._notify()

    async def receive(self) -> Change:
        while True:
            with self._lock:
                if (change := self._next()) is not None:
                    return change
                if self._waiter is not None:
                    raise RuntimeError("a watch has one reader at a time")
                waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                with self._lock:
                    if self._waiter is waiter:
                        self._waiter = None

    def _reset(self, instances: tuple[Instance, ...]) -> None:
        self._present = {instance.key: instance for instance in instances}
        self._dirty.clear()  # the snapshot says it all
        self._resync, self._synced, self._away, self._stale = True, True, False, None

    def _put(self, instance: Instance) -> None:
        if self._present.get(instance.key) != instance:
            self._present[instance.key] = instance
            self._mark(instance.key)

    def _remove(self, key: InstanceKey) -> None:
        if self._present.pop(key, None) is not None:
            if key in self._delivered:
                self._mark(key)
            else:
                self._dirty.pop(key, None)  # it came and went unseen

    def _mark(self, key: InstanceKey) -> None:
        if not self._resync:  # the pending snapshot carries it anyway
            self._dirty[key] = None

    def _notify(self) -> None:
        if self._waiter is not None and (self._resync or self._dirty or self._stale):
            waiter, self._waiter = self._waiter, None
            try:
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)
            except RuntimeError:  # the reader's loop is closed: nobody reads any more
                pass

    def _next(self) -> Change | None:
        if self._resync:
            self._resync = False
            self._delivered = dict(self._present)
            return Snapshot(instances=tuple(self._present.values()))
        while self._dirty:
            key = next(iter(self._dirty))
            now, before = self._present.get(key), self._delivered.get(key)
            if now is not None and before is not None and now.incarnation != before.incarnation:
                del self._delivered[key]  # the key stays dirty: the new incarnation's Put is next
                return Removed(endpoint_id=key[0], instance_id=key[1])
            del self._dirty[key]
            if now is not None and now != before:
                self._delivered[key] = now
                return Put(instance=now)
            if now is None and self._delivered.pop(key, None) is not None:
                return Removed(endpoint_id=key[0], instance_id=key[1])
        stale, self._stale = self._stale, None
        return stale


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def apply(live: dict[InstanceKey, Instance], change: Change) -> None:
    """Fold one change into ``live``: the only reducer that a consumer needs."""
    match change:
        case Snapshot(instances=instances):
            live.clear()
            live.update((instance.key, instance) for instance in instances)
        case Put(instance=instance):
            live[instance.key] = instance
        case Removed(endpoint_id=endpoint_id, instance_id=instance_id):
            live.pop((endpoint_id, instance_id), None)
        case Stale():
            pass  # the last known state stays in force
