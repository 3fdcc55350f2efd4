"""Adapters that break one promise of the Discovery port each, made from ``mem``.

``BREAKS`` lists them: the invariant, what replaces its base in the adapter's module, and the tests that
notice.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
from attrs import frozen

from dynamo.adapters.discovery.mem import MemDiscovery, MemStore
from dynamo.adapters.discovery.mem.client import MemLease
from dynamo.core.errors import ClosedError, ConflictError
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, InstanceKey, Scope
from dynamo.core.ports.discovery import Capability, Change, Lease, Put, Removed, Snapshot, Stale, Watch
from dynamo.core.watching import ConflatingWatch, apply


class PutBeforeSnapshot(ConflatingWatch):
    """Replays what is there before it says what is there."""

    replayed = False

    def _next(self) -> Change | None:
        if self._resync and not self.replayed and self._present:
            self.replayed = True
            return Put(instance=next(iter(self._present.values())))
        return super()._next()


class EmptyIsStale(ConflatingWatch):
    """Takes 'nobody is there' for 'no answer'."""

    told = False

    def _next(self) -> Change | None:
        if self._resync and not self._present and not self.told:
            self.told = True
            return Stale(reason="nothing there")
        return super()._next()


class DeltaAsSnapshot(ConflatingWatch):
    """Its later snapshots list only what changed."""

    def _next(self) -> Change | None:
        before = dict(self._delivered)
        change = super()._next()
        if isinstance(change, Snapshot):
            return Snapshot(instances=tuple(i for i in change.instances if before.get(i.key) != i))
        return change


class GapBeforeFirstRead(ConflatingWatch):
    """Takes the snapshot on entering and follows changes from the first read on."""

    def _put(self, instance: Instance) -> None:
        if not self._resync:
            super()._put(instance)

    def _remove(self, key: InstanceKey) -> None:
        if not self._resync:
            super()._remove(key)


class GapAfterSnapshot(ConflatingWatch):
    """Lists, then starts to follow when it is read again: the change in between is lost."""

    gap = False

    def _next(self) -> Change | None:
        change = super()._next()
        self.gap = isinstance(change, Snapshot)
        return change

    def _put(self, instance: Instance) -> None:
        if not self.gap:
            super()._put(instance)
        self.gap = False


class EveryChange(ConflatingWatch):
    """Queues all changes instead of conflating them."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: deque[Change] = deque()

    def _reset(self, instances: tuple[Instance, ...]) -> None:
        self.queue.clear()
        super()._reset(instances)

    def _remove(self, key: InstanceKey) -> None:
        if self._present.pop(key, None) is not None:
            self._mark(key)

    def _mark(self, key: InstanceKey) -> None:
        super()._mark(key)
        now = self._present.get(key)
        if not self._resync:
            self.queue.append(Put(instance=now) if now else Removed(endpoint_id=key[0], instance_id=key[1]))

    def _next(self) -> Change | None:
        if not self.queue:
            return super()._next()
        apply(self._delivered, change := self.queue.popleft())
        return change


class RemovalsForgotten(ConflatingWatch):
    """Drops the removal of an instance while nobody reads."""

    def _remove(self, key: InstanceKey) -> None:
        if self._waiter is None and not self._resync:
            self._present.pop(key, None)
            self._dirty.pop(key, None)
        else:
            super()._remove(key)


class OutageIsEmpty(MemStore):
    """Takes 'no answer' for 'nobody is there'."""

    def sync(self, watch: ConflatingWatch, scope: Scope) -> None:
        if self.down:
            watch.reset(())
        else:
            super().sync(watch, scope)


class OutageIsSilent(MemStore):
    """Does not say that it lost the backend."""

    def sync(self, watch: ConflatingWatch, scope: Scope) -> None:
        if not self.down:
            super().sync(watch, scope)


class PutsGetLostInAnOutage(MemLease):
    """Reports success for what the backend never saw."""

    def _put(self, record: Instance) -> bool:
        return self._store.down or super()._put(record)


class PrefixScope(Scope):
    """Matches names by their beginning."""

    def covers(self, endpoint: EndpointId) -> bool:
        pairs = [
            (self.namespace, endpoint.namespace),
            (self.component, endpoint.component),
            (self.name, endpoint.name),
        ]
        return all(wanted is None or name.startswith(wanted) for wanted, name in pairs)


class PrefixMatch(MemDiscovery):
    """Watches by prefix, as a key-value store would."""

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        wide = PrefixScope(namespace=scope.namespace, component=scope.component, name=scope.name)
        async with super().watch(wide) as watch:
            yield watch


class ForgetsIdempotence(MemLease):
    """Its record lacks a field."""

    async def put(self, instance: Instance) -> None:
        await super().put(attrs.evolve(instance, idempotent=False))


class NoticesAddressesOnly(ConflatingWatch):
    """Tells a change from no change by the addresses."""

    def _put(self, instance: Instance) -> None:
        before = self._present.get(instance.key)
        if (
            before is None
            or before.addresses != instance.addresses
            or before.incarnation != instance.incarnation
        ):
            super()._put(instance)


