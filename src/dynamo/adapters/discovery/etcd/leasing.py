"""A lease of ours in etcd and what is registered under it: taken, renewed, put back, given up.

Runs on the thread, so that a program that blocks its loop for seconds keeps its lease. No client library's
word is taken for it: a lease is lost when etcd says that it has none of this id, or when its TTL has passed
since the last renewal *was sent*, on our monotonic clock.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from dynamo.adapters.discovery.etcd.claims import Claims, no_lease
from dynamo.adapters.discovery.etcd.cluster import SHORTEST_TRY_S, Cluster
from dynamo.adapters.discovery.etcd.feed import Feed, Listener
from dynamo.adapters.discovery.etcd.keys import KeyRange, key_of
from dynamo.core.errors import ClosedError, ConflictError, DynamoError, LeaseLostError
from dynamo.core.lifetime import backoff
from dynamo.core.model import EndpointId

END_S = 2.0  # to give the lease back; etcd ends it later by itself
RENEWALS = 3  # in a TTL
LATE_S = 0.5  # etcd looks for leases that ended every half second
GATHER_S = 0.02  # a worker registers its endpoints one after the other
WAIT_S = 0.25  # between looks at another incarnation's key


class OwnLease(Listener):
    """``turns`` is counted up by the program's loop; ``on_lost`` is called from the thread."""

    def __init__(
        self,
        cluster: Cluster,
        instance_id: int,
        incarnation: int,
        turns: Callable[[], int],
        on_lost: Callable[[], None],
    ) -> None:
        self.instance_id, self.incarnation = instance_id, incarnation
        self.reason = ""  # why it is lost
        self._cluster, self._config = cluster, cluster.config
        self._claims = Claims(cluster, instance_id, incarnation)
        self._turns, self._on_lost = turns, on_lost
        self._lease_id = 0
        self._renewed_at = 0.0
        self._granting: asyncio.Task[tuple[int, float]] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted: dict[EndpointId, bytes] = {}
        self._moved = asyncio.Event()  # other keys are wanted
        self._wrong: set[EndpointId] = set()  # not as wanted, as the feed saw it
        self._noticed = asyncio.Event()
        self._turn = asyncio.Lock()  # who may write a key
        self._ended = False

    async def take(self) -> None:
        """Ask for it, under the instance id if that is free. Raises UnavailableError, AuthError."""
        self._granting = asyncio.ensure_future(self._cluster.grant(self.instance_id))
        granted = await asyncio.shield(self._granting)  # if we are cancelled, `end` gives it back
        self._lease_id, self._renewed_at = granted
        self._tasks = [asyncio.ensure_future(work) for work in (self._keep(), self._guard(), self._mend())]

    async def end(self) -> None:
        """Give it back, and with it all that is registered; a lost one is left to its end.

        What a lost lease still holds is taken over by the next one, without vanishing in between.
        """
        self._ended = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        granting, self._granting = self._granting, None
        if granting is None:
            return
        await asyncio.wait((granting,), timeout=END_S)
        if not granting.done():
            granting.cancel()
        elif not self.reason and not granting.cancelled() and granting.exception() is None:
            try:
                await self._cluster.revoke(granting.result()[0], bound_s=END_S)
            except DynamoError:
                pass  # it ends by itself

    # Renewal.

    async def _keep(self) -> None:
        config, period_s = self._config, self._config.ttl_s / RENEWALS
        delays, stalled_s, turns, looked_at = backoff(0.1, period_s), 0.0, -1, time.monotonic()
        trouble: Exception | None = None
        while not self.reason:
            left_s = self._renewed_at + config.ttl_s - time.monotonic()
            pause_s = period_s * random.uniform(0.8, 1.0) if trouble is None else next(delays)
            await asyncio.sleep(max(min(pause_s, left_s), 0))
            now = time.monotonic()
            passed_s = min(
                now - looked_at, 2 * period_s
            )  # while all of the process is stopped, no loop stalls
            stalled_s = stalled_s + passed_s if self._turns() == turns else 0.0
            turns, looked_at = self._turns(), now
            if stalled_s >= config.stall_s:
                self._lose(f"the event loop has not run for {config.stall_s:g} s (DYN_LOOP_STALL_S)")
            elif now - self._renewed_at >= config.ttl_s:
                self._lose(
                    f"unrenewed for {now - self._renewed_at:.1f} s: {trouble or 'the process stood still'}"
                )
            else:
                trouble = await self._renew(now)
                if trouble is None:
                    delays = backoff(0.1, period_s)

    async def _renew(self, now: float) -> Exception | None:
        """What went wrong, if anything did."""
        left_s = self._renewed_at + self._config.ttl_s - now
        try:
            bound_s = max(min(self._config.ttl_s / RENEWALS, left_s), SHORTEST_TRY_S)
            if await self._cluster.renew(self._lease_id, bound_s=bound_s) > 0:
                self._renewed_at = now
            else:
                self._lose(no_lease(self._lease_id))
        except Exception as error:  # whatever it is, only a renewal keeps the lease
            return error
        return None

    def _lose(self, reason: str) -> None:
        if not self.reason:
            self.reason = reason
            self._on_lost()

    # Registrations.

    async def put(self, endpoint_id: EndpointId, record: bytes) -> None:
        """Register; another incarnation's key is waited for. Raises ConflictError, LeaseLostError,
        UnavailableError, AuthError.
        """
        ttl_s = self._config.ttl_s
        deadline = time.monotonic() + ttl_s * 1.25 + LATE_S
        while holder := await self._put(endpoint_id, record):
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"{endpoint_id} of instance {self.instance_id:x} in etcd belongs to {holder}, still "
                    f"alive after {ttl_s:g} s; stop that one, or let this one draw an id of its own"
                )
            await asyncio.sleep(min(WAIT_S, ttl_s / 10))

    async def _put(self, endpoint_id: EndpointId, record: bytes) -> str | None:
        async with self._turn:
            self._check()
            holder = await self._claim(endpoint_id, record)
            self._check()
            if holder is None:
                if endpoint_id not in self._wanted:
                    self._moved.set()
                self._wanted[endpoint_id] = record
            return holder

    async def remove(self, endpoint_id: EndpointId) -> None:
        """Unregister; an absent one is fine. Raises UnavailableError, AuthError."""
        async with self._turn:
            if self._wanted.pop(endpoint_id, None) is not None:
                self._moved.set()
            await self._claims.withdraw(endpoint_id, self._lease_id)

    def _check(self) -> None:
        if self.reason:
            raise LeaseLostError(self.reason)
        if self._ended:
            raise ClosedError(f"the lease of {self.instance_id:x} has ended")

    async def _claim(self, endpoint_id: EndpointId, record: bytes) -> str | None:
        try:
            return await self._claims.make(endpoint_id, record, self._lease_id)
        except LeaseLostError as error:
            self._lose(str(error))
            raise

    # Our own keys, watched.

    def reset(self, found: dict[bytes, Any]) -> None:
        for endpoint_id in self._wanted:
            self._see(endpoint_id, found.get(key_of(endpoint_id, self.instance_id)))

    def changed(self, key: bytes, kv: Any | None) -> None:
        for endpoint_id in self._wanted:
            if key_of(endpoint_id, self.instance_id) == key:
                self._see(endpoint_id, kv)

    def stale(self, reason: str) -> None:
        """The renewals notice it too."""

    def _see(self, endpoint_id: EndpointId, kv: Any | None) -> None:
        if kv is None or kv.value != self._wanted[endpoint_id] or kv.lease != self._lease_id:
            self._wrong.add(endpoint_id)
            self._noticed.set()

    async def _guard(self) -> None:
        """Follow the keys of what is registered."""
        following: asyncio.Task[None] | None = None
        try:
            while True:
                await self._moved.wait()
                await asyncio.sleep(GATHER_S)
                self._moved.clear()
                if following is not None:
                    following.cancel()
                ranges = [KeyRange(key_of(endpoint_id, self.instance_id)) for endpoint_id in self._wanted]
                if ranges:  # nobody but us puts them back, so there is nothing to wait for
                    following = asyncio.ensure_future(Feed(self._cluster, ranges, self, settle_s=0).run())
        finally:
            if following is not None:
                following.cancel()

    async def _mend(self) -> None:
        """Put back what was deleted or overwritten by hand."""
        delays = backoff(0.05, 1.0)
        while True:
            await self._noticed.wait()
            self._noticed.clear()
            for endpoint_id in list(self._wrong):
                try:
                    async with self._turn:
                        self._check()
                        record = self._wanted.get(endpoint_id)
                        holder = None if record is None else await self._claim(endpoint_id, record)
                    if holder is not None:
                        self._lose(f"{endpoint_id} now belongs to {holder}")
                    self._wrong.discard(endpoint_id)
                    delays = backoff(0.05, 1.0)
                except (LeaseLostError, ClosedError):
                    return
                except DynamoError:
                    self._noticed.set()
            if self._noticed.is_set():
                await asyncio.sleep(next(delays))
