"""Between an adapter's feed and the one reader of a watch: a conflating buffer, and the one reducer."""

from __future__ import annotations

import asyncio

from dynamo.core.model import EndpointId, Instance, InstanceKey
from dynamo.core.ports.discovery import Change, Put, Removed, Snapshot, Stale, Watch


class ConflatingWatch(Watch):
    """Holds the present and the delivered state, and hands out their difference.

    Memory is bounded by present plus delivered instances, whatever the reader does. Feeding (``reset``, ``put``,
    ``remove``, ``stale``) is synchronous and belongs to the loop that reads.
    """

    def __init__(self) -> None:
        self._present: dict[InstanceKey, Instance] = {}
        self._delivered: dict[InstanceKey, Instance] = {}
        self._dirty: dict[InstanceKey, None] = {}  # insertion order is delivery order
        self._resync = False
        self._synced = False
        self._stale: Stale | None = None
        self._wake = asyncio.Event()

    @property
    def present(self) -> dict[InstanceKey, Instance]:
        """What the feed said last; adapters that scan compare with it. Not to be changed."""
        return self._present

    def reset(self, instances: tuple[Instance, ...]) -> None:
        """The whole state is this: the start, or the end of an outage."""
        self._present = {instance.key: instance for instance in instances}
        self._dirty.clear()
        self._resync, self._synced, self._stale = True, True, None
        self._wake.set()

    def put(self, instance: Instance) -> None:
        if self._present.get(instance.key) != instance:
            self._present[instance.key] = instance
            self._mark(instance.key)

    def remove(self, endpoint_id: EndpointId, instance_id: int) -> None:
        if self._present.pop((endpoint_id, instance_id), None) is not None:
            self._mark((endpoint_id, instance_id))

    def replace(self, instances: tuple[Instance, ...]) -> None:
        """Feed a complete listing as differences; the first one is the snapshot, and so is one after ``stale``."""
        if not self._synced:
            self.reset(instances)
            return
        listed = {instance.key for instance in instances}
        for endpoint_id, instance_id in [key for key in self._present if key not in listed]:
            self.remove(endpoint_id, instance_id)
        for instance in instances:
            self.put(instance)

    def stale(self, reason: str) -> None:
        """The backend is away. Repeating it while away tells the reader nothing new."""
        if self._synced or (self._stale is None and not self._delivered and not self._present):
            self._synced = False
            self._stale = Stale(reason=reason)
            self._wake.set()

    def _mark(self, key: InstanceKey) -> None:
        if not self._resync:  # the pending snapshot carries it anyway
            self._dirty[key] = None
            self._wake.set()

    async def receive(self) -> Change:
        while (change := self._next()) is None:
            self._wake.clear()
            await self._wake.wait()
        return change

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