class IncarnationsMerged(ConflatingWatch):
    """A restarted instance looks like a changed one."""

    def _next(self) -> Change | None:
        for key in self._dirty:
            now, before = self._present.get(key), self._delivered.get(key)
            if now is not None and before is not None:
                self._delivered[key] = attrs.evolve(before, incarnation=now.incarnation, name="not equal")
        return super()._next()


class LeavingKeepsRecords(MemLease):
    """Ends without taking back what it registered."""

    def end(self) -> None:
        self._ended = True


class RemoveTakesAll(MemLease):
    """Removes every registration of the lease for one endpoint's."""

    async def remove(self, endpoint_id: EndpointId) -> None:
        for wanted in list(self.wanted):
            await super().remove(wanted)


class DeadStayListed(MemDiscovery):
    """Looks after nobody else's death."""

    def bury(self) -> None:
        pass


class LossUntold(MemLease):
    """Knows that it is lost, and tells nobody who waits."""

    async def lost(self) -> str:
        await asyncio.Event().wait()
        return ""


class Unrenewed(MemDiscovery):
    """Renews for a while, then forgets it."""

    def renew(self) -> None:
        for lease in self._leases:
            if time.monotonic() - lease.renewed_at >= self.capability.ttl_s * 1.25:
                lease.lose("unrenewed")


class BelievesItsLease(MemDiscovery):
    """Waits for the backend's word on a lease, however long the backend is away."""

    def renew(self) -> None:
        pass


class LastWriterWins(MemStore):
    """Gives a key to whoever asks."""

    def put(self, owner: MemLease, instance: Instance) -> bool:
        self.entries.pop(instance.key, None)
        return super().put(owner, instance)


class ConflictAtOnce(MemLease):
    """Does not give an older incarnation the time to end."""

    def _put(self, record: Instance) -> bool:
        if not super()._put(record):
            raise ConflictError("held")
        return True


class ConflictNever(MemLease):
    """Waits for the older incarnation as long as it takes."""

    async def put(self, instance: Instance) -> None:
        while True:
            try:
                return await super().put(instance)
            except ConflictError:
                pass


class DeletionsStay(MemLease):
    """Does not look after its own keys."""

    def deleted(self) -> None:
        pass


class WatchLeavesTask(MemDiscovery):
    """Its watch forgets a task when it is cancelled."""

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        task = asyncio.create_task(asyncio.Event().wait())
        async with super().watch(scope) as watch:
            yield watch
        task.cancel()


class CancelledLeaseStays(MemDiscovery):
    """Cleans up after a lease that was left, not after one that was cancelled."""

    @asynccontextmanager
    async def lease(self, *, instance_id: int, incarnation: int) -> AsyncIterator[Lease]:
        lease = MemLease(self, instance_id, incarnation)
        self._leases[lease] = None
        yield lease
        lease.end()
        del self._leases[lease]


class CancelledWaitGoesOn(MemLease):
    """Keeps asking for the key, though nobody waits for it any more."""

    async def put(self, instance: Instance) -> None:
        await asyncio.shield(asyncio.ensure_future(self._insist(instance)))

    async def _insist(self, instance: Instance) -> None:
        while True:
            try:
                return await super().put(instance)
            except (ConflictError, ClosedError):
                await asyncio.sleep(0.05)


class ClosedClientLeavesThread(MemDiscovery):
    """Forgets a thread on closing."""

    def close(self) -> None:
        threading.Thread(target=time.sleep, args=(1.5,), name="forgotten", daemon=True).start()
        super().close()


class StopsAtUnreadable(MemStore):
    """One unreadable record ends the listing."""

    def sync(self, watch: ConflatingWatch, scope: Scope) -> None:
        super().sync(watch, scope)
        if any(entry.instance is None for entry in self.entries.values()):
            watch.reset(())


class CheckRaises(MemDiscovery):
    """Lets the outage out of its probe."""

    async def check(self) -> Health:
        health = await super().check()
        if health.status is not Status.UP:
            raise OSError(health.detail)
        return health


class CheckKnowsNothing(MemDiscovery):
    """Is well whatever happens."""

    async def check(self) -> Health:
        return Health(status=Status.UP)


class CheckDespairs(MemDiscovery):
    """Is never well."""

    async def check(self) -> Health:
        return Health(status=Status.DOWN, detail="always")


class OtherCapability(MemDiscovery):
    """Is not what it was said to be."""

    @property
    def capability(self) -> Capability:
        return attrs.evolve(super().capability, cross_host=True)


@frozen
class Break:
    """``stand_in`` takes its base's place in the adapter's module; ``caught_by`` are the tests that notice.

    The first one is the test of the invariant that is broken, the others notice the consequences.
    """

    invariant: str
    stand_in: type
    caught_by: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.invariant}-{self.stand_in.__name__}"


