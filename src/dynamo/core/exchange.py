"""One request on its way: the instance picked, the attempts, the deadline, the cancellation.

Nothing of it runs by itself but its timers: whoever waits for an item drives it through ``next``, and retries
happen there. Every decision is made in a synchronous method, so that what awaits can be cancelled and begun
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from dynamo.core.context import Context
from dynamo.core.errors import (
    CallCancelledError,
    ClosedError,
    ConfigError,
    DeadlineError,
    DynamoError,
    NoInstancesError,
    Retry,
    UnsupportedError,
)
from dynamo.core.outbound import Outbound
from dynamo.core.patience import Patience
from dynamo.core.peers import Peer, Way
from dynamo.core.ports.request_plane import OutgoingCall, Payload, Request
from dynamo.core.retrying import Trouble, verdict
from dynamo.core.routing import Direct, Strategy

if TYPE_CHECKING:
    from dynamo.core.duplex import Input

Resume: TypeAlias = Callable[[], Payload]


class Exchange:
    """One request and its attempts. One task reads; ``close`` may come from anywhere on the loop."""

    __slots__ = (
        "_answers_before",
        "_context",
        "_heard",
        "_link",
        "_opening",
        "_told",
        "_wake",
        "answered",
        "attempts",
        "began_at",
        "broken",
        "call",
        "done",
        "error",
        "failures_before",
        "idempotent",
        "input",
        "out",
        "patience",
        "peer",
        "request",
        "request_id",
        "resume",
        "stopped",
        "strategy",
        "timeout_s",
        "timer",
        "trouble",
        "way",
        "whole",
    )  # fmt: skip

    _link: int
    way: Way
    _answers_before: int
    failures_before: int
    began_at: float

    def __init__(self, out: Outbound, request: Request, strategy: Strategy, idempotent: bool | None) -> None:
        self.out = out
        self.request: Request | None = request  # another for each attempt; kept until it can't be sent again
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
        self.whole = False  # items reach the caller after the end only: until then it can be sent elsewhere
        self.patience: Patience | None = None
        self.broken: DynamoError | None = None  # decided on this side, about the present attempt alone
        self._heard = False  # something of the present attempt's response arrived
        self._told = False  # the reader was told ``error``
        self.timer: asyncio.TimerHandle | None = None
        self._context: Context | None = None
        self.trouble: Trouble | None = None
        self._wake: asyncio.Future[None] | None = None
        self._opening: asyncio.Event | None = None
        out.active.add(self)
        if out.telemetry is not None:
            self.began_at = monotonic()  # uvloop's own time has milliseconds only
            out.telemetry.started()

    # What the client sets up

    def expire_in(self, timeout_s: float) -> None:
        """End it with DeadlineError in ``timeout_s`` seconds."""
        if timeout_s > 0:
            self.timer = self.out.loop.call_later(timeout_s, self._expire, context=self.out.variables)
        else:
            self.finish(DeadlineError(f"{self.out.endpoint}: the deadline was over before the call began"))

    def link(self, context: Context) -> None:
        """What stops or kills ``context`` stops or kills this."""
        if not self.done:
            link = context._link(self.cancel)
            if self.done:  # it was killed already
                context._unlink(link)
            else:
                self._context, self._link = context, link

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
        out, trouble, request = self.out, self.trouble, self.request
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
                if out.next_way(peer, way) is None:
                    out.set_unreachable(peer, error)
                continue
            out.peers.begin(peer)
            self.peer, self.call, self.way = peer, call, way
            self.failures_before, self._answers_before = peer.failures, peer.answers
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
        trouble = self.trouble
        if trouble is None:
            trouble = self.trouble = Trouble(loop.time() + out.instance_wait_s)
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
            elif self.timer is not None:
                await self._pause(None, for_change=True)  # until the table changes; the deadline is the bound
            elif loop.time() < trouble.give_up_at:
                await self._pause(trouble.give_up_at, for_change=True)
            else:
                self.finish(await out.nobody(self._wanted(), trouble.last))

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
            out.telemetry.first_item(monotonic() - self.began_at)
        self.answered = True
        if self.resume is None and not self.whole:
            self.request = None
        self.alive()

    def alive(self) -> None:
        """The peer has answered this attempt, be it with a refusal."""
        self._heard = True
        peer = self.peer
        assert peer is not None
        peer.answers += 1
        self._answers_before = peer.answers
        if peer.failures:
            self.out.membership.availability.answered(peer)

    def settle(self) -> None:
        """The present attempt has ended: end the request with it, or arrange for another attempt."""
        out, call = self.out, self.call
        assert call is not None
        error = self.broken or call.error
        if error is None:
            if not self._heard:
                self.alive()
            self.finish(None)
        elif (final := verdict(self, error, call.received)) is not None:
            self.finish(final)
        else:
            self._leave()
            if out.telemetry is not None:
                out.telemetry.retried(type(error).__name__)

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
            if self.call is not None and not self._heard:
                self._suspect()
            self.abort(late)

    def exhausted(self, limit_s: float, option: str) -> None:
        """No item came in ``limit_s``: the present attempt has failed."""
        call = self.call
        if call is not None and not call.ended:
            self.broken = DeadlineError(self._late(f"{limit_s:g} s ({option})"), retry=Retry.UNKNOWN)
            self._suspect()
            call.kill()

    def _suspect(self) -> None:
        """Put aside a peer that let time run out; one that answered others meanwhile is only slow."""
        if self.peer is not None and self.peer.answers == self._answers_before:
            self.out.failed(self.peer, self.failures_before)

    def _late(self, limit: str) -> str:
        out, peer = self.out, self.peer
        if peer is None:
            return f"no {self._wanted()} within {limit}: {out.membership.describe()}"
        what = "no end" if self._heard else "no answer"
        where = f"instance {peer.instance_id} at {self.way[1]}"
        text = f"{out.endpoint}: {what} within {limit} from {where}, attempt {self.attempts}"
        if self.trouble is not None and self.trouble.last is not None:
            text += f"; before that: {self.trouble.last}"
        return text

    def _wanted(self) -> str:
        who = str(self.strategy) if type(self.strategy) is Direct else "instance"
        return f"{who} of {self.out.endpoint}"

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
        if (timer := self.timer) is not None:
            timer.cancel()
        if self.patience is not None:
            self.patience.close()
            self.patience = None
        if self.input is not None:
            self.input.close()
            self.input = None
        if self._context is not None:
            self._context._unlink(self._link)
        out = self.out
        out.active.discard(self)
        if self._wake is not None:
            self._interrupt()
        if out.telemetry is not None:
            out.telemetry.ended(monotonic() - self.began_at, None if error is None else type(error).__name__)

    def _leave(self) -> None:
        call, peer = self.call, self.peer
        assert call is not None
        assert peer is not None
        if not call.ended:
            call.kill()
        self.call = self.broken = None
        self._heard = False
        self.out.peers.finish(peer)
