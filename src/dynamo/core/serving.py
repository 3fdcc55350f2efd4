"""One endpoint as a runtime serves it: whom it admits, what is in flight, and its way out."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import logging
import sys
from collections.abc import Callable, Sequence

from attrs import evolve

from dynamo.core.answering import CANCEL_S, Answer
from dynamo.core.config import Settings
from dynamo.core.errors import (
    ConfigError,
    DeadlineError,
    DrainingError,
    DynamoError,
    OverloadedError,
    StreamBrokenError,
)
from dynamo.core.handlers import Handler
from dynamo.core.lifetime import within
from dynamo.core.model import EndpointId, Instance, Phase
from dynamo.core.ports.request_plane import IncomingCall, Server
from dynamo.core.ports.telemetry import EndpointTelemetry
from dynamo.core.registrations import Registrations

logger = logging.getLogger("dynamo.runtime")

UNREGISTER_S = 2.0


class Served:
    """Admits calls up to ``max_inflight`` running handlers, then up to ``queue`` waiting ones by priority
    (higher first) and order of arrival; what comes beyond is refused as overloaded, at once.

    A waiting call whose caller leaves, or whose deadline passes, never starts.
    """

    def __init__(
        self,
        endpoint_id: EndpointId,
        handler: Handler,
        *,
        loop: asyncio.AbstractEventLoop,
        telemetry: EndpointTelemetry | None = None,
        max_inflight: int | None = None,
        queue: int | None = None,
        graceful: bool = True,
    ) -> None:
        if max_inflight is not None and (type(max_inflight) is not int or max_inflight < 1):
            raise ConfigError(f"max_inflight={max_inflight!r}: expected 1 or more, or None for no bound")
        if queue is not None and (type(queue) is not int or queue < 0 or max_inflight is None):
            raise ConfigError(
                f"queue={queue!r}: expected 0 or more, beside max_inflight, which is what makes calls wait"
            )
        self.endpoint_id, self.handler, self.loop, self.telemetry = endpoint_id, handler, loop, telemetry
        self.graceful = graceful
        self.variables = contextvars.copy_context()  # of which each handler gets a copy
        self.instance: Instance | None = None  # as registered; None until the runtime knows its addresses
        self.leaving: asyncio.Task[None] | None = None  # its withdrawal, once that is under way
        self._limit = sys.maxsize if max_inflight is None else max_inflight
        self._room = max_inflight if queue is None else queue
        self._running: set[Answer] = set()
        self._queue: list[tuple[int, int, Answer]] = []
        self._queued = 0  # in the queue and not given up; the heap may hold more
        self._order = itertools.count()
        self._refusal: Callable[[], DynamoError] | None = None
        self._idle: list[asyncio.Future[None]] = []

    def __str__(self) -> str:
        return str(self.endpoint_id)

    @property
    def calls(self) -> int:
        """Calls in flight, waiting ones included."""
        return len(self._running) + self._queued

    def accept(self, call: IncomingCall) -> None:
        """Start, queue or refuse a call; returns at once."""
        if self._refusal is not None:
            self._refuse(call, self._refusal())
        elif call.killed:
            pass  # its caller left before it got here
        elif (timeout_s := call.request.timeout_s) is not None and timeout_s <= 0:
            call.fail(DeadlineError(f"the deadline of the call had passed when it reached {self}"))
        elif len(self._running) < self._limit:
            answer = Answer(self, call)
            self._running.add(answer)
            answer.begin()
        elif self._queued < (self._room or 0):
            answer = Answer(self, call)
            self._queued += 1
            heapq.heappush(self._queue, (-answer.priority, next(self._order), answer))
        else:
            self._refuse(
                call,
                OverloadedError(
                    f"{self} runs {self._limit} calls (max_inflight) and {self._queued} wait (queue)"
                ),
            )

    def _refuse(self, call: IncomingCall, error: DynamoError) -> None:
        if self.telemetry is not None:
            self.telemetry.refused(type(error).__name__)
        call.refuse(error)

    def finished(self, answer: Answer) -> None:
        """Its handler has ended."""
        self._running.discard(answer)
        if self._queued and len(self._running) < self._limit:
            self._begin_next()
        if self._idle:
            self._tell_idle()

    def given_up(self) -> None:
        """An answer is over that waited in the queue."""
        self._queued -= 1
        if len(self._queue) > 2 * self._queued + 16:  # mostly such: they are not to pile up behind the busy
            self._queue = [entry for entry in self._queue if not entry[2].over]
            heapq.heapify(self._queue)
        if self._idle:
            self._tell_idle()

    def _tell_idle(self) -> None:
        if not self.calls:
            for waiter in self._idle:
                if not waiter.done():
                    waiter.set_result(None)

    def _begin_next(self) -> None:
        while True:
            answer = heapq.heappop(self._queue)[2]
            if not answer.over:
                self._queued -= 1
                self._running.add(answer)
                answer.begin()
                return

    # The way out.

    def refuse(self) -> None:
        """Turn away what is new and what still waits: nothing of it has started, so it may go elsewhere."""

        def refusal() -> DynamoError:
            return DrainingError(f"{self} is being withdrawn here and takes no new calls")

        self._refusal = refusal
        for *_, answer in self._queue:
            if not answer.over:
                answer.turn_away(refusal())
        self._queue.clear()

    def cut(self) -> None:
        """Cancel every handler; their callers see a stream that broke, which may have done something."""
        for answer in list(self._running):
            answer.cut(StreamBrokenError(f"{self} was shut down before the stream ended"))

    async def idle(self) -> None:
        """Wait until no call is in flight."""
        if self.calls:
            waiter = self.loop.create_future()
            self._idle.append(waiter)
            try:
                await waiter
            finally:
                self._idle.remove(waiter)

    async def finish(self, bound_s: float) -> int:
        """Let the handlers finish for ``bound_s`` seconds, then cancel them; the number of those that run
        on even then.
        """
        if self.graceful and self.calls:
            await within(bound_s, self.idle())
        self.cut()
        await within(CANCEL_S, self.idle())
        return self.calls


async def withdraw(
    leaving: Sequence[Served], registrations: Registrations, settings: Settings, server: Server | None = None
) -> None:
    """Leave, in the one order: draining, grace, refuse, finish, cancel, unregister; every step is bounded.

    ``server`` is given when everything behind it leaves: its callers are told on their connections, which
    works while discovery is down."""
    known = False
    for served in leaving:
        if (instance := registrations.wanted(served.endpoint_id)) is not None:
            registrations.want(evolve(instance, phase=Phase.DRAINING))
            known = True
    if server is not None:
        server.drain()
    if known or any(served.calls for served in leaving):
        await asyncio.sleep(settings.drain_grace_s)
    for served in leaving:
        served.refuse()
    if server is not None:
        server.refuse()
    left = await asyncio.gather(*(served.finish(settings.graceful_shutdown_timeout_s) for served in leaving))
    for served, calls in zip(leaving, left, strict=True):
        if calls:
            logger.error(
                "%d calls of %s run on although they were cancelled; they are left behind", calls, served
            )
    await unregister(leaving, registrations)


async def unregister(leaving: Sequence[Served], registrations: Registrations) -> None:
    """Out of discovery; bounded, for the backend may be away, and the lease's end does it then."""
    for served in leaving:
        registrations.unwant(served.endpoint_id)
    removals = (registrations.settled(served.endpoint_id) for served in leaving)
    await within(UNREGISTER_S, asyncio.gather(*removals, return_exceptions=True))