CAPABILITY = "test_capability_is_what_the_suite_was_told"
D1 = "test_D1_a_watch_starts_with_a_snapshot"
D1_EMPTY = "test_D1_the_first_snapshot_of_an_empty_scope_is_empty"
D1_OUTAGE = "test_D1_in_an_outage_stale_comes_first"
D2 = "test_D2_a_later_snapshot_lists_everything"
D3_FIRST = "test_D3_a_change_before_the_first_read_is_seen"
D3_AFTER = "test_D3_a_change_right_after_the_snapshot_is_seen"
D4_LAST = "test_D4_a_slow_reader_gets_the_last_state_only"
D4_REMOVAL = "test_D4_a_slow_reader_misses_no_removal"
D5 = "test_D5_an_outage_is_stale_and_its_end_a_snapshot"
D5_PUT = "test_D5_in_an_outage_a_lease_and_a_put_are_unavailable"
D6 = "test_D6_scopes_match_whole_names"
D6_CHANGES = "test_D6_changes_outside_the_scope_are_not_delivered"
D7 = "test_D7_what_was_put_arrives_whole_and_so_does_a_change"
D8 = "test_D8_another_incarnation_is_removed_then_put"
D9_LEAVE = "test_D9_leaving_the_lease_removes_its_registrations"
D9_REMOVE = "test_D9_remove_takes_one_and_an_absent_one_is_fine"
D10 = "test_D10_a_dead_owners_registrations_vanish"
D11_DROPPED = "test_D11_a_lease_that_the_backend_dropped_is_lost"
D11_KEPT = "test_D11_a_renewed_lease_is_kept"
D11_UNRENEWED = "test_D11_a_lease_unrenewed_for_its_ttl_is_lost"
D12_CONFLICT = "test_D12_another_live_owners_key_is_a_conflict"
D12_WAIT = "test_D12_an_older_incarnations_end_is_waited_for"
D13 = "test_D13_a_key_deleted_by_hand_is_back_within_a_second"
D14_WATCH = "test_D14_a_cancelled_watch_leaves_no_task"
D14_LEASE = "test_D14_a_lease_cancelled_at_any_step_leaves_no_task_and_no_key"
D14_WAIT = "test_D14_a_cancelled_wait_for_another_incarnation_leaves_nothing"
D14_CLIENT = "test_D14_a_closed_client_leaves_no_thread_and_no_descriptor"
D15 = "test_D15_an_unreadable_record_hides_no_other"
D16_UP = "test_D16_check_says_up"
D16 = "test_D16_check_tells_an_outage_and_its_end"

BREAKS = (
    Break("D1", PutBeforeSnapshot, (D1, D3_FIRST, D8)),
    Break("D1", EmptyIsStale, (D1_EMPTY, D1_OUTAGE, D6_CHANGES, D11_KEPT)),
    Break("D2", DeltaAsSnapshot, (D2, D5)),
    Break("D3", GapBeforeFirstRead, (D3_FIRST,)),
    Break("D3", GapAfterSnapshot, (D3_AFTER, D7, D8, D9_LEAVE, D10, D15)),
    Break("D4", EveryChange, (D4_LAST,)),
    Break("D4", RemovalsForgotten, (D4_REMOVAL, D3_AFTER, D6_CHANGES, D9_LEAVE)),
    Break("D5", OutageIsEmpty, (D5, D1_OUTAGE, D2)),
    Break("D5", OutageIsSilent, (D5, D1_OUTAGE, D2)),
    Break("D5", PutsGetLostInAnOutage, (D5_PUT,)),
    Break("D6", PrefixMatch, (D6, D6_CHANGES, D1)),
    Break("D7", ForgetsIdempotence, (D7,)),
    Break("D7", NoticesAddressesOnly, (D7, D4_LAST)),
    Break("D8", IncarnationsMerged, (D8,)),
    Break("D9", LeavingKeepsRecords, (D9_LEAVE, D6_CHANGES, D8, D10, D12_WAIT, D14_LEASE, D14_WAIT)),
    Break("D9", RemoveTakesAll, (D9_REMOVE,)),
    Break("D10", DeadStayListed, (D10,)),
    Break("D11", LossUntold, (D11_DROPPED, D11_UNRENEWED)),
    Break("D11", Unrenewed, (D11_KEPT,)),
    Break("D11", BelievesItsLease, (D11_UNRENEWED,)),
    Break("D12", LastWriterWins, (D12_CONFLICT, D12_WAIT, D14_WAIT)),
    Break("D12", ConflictAtOnce, (D12_WAIT, D14_WAIT)),
    Break("D12", ConflictNever, (D12_CONFLICT,)),
    Break("D13", DeletionsStay, (D13,)),
    Break("D14", WatchLeavesTask, (D14_WATCH, D14_WAIT)),
    Break("D14", CancelledLeaseStays, (D14_LEASE,)),
    Break("D14", CancelledWaitGoesOn, (D14_WAIT, D14_LEASE, D12_CONFLICT)),
    Break("D14", ClosedClientLeavesThread, (D14_CLIENT,)),
    Break("D15", StopsAtUnreadable, (D15,)),
    Break("D16", CheckRaises, (D16,)),
    Break("D16", CheckKnowsNothing, (D16,)),
    Break("D16", CheckDespairs, (D16_UP, D16)),
    Break("capability", OtherCapability, (CAPABILITY,)),
)
