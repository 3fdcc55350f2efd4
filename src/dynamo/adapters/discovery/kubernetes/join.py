"""Records joined with readiness: an instance is visible while its object is there and its pod is ready.

One pair of feeds serves all watches of a client, while there are any. A watch begins with listings that were
begun after it, so that it has what was registered before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from attrs import define

from dynamo.adapters.discovery.kubernetes.access import Access, Object, Selection
from dynamo.adapters.discovery.kubernetes.errors import RECORDS, SLICES
from dynamo.adapters.discovery.kubernetes.feed import Feed, Listener
from dynamo.adapters.discovery.kubernetes.records import READINESS, PodKey, Record, read_record, ready_pods
from dynamo.adapters.discovery.kubernetes.silence import notice
from dynamo.core.errors import DynamoError
from dynamo.core.model import Instance, InstanceKey, Scope
from dynamo.core.watching import ConflatingWatch


class Source(Listener):
    """One side of the join. ``listing`` is the last that came, ``away`` why there is none now."""

    listing: int
    away: str | None

    def __init__(
        self,
        access: Access,
        selection: Selection,
        *,
        take: Callable[[str, Object | None], Iterable[str]],
        known: Callable[[], Iterable[str]],
        join: Join,
    ) -> None:
        self.feed = Feed(access, selection, self)
        self.listing, self.away = 0, None
        self._take, self._known, self._join = take, known, join

    def listed(self, found: dict[str, Object], *, listing: int, resync: bool) -> None:
        for name in [name for name in self._known() if name not in found]:
            self._take(name, None)
        for name, one in found.items():
            self._take(name, one)
        self.listing, self.away = listing, None
        self._join.synced(resync=resync)

    def changed(self, name: str, found: Object | None) -> None:
        self._join.judge(self._take(name, found))

    def failed(self, error: DynamoError) -> None:
        self.away = str(error)
        self._join.stale(self.away)


@define(eq=False)
class Follower:
    """One watch. ``awaited`` are the listings, of records and of readiness, that it begins with."""

    scope: Scope
    watch: ConflatingWatch
    awaited: tuple[int, int]
    begun: bool = False

    def covered(self, instances: Iterable[Instance]) -> tuple[Instance, ...]:
        return tuple(one for one in instances if self.scope.covers(one.endpoint_id))


class Join:
    """What one client sees of its namespace."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._followers: list[Follower] = []
        self._sources: tuple[Source, Source] | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._ending: set[asyncio.Task[None]] = set()
        self._records: dict[str, Record] = {}
        self._slices: dict[str, frozenset[PodKey]] = {}
        self._shown: dict[str, tuple[Instance, ...]] = {}  # by record
        self._warned: set[str] = set()

    @property
    def away(self) -> str | None:
        """Why what is shown is the last known state."""
        return next((source.away for source in self._sources or () if source.away is not None), None)

    def follow(self, scope: Scope, watch: ConflatingWatch) -> Follower:
        """Feed ``watch`` until ``unfollow``."""
        if self._sources is None:
            self._sources = self._begin()
            awaited = (1, 1)
        else:
            records, readiness = (source.feed.list_again() for source in self._sources)
            awaited = (records, readiness)
        follower = Follower(scope, watch, awaited)
        self._followers.append(follower)
        if (reason := self.away) is not None:
            watch.stale(reason)
        return follower

    def unfollow(self, follower: Follower) -> None:
        self._followers.remove(follower)
        if not self._followers:
            self.end()

    def end(self) -> None:
        """Stop the feeds; ``ended`` waits for it."""
        for task in self._tasks:
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        self._tasks, self._sources = (), None
        self._records.clear()
        self._slices.clear()
        self._shown.clear()

    async def ended(self, bound_s: float) -> None:
        """Wait until nothing runs any more."""
        self.end()
        if self._ending:
            await asyncio.wait(self._ending, timeout=bound_s)

    def _begin(self) -> tuple[Source, Source]:
        records = Source(
            self._access,
            Selection(resource=RECORDS),
            take=self._take_record,
            known=lambda: self._records,
            join=self,
        )
        readiness = Source(
            self._access,
            Selection(resource=SLICES, labels=READINESS),
            take=self._take_slice,
            known=lambda: self._slices,
            join=self,
        )
        work = {
            "watch of Kubernetes records": records.feed.run(),
            "watch of Kubernetes readiness": readiness.feed.run(),
            "silence of Kubernetes": notice(self._access, (records.feed, readiness.feed)),
        }
        self._tasks = tuple(asyncio.create_task(one, name=f"dynamo: {what}") for what, one in work.items())
        return records, readiness

    # What the sources say: each tells which records it is about.

    def _take_record(self, name: str, found: Object | None) -> Iterable[str]:
        if found is None:
            self._records.pop(name, None)
        else:
            self._records[name] = read_record(found, self._warned)
        return (name,)

    def _take_slice(self, name: str, found: Object | None) -> Iterable[str]:
        before = self._slices.pop(name, frozenset())
        now = frozenset() if found is None else ready_pods(found)
        if now:
            self._slices[name] = now
        moved = before ^ now
        return [name for name, record in self._records.items() if record.pod in moved]

    def judge(self, names: Iterable[str]) -> None:
        """Look at these records anew; while a source is away nothing new is told."""
        if self.away is not None:
            return
        for name in names:
            before, now = self._shown.get(name, ()), self._judge(name)
            if before != now:
                left = {one.key for one in now}
                gone = {one.key: self._elsewhere(one.key) for one in before if one.key not in left}
                for follower in self._followers:
                    if follower.begun:
                        _tell(follower, gone, now)

    def _elsewhere(self, key: InstanceKey) -> Instance | None:
        """The same instance in another record, which only happens where ids are not drawn from names."""
        return next((one for shown in self._shown.values() for one in shown if one.key == key), None)

    def _judge(self, name: str) -> tuple[Instance, ...]:
        record = self._records.get(name)
        now = record.instances if record is not None and self._is_ready(record.pod) else ()
        if now:
            self._shown[name] = now
        else:
            self._shown.pop(name, None)
        return now

    def _is_ready(self, pod: PodKey | None) -> bool:
        return any(pod in ready for ready in self._slices.values())

    def synced(self, *, resync: bool) -> None:
        """A source has its whole state; with that of the other one, all watches get theirs."""
        assert self._sources is not None
        records, readiness = self._sources
        if self.away is not None or not (records.listing and readiness.listing):
            return
        for name in [*self._shown, *self._records]:
            self._judge(name)
        shown = [one for instances in self._shown.values() for one in instances]
        for follower in self._followers:
            begins = not follower.begun and (
                records.listing >= follower.awaited[0] and readiness.listing >= follower.awaited[1]
            )
            if begins or (follower.begun and resync):
                follower.begun = True
                follower.watch.reset(follower.covered(shown))
            elif follower.begun:
                follower.watch.replace(follower.covered(shown))

    def stale(self, reason: str) -> None:
        for follower in self._followers:
            follower.watch.stale(reason)


def _tell(follower: Follower, gone: Mapping[InstanceKey, Instance | None], now: tuple[Instance, ...]) -> None:
    for key, other in gone.items():
        if follower.scope.covers(key[0]):
            follower.watch.remove(*key) if other is None else follower.watch.put(other)
    for one in follower.covered(now):
        follower.watch.put(one)
