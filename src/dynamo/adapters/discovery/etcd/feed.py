"""What is under some keys, followed: a listing at revision r, then every change after r.

A stream of etcd's can die in silence, skip what was compacted, or belong to a cluster whose disk was
replaced. So:

- Each range goes on at the ``mod_revision`` of the last event seen. Revisions in headers are the store's,
  not the watcher's: going on from those loses events.
- It goes on at that revision, not at the next, and passes over what it has seen: in many servers (3.5.1 among
  them; etcd issues 18089 and 19179) a compaction also takes the deletions of the very revision that it names,
  and a watch from there misses them without a word. One from below is told.
- Answers to progress requests prove that the stream is alive, and nothing else: before 3.4.25 and 3.5.8 they
  overtake events.
- After a break it goes on only if the store still has, at the last revision seen, the newest key that we
  know, byte for byte, and not the key that was deleted last, in the same cluster. Else everything is listed
  again: a watch from a revision that the store has yet to reach, as after the loss of its disk, would be
  silent for ever.
- It goes on only under the same leader: a single etcd before 3.4.21 and 3.5.5 answers, and tells watches,
  before it writes (etcd issue 14370), so that one which is killed may use our last revisions again for
  something else.
- A store that lost its history, or an outage longer than a lease, took the registrations of live owners too.
  They get ``SETTLE_S`` to come back before what is missing is told.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Any, Protocol

import grpc
import grpc.aio

from dynamo.adapters.discovery.etcd.cluster import Cluster, Member
from dynamo.adapters.discovery.etcd.errors import RefusedError, token_is_gone, translated
from dynamo.adapters.discovery.etcd.keys import KeyRange
from dynamo.adapters.discovery.etcd.messages import DELETE, EOF, pb
from dynamo.core.errors import DynamoError, UnavailableError
from dynamo.core.lifetime import backoff

SETTLE_S = 3.0
LOOK_S = 0.1  # while they come back
QUIET_S = 5.0  # a stream that says nothing for so long is asked whether it lives
FIRST_DELAY_S, LONGEST_DELAY_S = 0.02, 1.0
AUTH_REASONS = ("token", "auth", "permission")

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Told on the thread's loop. ``stale`` may come many times, ``reset`` ends it."""

    def reset(self, found: dict[bytes, Any]) -> None: ...

    def changed(self, key: bytes, kv: Any | None) -> None: ...

    def stale(self, reason: str) -> None: ...


