"""One HTTP/2 connection without its transport: bytes become calls, and calls become bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

from dynamo.adapters.request_plane.http2.dispatch import Dispatch
from dynamo.adapters.request_plane.http2.endings import because, break_calls, reason_not_to_open
from dynamo.adapters.request_plane.http2.fields import Recurring
from dynamo.adapters.request_plane.http2.floods import Flooded, Floods
from dynamo.adapters.request_plane.http2.frames import (
    ALL_STREAMS,
    DEFAULT_WINDOW,
    LARGEST_WINDOW,
    PING_FRAME,
    PREFACE,
    WORKER_DRAINS,
    Code,
    Violation,
    goaway_frame,
    window_frame,
)
from dynamo.adapters.request_plane.http2.headers import EVENTS, LINES, NATIVE, Openings, end_fields
from dynamo.adapters.request_plane.http2.outbox import Outbox
from dynamo.adapters.request_plane.http2.reader import Reader
from dynamo.adapters.request_plane.http2.settings import PeerSettings, our_settings
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import DynamoError, UnavailableError, WireError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.frames import MIN_WINDOW
from dynamo.core.wire.keepalive import Keepalive
from dynamo.core.wire.opening import Options
from dynamo.core.wire.sending import too_large

MAX_UNREAD_BYTES = 4 * 2**20  # of answers to frames, which no window bounds, at one who does not read them


def _nothing() -> None:
    pass


class Http2Connection:
    """What a driver needs, as ``core.wire.Connection`` has it: bytes in, bytes out, the time, and the end."""

    def __init__(
        self,
        options: Options,
        budget: ReceiveBudget,
        *,
        dialer: bool,
        accept: Callable[[Http2Call], None] | None = None,
        scheme: str = "http",
    ) -> None:
        self.options, self.budget, self.dialer = options, budget, dialer
        self.accept = accept
        self.ready = self.closed = False
        self.draining = False  # no new calls on this connection
        self.spent = False  # and that says nothing of the peer: another connection may take them
        self.answered = False  # a response came
        self.error: DynamoError | None = None
        self.on_ready: Callable[[], None] | None = None
        self.on_idle: Callable[[], None] | None = None
        self.on_end: Callable[[], None] = _nothing
        self.calls: dict[int, Http2Call] = {}  # by stream, until both sides are done
        self.held = 0  # of them, whose first item is not whole
        self.last_id = 0  # of the streams that the peer opened
        self.goaways = 0
        # What a stream may send us before it is told more: callers get theirs from the budget, one by one.
        self.first_window = min(options.window_bytes, MIN_WINDOW if dialer else DEFAULT_WINDOW)
        limit = ("dynamo-max-message", str(options.max_message_bytes))
        self.native_head = Recurring([(":status", "200"), ("content-type", NATIVE), limit])
        self.line_head = Recurring([(":status", "200"), ("content-type", LINES)])
        self.event_head = Recurring([(":status", "200"), ("content-type", EVENTS)])
        self.clean_end = Recurring(end_fields(None))
        self.peer = PeerSettings()
        self.floods = Floods()
        self.outbox = Outbox(self.peer, self.floods, dialer=dialer)
        self._reader = Reader(Dispatch(self), preface=not dialer, floods=None if dialer else self.floods)
        self._openings = Openings(scheme, options)
        self._keepalive = Keepalive(self, options)
        self._heard = False  # something came since the last tick
        self.outbox.put(
            (PREFACE if dialer else b"")
            + our_settings(dialer=dialer, window=self.first_window)
            + window_frame(0, LARGEST_WINDOW - DEFAULT_WINDOW)
        )

    # What the driver asks.

    @property
    def on_output(self) -> Callable[[], None]:
        return self.outbox.on_output

    @on_output.setter
    def on_output(self, hook: Callable[[], None]) -> None:
        self.outbox.on_output = hook

    @property
    def on_burst(self) -> Callable[[], None]:
        return self.outbox.on_burst

    @on_burst.setter
    def on_burst(self, hook: Callable[[], None]) -> None:
        self.outbox.on_burst = hook

    @property
    def greeted(self) -> bool:
        return self._reader.greeted

    @property
    def open_streams(self) -> int:
        return len(self.calls) + len(self.outbox.waiting)

    @property
    def stalled(self) -> bool:
        """The peer was silent for K, and still is."""
        return self._keepalive.silence.stalled and not self.closed

    @property
    def has_output(self) -> bool:
        return self.outbox.has_output

    @property
    def waiting_bytes(self) -> int:
        return self.outbox.brought

    def get_buffer(self, hint: int = -1) -> memoryview:
        return self._reader.buffer

    def buffer_updated(self, size: int) -> None:
        if self.closed:
            return
        self._heard = True
        try:
            self._reader.received(size)
            if self.outbox.unread > MAX_UNREAD_BYTES:
                raise Flooded(f"{self.outbox.unread} bytes of answers were not read")
        except Flooded as error:
            self._violated(Violation(Code.ENHANCE_YOUR_CALM, str(error)))
        except Violation as error:
            self._violated(error)

    def take_output(self, limit: int) -> list[bytes]:
        """What is to be written now, about ``limit`` bytes of it."""
        return self.outbox.take(limit)

    def open(self, request: Request) -> Http2Call:
        """A call on this connection. Raises TooLargeError, EncodeError."""
        options = self.options
        payload = request.payload
        size = 0
        if payload is not None:
            size = len(payload) if type(payload) is bytes else memoryview(payload).nbytes
            if size > options.max_message_bytes:
                raise too_large(size, options.max_message_bytes)
        opening = self._openings.of(request, self.peer.max_list)
        if self.closed or self.draining or self._keepalive.silence.stalled:
            call = Http2Call(self, request, 0)
            call.finish(reason_not_to_open(self))
            return call
        window = self.budget.window(options.window_bytes)
        call = Http2Call(self, request, window)
        call.reserved = window
        call.credit = self.peer.window
        call.opening = opening
        call.out_done = request.end
        self.outbox.waiting[call] = None
        if payload is not None:
            call.put(payload, size, 0)
        else:
            self.outbox.brings(call, 1)
        if request.end:
            self.complete()
        return call

    def tick(self, now: float) -> float:
        """Keep-alive and the bound of the opening; returns when to be called again."""
        if self.closed:
            return math.inf
        heard, self._heard = self._heard, False
        return self._keepalive.tick(now, heard)

    def unanswered(self) -> list[Http2Call]:
        """The calls of ours that may run twice and brought nothing yet."""
        if not self.dialer:
            return []
        calls = (*self.calls.values(), *self.outbox.waiting)
        return [call for call in calls if call.request.idempotent and not call.head_came]

    def probe(self) -> None:
        """Queue a PING."""
        if not self.closed:
            self.outbox.put(PING_FRAME)

    # The end of it.

    def goaway(self) -> None:
        """Drain (listener). The first time it asks for no new streams, the second time it takes none."""
        if self.closed or self.goaways == 2:
            return
        self.goaways += 1
        last = ALL_STREAMS if self.goaways == 1 else self.last_id
        self.outbox.put(goaway_frame(last, text=WORKER_DRAINS))

    def close(self, error: DynamoError | None = None) -> None:
        """Send what the windows let through, say goodbye, and end all calls as broken."""
        if self.closed:
            return
        said = [] if self.dialer else self.take_output(2**62)
        text = str(error or (WORKER_DRAINS if self.goaways else ""))
        self.end(error, b"".join(said) + goaway_frame(self.last_id, text=text))

    def connection_lost(self, error: Exception | None = None) -> None:
        if not self.closed:
            lost = UnavailableError(f"the connection to {self.options.peer} was lost{because(error)}")
            lost.__cause__ = error
            self.end(lost, b"")
        self.outbox.clear()

    def unreachable(self, error: DynamoError) -> None:
        """There never was a transport: each call ends with ``error``."""
        self.end(error, b"")
        self.outbox.clear()

    def _violated(self, what: Violation) -> None:
        did = "was cut off" if what.code is Code.ENHANCE_YOUR_CALM else "broke HTTP/2"
        error = WireError(f"{self.options.peer} {did}: {what}")
        self.end(error, goaway_frame(self.last_id, what.code, str(what)))

    def end(self, error: DynamoError | None, goodbye: bytes) -> None:
        """All is over, but that ``goodbye`` is still said."""
        if self.closed:
            return
        self.closed, self.error = True, error
        break_calls(self, error)
        if goodbye:
            self.outbox.put(goodbye)

    # What calls ask, and the dispatcher.

    def complete(self) -> None:
        """A request or an answer is; where other calls run, something else comes in this tick most likely."""
        if len(self.calls) < 2:
            self.on_end()

    def cancel(self, call: Http2Call) -> None:
        """The caller leaves."""
        if not self.closed and call.opening is None:
            self.outbox.reset(call, Code.CANCEL)

    def opened(self, call: Http2Call) -> None:
        """It has a stream now."""
        self.calls[call.id] = call
        if call.id > ALL_STREAMS - 4:
            self.draining = self.spent = True  # no numbers are left

    def finished(self, call: Http2Call) -> None:
        waiting = self.outbox.waiting
        if call.opening is not None:
            waiting.pop(call, None)
        else:
            self.calls.pop(call.id, None)
            self.held -= call.held
        self.outbox.forget(call)
        if self.on_idle is not None and not self.calls and not waiting:
            self.on_idle()
        if waiting:
            self.outbox.brings(next(iter(waiting)), 0)
