"""One request on its way: the instance picked, the attempts, the deadline, the cancellation.

Nothing of it runs by itself but its timers: whoever waits for an item drives it through ``next``, and retries
happen there. Every decision is made in a synchronous method, so that what awaits can be cancelled and begun
again.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import attrs

from dynamo.core.context import Context
from dynamo.core.errors import (
    AuthError,
    CallCancelledError,
    ClosedError,
    ConfigError,
    DeadlineError,
    DrainingError,
    DynamoError,
    NoInstancesError,
    OverloadedError,
    Retry,
    StreamBrokenError,
    UnavailableError,
    UnknownEndpointError,
    UnsupportedError,
    WireError,
)
from dynamo.core.outbound import Outbound
from dynamo.core.patience import Patience
from dynamo.core.ports.request_plane import OutgoingCall, Payload, Request
from dynamo.core.routing import Peer, Strategy, Way

if TYPE_CHECKING:
    from dynamo.core.duplex import Input

FIRST_DELAY_S = 0.002  # at most, before the second attempt; doubles from there
LONGEST_DELAY_S = 0.5
MAY_HAVE_RUN = 3  # attempts, in all, that may have reached a handler

Resume: TypeAlias = Callable[[], Payload]


class Trouble:
    """What only a request needs whose first attempt did not simply work."""

    __slots__ = ("give_up_at", "last", "may_have_run", "not_before", "tried")

    def __init__(self, give_up_at: float) -> None:
        self.give_up_at = give_up_at  # where there is no deadline
        self.not_before = 0.0  # the next attempt
        self.may_have_run = 0  # attempts
        self.tried: list[Peer] = []  # in this round, which ends when everybody was
        self.last: DynamoError | None = None


class Exchange:
    """One request and its attempts. One task reads; ``close`` may come from anywhere on the loop."""

    __slots__ = (
        "_answers_before", "_broken", "_context", "_failures_before", "_heard", "_link", "_opening", "_timer",
        "_told", "_trouble", "_wake", "_way", "answered", "attempts", "began_at", "call", "done", "error",
        "idempotent", "input", "out", "patience", "peer", "request", "request_id", "resume", "stopped",
        "strategy", "timeout_s",
    )  # fmt: skip

    _link: int
    _way: Way
    _answers_before: int
    _failures_before: int
    began_at: float

    def __init__(self, out: Outbound, request: Request, strategy: Strategy, idempotent: bool | None) -> None:
        self.out = out
        self.request: Request | None = request  # kept until it can no longer be sent elsewhere
        self.request_id = request.request_id
        self.timeout_s = request.timeout_s
        self.strategy = strategy
        self.idempotent = idempotent  # None: as the instance's record says
        self.peer: Peer | None = None
        self.call: OutgoingCall | None = None  # None: before the first attempt, and between two
        self.attempts = 0
        self.answered = False  # an item arrived
        self.stopped = False
        self.done = False
        self.error: Exception | None = None  # what it ended with
        self.input: Input | None = None  # of a duplex call
        self.resume: Resume | None = None
        self.patience: Patience | None = None
        self._broken: DynamoError | None = None  # decided on this side, about the present attempt alone
        self._heard = False  # something of the present attempt's response arrived
        self._told = False  # the reader was told ``error``
        self._timer: asyncio.TimerHandle | None = None
        self._context: Context | None = None
        self._trouble: Trouble | None = None
        self._wake: asyncio.Future[None] | None = None
        self._opening: asyncio.Event | None = None
        out.active.add(self)
        if out.telemetry is not None:
            self.began_at = out.loop.time()
            out.telemetry.started()

    # What the client sets up

    def expire_in(self, timeout_s: float) -> None:
        """End it with DeadlineError in ``timeout_s`` seconds."""
        if timeout_s > 0:
            self._timer = self.out.loop.call_later(timeout_s, self._expire)
        else:
            self.finish(DeadlineError(f"{self.out.endpoint}: the deadline was over before the call began"))

    def link(self, context: Context) -> None:
        """What stops or kills ``context`` stops or kills this."""
        if not self.done:
            self._context = context
            self._link = context._link(self.cancel)

    def begin(self) -> None:
        """Send it at once where an instance is known; what goes wrong is told to the reader."""
        if not self.done:
            try:
                self.start()
            except Exception as error:
                self.finish(error)

    def start(self) -> bool:
        """Pick an instance and send it the request; False: there is none yet.

        Raises what no other instance would change.
        """
        out, trouble, request = self.out, self._trouble, self.request
        assert request is not None
        while True:
            if trouble is None or not trouble.tried:
                peer = self.strategy.pick(out.peers)
            else:
                peer = out.peers.pick_without(trouble.tried, self.strategy)
            if peer is None:
                return False
            if peer.unreachable is not None:
                raise NoInstancesError(peer.unreachable, retry=Retry.NEVER)
            way = peer.way or out.resolve(peer)
            if way is None:
                out.set_unreachable(peer, None)
                continue
            idempotent = self.idempotent
            request.idempotent = peer.instance.idempotent if idempotent is None else idempotent
            try:
                call = way[0].call(
                    way[1], request, instance_id=peer.instance_id, incarnation=peer.incarnation
                )
            except (ConfigError, UnsupportedError) as error:  # not an address for this plane, in this place
                if out.resolve(peer, way[2] + 1) is None:
                    out.set_unreachable(peer, error)
                continue
            out.peers.begin(peer)
            self.peer, self.call, self._way = peer, call, way
            self._failures_before, self._answers_before = peer.failures, peer.answers
            self.attempts += 1
            if self.stopped:
                call.stop()
            return True

    # What the reader drives

    async def next(self) -> Payload | None:
        """The next item; None after the last one, for ever. Raises, once, what the request failed with.

        Cancelling loses nothing.
        """
        while not self.done:
            call = self.call
            if call is None:
                await self.opened()
                continue
            payload = call.receive_nowait()
            if payload is not None:
                if not self._heard:
                    self._hear()
                return payload
            if not call.ended:
                if self.patience is None:
                    await call.wait()
                else:
                    await self.patience.wait(call)
            else:
                self.settle()
        self.tell()
        return None

    def tell(self) -> None:
        """Raise what the request ended with, if that was not told yet."""
        if self.error is not None and not self._told:
            self._told = True
            raise self.error

    async def opened(self) -> None:
        """Wait until an instance was sent the request, or it is ``done``; the first to wait does the work."""
        while self.call is None and not self.done:
            if self._opening is not None:
                await self._opening.wait()
                continue
            self._opening = asyncio.Event()
            try:
                await self._open()
            finally:
                self._opening.set()
                self._opening = None

    async def _open(self) -> None:
        out, loop = self.out, self.out.loop
        trouble = self._trouble
        if trouble is None:
            trouble = self._trouble = Trouble(loop.time() + out.instance_wait_s)
        while not self.done:
            if self.stopped:
                self.finish(None)
                return
            if loop.time() < trouble.not_before:
                await self._pause(trouble.not_before, for_change=False)
                continue
            try:
                if self.start():
                    return
            except Exception as error:
                self.finish(error)
                return
            peers = out.peers
            if peers.unreachable and not peers.ready:
                why = next(iter(peers.unreachable.values())).unreachable or ""
                self.finish(NoInstancesError(why, retry=Retry.NEVER))
            elif out.membership.closed:
                self.finish(
                    ClosedError(f"the runtime ended while a request waited for an instance of {out.endpoint}")
                )
            elif self._timer is not None:
                await self._pause(None, for_change=True)  # until the table changes; the deadline is the bound
            elif loop.time() < trouble.give_up_at:
                await self._pause(trouble.give_up_at, for_change=True)
            else:
                self.finish(await out.nobody(trouble.last))

    async def _pause(self, until: float | None, *, for_change: bool) -> None:
        """Until ``until`` on the loop's clock, or an interruption, or where asked a change of the table."""
        loop, waiters = self.out.loop, self.out.membership.waiters
        wake = self._wake = loop.create_future()
        timer = None if until is None else loop.call_at(until, self._interrupt)
        if for_change:
            waiters.add(wake)
        try:
            await wake
        finally:
            waiters.discard(wake)
            self._wake = None
            if timer is not None:
                timer.cancel()

    def _interrupt(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # What happens to it

    def _hear(self) -> None:
        """The first item of the present attempt."""
        out = self.out
        if not self.answered and out.telemetry is not None:
            out.telemetry.first_item(out.loop.time() - self.began_at)
        self.answered = True
        if self.resume is None:
            self.request = None
        self._alive()

    def _alive(self) -> None:
        self._heard = True
        peer = self.peer
        assert peer is not None
        peer.answers += 1
        if peer.failures:
            self.out.membership.availability.answered(peer)

    def settle(self) -> None:
        """The present attempt has ended: end the request with it, or arrange for another attempt."""
        out, call = self.out, self.call
        assert call is not None
        error = self._broken or call.error
        if error is None:
            if not self._heard:
                self._alive()
            self.finish(None)
        elif (final := self._verdict(error, call.received)) is not None:
            self.finish(final)
        else:
            self._leave()
            if out.telemetry is not None:
                out.telemetry.retried(type(error).__name__)

    def _verdict(self, error: DynamoError, received: int) -> Exception | None:
        """None where another attempt follows, which is prepared; else what the reader is told.

        Puts the instance aside where the failure is its own.
        """
        out, peer = self.out, self.peer
        assert peer is not None
        other_way = self._blame(error, received)
        if (
            error.remote
            or self.stopped
            or self.request is None
            or (self.input is not None and self.input.taken)
        ):
            return error
        now = out.loop.time()
        trouble = self._trouble
        if trouble is None or received:
            trouble = self._trouble = Trouble(now + out.instance_wait_s)
        payload = self.request.payload
        if error.retry is Retry.UNKNOWN:
            trouble.may_have_run += 1
            trouble.give_up_at = now + out.instance_wait_s
            resume = self.resume if self.answered else None
            if trouble.may_have_run >= MAY_HAVE_RUN:
                return error
            if resume is not None:
                try:
                    payload = resume()
                except Exception as cannot:
                    return cannot
            elif self.answered or not self.request.idempotent:
                return error
        elif received or (error.retry is Retry.NEVER and not other_way):
            return error
        elif self._timer is None and now >= trouble.give_up_at:
            return self._gave_up(error)
        if not other_way:
            if peer in trouble.tried:
                trouble.tried.clear()
            trouble.tried.append(peer)
            longest_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(self.attempts - 1, 10))
            trouble.not_before = now + random.random() * longest_s
        trouble.last = error
        self.request = attrs.evolve(
            self.request,
            payload=payload,
            end=self.request.end or (self.input is not None and self.input.ended),
            attempt=self.attempts + 1,
            timeout_s=None if self._timer is None else max(0.0, self._timer.when() - now),
        )
        return None

    def _blame(self, error: DynamoError, received: int) -> bool:
        """Put the peer aside if the failure is its own; True if another address of it is to be tried."""
        out, peer, way = self.out, self.peer, self._way
        assert peer is not None
        if error.remote or isinstance(error, OverloadedError):
            self._alive()
        elif (
            isinstance(error, (DrainingError, UnknownEndpointError, StreamBrokenError, WireError)) or received
        ):
            out.failed(peer, self._failures_before, way)
        elif isinstance(error, (UnavailableError, AuthError)):
            # Perhaps it is the address: a Unix socket cannot be reached from another container, say.
            if peer.way is not way:
                return peer.way is not None  # another call has moved on already
            if out.resolve(peer, way[2] + 1) is not None:
                return True
            out.failed(peer, self._failures_before, way)
        return False

    def _gave_up(self, error: DynamoError) -> DynamoError:
        last = copy.copy(error)
        spent = f"{self.attempts} attempts in {self.out.instance_wait_s:g} s (DYN_INSTANCE_WAIT_S)"
        last.args = (f"{error}; gave up after {spent}",)
        last.__cause__ = error
        return last

    def cancel(self, killed: bool) -> None:
        """Stop: ask the worker to finish; what it still sends arrives. Killed: CallCancelledError."""
        if killed:
            self.abort(CallCancelledError(f"{self.out.endpoint}: the call was cancelled by its context"))
            return
        self.stopped = True
        if self.call is not None:
            self.call.stop()
        self._interrupt()

    def abort(self, error: Exception) -> None:
        """End it with ``error``, unless its end has been read already; the worker is cancelled."""
        call = self.call
        if call is None or not call.ended or call.error is not None:
            self.finish(error)

    def _expire(self) -> None:
        if not self.done:
            late = DeadlineError(self._late(f"{self.timeout_s:g} s"))
            if self.call is not None:
                self._suspect()
            self.abort(late)

    def exhausted(self, limit_s: float, option: str) -> None:
        """No item came in ``limit_s``: the present attempt has failed."""
        call = self.call
        if call is not None and not call.ended:
            self._broken = DeadlineError(self._late(f"{limit_s:g} s ({option})"), retry=Retry.UNKNOWN)
            self._suspect()
            call.kill()

    def _suspect(self) -> None:
        """Put aside a peer that let time run out; one that answered others meanwhile is only slow."""
        if not self._heard and self.peer is not None and self.peer.answers == self._answers_before:
            self.out.failed(self.peer, self._failures_before, self._way)

    def _late(self, limit: str) -> str:
        out, peer = self.out, self.peer
        if peer is None:
            return f"{out.endpoint}: no instance within {limit}: {out.membership.describe()}"
        what = "no end" if self._heard else "no answer"
        where = f"instance {peer.instance_id:x} at {self._way[1]}"
        text = f"{out.endpoint}: {what} within {limit} from {where}, attempt {self.attempts}"
        if self._trouble is not None and self._trouble.last is not None:
            text += f"; before that: {self._trouble.last}"
        return text

    def close(self) -> None:
        """Leave: the worker is cancelled, what is on its way is dropped."""
        self.finish(None)

    def finish(self, error: Exception | None) -> None:
        """It is over: ``error`` is what the reader is told."""
        if self.done:
            return
        self.done = True
        self.error = error
        if self.call is not None:
            self._leave()
        if self._timer is not None:
            self._timer.cancel()
        if self.patience is not None:
            self.patience.close()
        if self.input is not None:
            self.input.close()
        if self._context is not None:
            self._context._unlink(self._link)
        out = self.out
        out.active.discard(self)
        self._interrupt()
        if out.telemetry is not None:
            out.telemetry.ended(
                out.loop.time() - self.began_at, None if error is None else type(error).__name__
            )

    def _leave(self) -> None:
        call, peer = self.call, self.peer
        assert call is not None
        assert peer is not None
        if not call.ended:
            call.kill()
        self.call = self._broken = None
        self._heard = False
        self.out.peers.finish(peer)