class Feed:
    """Follows ``ranges`` until its task is cancelled."""

    def __init__(
        self,
        cluster: Cluster,
        ranges: Sequence[KeyRange],
        listener: Listener,
        *,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._settle_s = settle_s
        self._cluster, self._ranges, self._listener = cluster, tuple(ranges), listener
        self._known: dict[bytes, Any] = {}
        self._seen: list[int] = []  # the last revision of each range; empty: to be listed
        self._deleted: list[bytes | None] = []  # of each range the key that its last event took away
        self._cluster_id = self._term = 0
        self._lost_history = False
        self._blind_since: float | None = time.monotonic()
        self._delays = backoff(FIRST_DELAY_S, LONGEST_DELAY_S)

    async def run(self) -> None:
        """Ends only by cancellation."""
        while True:
            try:
                if not await self._can_go_on():
                    await self._list()
                await self._follow()
            except Exception as error:
                if not isinstance(error, DynamoError):
                    log.exception("following etcd failed, going on from a new listing")
                    self._seen = []
                self._listener.stale(str(error))
                if self._blind_since is None:
                    self._blind_since = time.monotonic()
            await asyncio.sleep(next(self._delays))

    async def _can_go_on(self) -> bool:
        """Whether the store still holds the history that we saw."""
        if not self._seen or not self._known:
            return False
        remembered = self._remembered()
        ask = [pb.RequestOp(request_range=pb.RangeRequest(key=key, revision=at)) for key, at, _ in remembered]
        try:
            answer = await self._cluster.txn((), ask, ())
        except RefusedError as error:
            self._lost_history = "future revision" in str(error)  # else it was compacted
            return False
        header, found = answer.header, [list(part.response_range.kvs) for part in answer.responses]
        same = header.cluster_id == self._cluster_id and header.raft_term >= self._term
        if not same or found != [kvs for _, _, kvs in remembered]:
            self._lost_history = True
            return False
        return bool(header.raft_term == self._term)

    def _remembered(self) -> list[tuple[bytes, int, list[Any]]]:
        """What a key says at a revision, if the store's history is the one that we saw."""
        said: list[tuple[bytes, int, list[Any]]] = []
        for one, at, deleted in zip(self._ranges, self._seen, self._deleted, strict=True):
            known = [kv for kv in self._known.values() if one.covers(kv.key)]
            if known:
                newest = max(known, key=lambda kv: kv.mod_revision)
                said.append((newest.key, at, [newest]))
            if deleted is not None:
                said.append((deleted, at, []))
        return said

    async def _list(self) -> None:
        header, found = await self._look()
        away_s = 0.0 if self._blind_since is None else time.monotonic() - self._blind_since
        if self._lost_history or away_s >= self._cluster.config.ttl_s:
            until = time.monotonic() + self._settle_s
            while self._known.keys() - found.keys() and time.monotonic() < until:
                await asyncio.sleep(LOOK_S)
                header, found = await self._look()
        self._known, self._lost_history = found, False
        self._cluster_id, self._term = header.cluster_id, header.raft_term
        self._seen = [header.revision] * len(self._ranges)
        self._deleted = [None] * len(self._ranges)
        self._tell()

    async def _look(self) -> tuple[Any, dict[bytes, Any]]:
        """All ranges at one revision."""
        wanted = [
            pb.RequestOp(request_range=pb.RangeRequest(key=one.key, range_end=one.end))
            for one in self._ranges
        ]
        answer = await self._cluster.txn((), wanted, ())
        found = {kv.key: kv for part in answer.responses for kv in part.response_range.kvs}
        return answer.header, found

    def _tell(self) -> None:
        self._listener.reset(self._known)
        self._blind_since = None

    async def _follow(self) -> None:
        """Read one stream until it breaks. Raises what broke it."""
        member = self._cluster.current
        metadata = await self._cluster.metadata(self._cluster.config.answer_s)
        call = member.watch.Watch(metadata=metadata)
        try:
            for number, one in enumerate(self._ranges):
                create = pb.WatchCreateRequest(
                    key=one.key, range_end=one.end, start_revision=self._seen[number], watch_id=number + 1
                )
                await self._write(member, call, pb.WatchRequest(create_request=create))
            await self._read(member, call)
        except grpc.aio.AioRpcError as error:
            if token_is_gone(error):
                self._cluster.forget_token()
            self._cluster.leave(member)
            raise translated(error, member.endpoint, self._cluster.config) from error
        except UnavailableError:
            self._cluster.leave(member)
            raise
        finally:
            call.cancel()

    async def _write(self, member: Member, call: Any, request: Any) -> None:
        try:
            async with asyncio.timeout(self._cluster.config.answer_s):
                await call.write(request)
        except TimeoutError:
            raise self._silence(member) from None

    def _silence(self, member: Member) -> UnavailableError:
        config = self._cluster.config
        return UnavailableError(
            f"etcd at {member.endpoint} ({config.source}) says nothing on a watch for {config.answer_s:g} s"
        )

    async def _read(self, member: Member, call: Any) -> None:
        config = self._cluster.config
        quiet_s = min(QUIET_S, config.ttl_s / 2) * random.uniform(0.8, 1.0)
        created, asked, passed = 0, False, list(self._seen)
        reading = asyncio.ensure_future(call.read())  # cancelling a read would cancel the stream
        try:
            while True:
                starting = created < len(self._ranges)
                await asyncio.wait((reading,), timeout=config.answer_s if asked or starting else quiet_s)
                if not reading.done():
                    if asked or starting:
                        raise self._silence(member)
                    request = pb.WatchRequest(progress_request=pb.WatchProgressRequest())
                    await self._write(member, call, request)
                    asked = True
                    continue
                answer, asked = reading.result(), False
                if answer is EOF:
                    raise UnavailableError(f"etcd at {member.endpoint} ({config.source}) ended the watch")
                if answer.canceled or answer.compact_revision:
                    self._cancelled(answer, member)
                if answer.header.cluster_id != self._cluster_id:
                    raise UnavailableError(f"another cluster answers at {member.endpoint} ({config.source})")
                if answer.created:
                    if answer.header.raft_term > self._term:
                        raise UnavailableError(f"etcd at {member.endpoint} ({config.source}) started anew")
                    created += 1
                    if created == len(self._ranges):
                        self._delays = backoff(FIRST_DELAY_S, LONGEST_DELAY_S)
                        if self._blind_since is not None:
                            self._tell()
                if answer.events:
                    self._fold(answer.watch_id - 1, passed[answer.watch_id - 1], answer.events)
                reading = asyncio.ensure_future(call.read())
        finally:
            reading.cancel()

    def _cancelled(self, answer: Any, member: Member) -> None:
        """The server ended one watcher, and leaves the stream open. Raises UnavailableError."""
        reason = answer.cancel_reason or "no reason given"
        if answer.compact_revision:
            self._seen = []
            reason = f"the store was compacted at revision {answer.compact_revision}"
        elif self._cluster.config.username is not None and any(
            word in reason.lower() for word in (*AUTH_REASONS, "no reason given")
        ):
            self._cluster.forget_token()
        raise UnavailableError(f"etcd at {member.endpoint} ended the watch: {reason}")

    def _fold(self, number: int, passed: int, events: Sequence[Any]) -> None:
        for event in events:
            kv = event.kv
            if kv.mod_revision <= passed:
                continue
            self._seen[number] = max(self._seen[number], kv.mod_revision)
            if event.type == DELETE:
                self._deleted[number] = kv.key
                self._known.pop(kv.key, None)
            else:
                self._deleted[number] = None
                self._known[kv.key] = kv
            if self._blind_since is None:
                self._listener.changed(kv.key, None if event.type == DELETE else kv)
