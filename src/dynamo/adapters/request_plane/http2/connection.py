"""One HTTP/2 connection without its transport: what ``h2`` says becomes calls, and calls become frames."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from time import monotonic

import h2.config
import h2.errors
import h2.exceptions
import h2.settings

from dynamo.adapters.request_plane.http2 import headers
from dynamo.adapters.request_plane.http2.counted import CountedConnection
from dynamo.adapters.request_plane.http2.dispatch import Dispatch
from dynamo.adapters.request_plane.http2.floods import Flooded, Floods
from dynamo.adapters.request_plane.http2.frames import ALL_STREAMS, Cutter, Oversized, goaway_frame
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import (
    DrainingError,
    DynamoError,
    Retry,
    UnavailableError,
    WireError,
)
from dynamo.core.ports.request_plane import Payload, Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.opening import Options
from dynamo.core.wire.sending import too_large
from dynamo.core.wire.silence import Act, Silence

READ_BYTES = 64 * 1024
MAX_STREAMS = 4096  # of one connection at a time
GIVE_BYTES = 2**24  # of the connection's window, which holds nobody up: given back in large pieces
MAX_UNREAD_BYTES = 4 * 2**20  # of answers to frames, which no window bounds, at one who does not read them
_LARGEST_WINDOW = 2**31 - 1
_CODES = h2.errors.ErrorCodes


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
        self.ready = self.closed = self.draining = self.greeted = False
        self.error: DynamoError | None = None
        self.on_output: Callable[[], None] = _nothing
        self.on_burst: Callable[[], None] = _nothing
        self.on_ready: Callable[[], None] | None = None
        self.on_idle: Callable[[], None] | None = None
        self.accept = accept
        self._scheme = scheme
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._cutter = Cutter(self._goaway_came, self._frame_came, preface=not dialer)
        self.calls: dict[int, Http2Call] = {}
        self.unaccepted: set[Http2Call] = set()  # its first item is not whole
        self.waiting: dict[Http2Call, headers.Fields] = {}  # to be opened
        self.busy: dict[Http2Call, None] = {}  # may have something to send
        self.blocked: dict[Http2Call, None] = {}  # by the connection's window
        self._extra = bytearray()  # answers that were not written yet, and frames that h2 does not make
        self._silence = Silence(options.keepalive_s)
        self._heard = False
        self._began_at: float | None = None
        self.goaways = 0
        self.last_id = 0
        self.owed = 0  # of the connection's window
        self._woken = False
        self.peer_window = options.window_bytes if dialer else 65_535
        self.h2 = CountedConnection(h2.config.H2Configuration(client_side=dialer, header_encoding=None))
        self._dispatch = Dispatch(self)
        self._floods = Floods()
        self._introduce()

    def _introduce(self) -> None:
        codes = h2.settings.SettingCodes
        window = min(self.options.window_bytes, _LARGEST_WINDOW)
        said = {
            codes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
            codes.MAX_HEADER_LIST_SIZE: headers.MAX_LIST_BYTES,
            codes.ENABLE_PUSH: 0,
        }
        if self.dialer or window >= 65_535:
            said[codes.INITIAL_WINDOW_SIZE] = window
        self.h2.local_settings = h2.settings.Settings(client=self.dialer, initial_values=said)
        self.h2.initiate_connection()
        if codes.INITIAL_WINDOW_SIZE not in said:  # holds once the peer has said that it knows
            self.h2.update_settings({codes.INITIAL_WINDOW_SIZE: window})
        self.h2.increment_flow_control_window(_LARGEST_WINDOW - 65_535)

    # What the driver asks.

    @property
    def open_streams(self) -> int:
        return len(self.calls) + len(self.waiting)

    @property
    def stalled(self) -> bool:
        """The peer was silent for K, and still is."""
        return self._silence.stalled and not self.closed

    @property
    def has_output(self) -> bool:
        return bool(self.busy or self._extra)

    @property
    def waiting_bytes(self) -> int:
        return len(self.busy)

    def get_buffer(self) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        if self.closed:
            return
        self._heard = True
        try:
            if len(self._extra) > MAX_UNREAD_BYTES:
                raise Flooded(f"{len(self._extra)} bytes of answers were not read")
            data = self._cutter.cut(self._buffer[:size])
            if data and not self.closed:
                for event in self.h2.receive_data(data):
                    self._dispatch.on_event(event)
                    if self.closed:
                        break
        except Flooded as error:
            self._cut_off(_CODES.ENHANCE_YOUR_CALM, error)
        except Oversized as error:
            self._cut_off(_CODES.FRAME_SIZE_ERROR, error)
        except h2.exceptions.ProtocolError as error:
            self._violated(str(error) or type(error).__name__)
        self._extra += self.h2.data_to_send()
        self._wake()

    def take_output(self, limit: int) -> list[bytes]:
        """What is to be written now, about ``limit`` bytes of it."""
        self._woken = False
        conn = self.h2
        if self.owed >= GIVE_BYTES and not self.closed:
            owed, self.owed = self.owed, 0
            conn.increment_flow_control_window(owed)
        taken = 0
        if self.ready:
            while self.busy and taken < limit:
                call = next(iter(self.busy))
                del self.busy[call]
                taken += self.emit(call)
        data = conn.data_to_send()
        if self._extra:
            data = bytes(self._extra) + data
            self._extra.clear()
        return [data] if data else []

    def open(self, request: Request) -> Http2Call:
        """A call on this connection. Raises TooLargeError."""
        options = self.options
        payload = request.payload
        size = 0
        if payload is not None:
            size = len(payload) if type(payload) is bytes else memoryview(payload).nbytes
            if size > options.max_message_bytes:
                raise too_large(size, options.max_message_bytes)
        fields = headers.request_fields(
            request,
            authority=options.peer.partition("://")[2],
            scheme=self._scheme,
            expected=(options.expected_instance_id, options.expected_incarnation),
            max_message=options.max_message_bytes,
            token=options.token,
        )
        if request.timeout_s is not None:
            fields.append((_DEADLINE, repr(monotonic() + request.timeout_s)))
        call = Http2Call(self, request)
        call.credit = self.peer_window
        if (reason := self._reason_not_to_open()) is not None:
            call.finish(reason)
            return call
        self.waiting[call] = fields
        if payload is not None:
            call.put(payload, size, 0)
        call.out_done = request.end
        self.wants_to_send(call)
        return call

    def _reason_not_to_open(self) -> DynamoError | None:
        peer = self.options.peer
        if self.closed:
            return UnavailableError(f"the connection to {peer} is closed{_because(self.error)}")
        if self.draining:
            return DrainingError(f"{peer} is draining and takes no new calls")
        if self.stalled:
            bound = f"{self.options.keepalive_s:g} s (DYN_KEEPALIVE_S)"
            return UnavailableError(f"nothing came from {peer} for {bound}: it is sent no new calls")
        return None

    def tick(self, now: float) -> float:
        """Keep-alive and the bound of the opening; returns when to be called again."""
        if self.closed:
            return math.inf
        options = self.options
        if not self.ready:
            if self._began_at is None:
                self._began_at = now
            limit = self._began_at + options.opening_s
            if now < limit:
                return min(limit, self._silence.next_check(now))
            late = f"{options.peer} did not finish the opening within {options.opening_s:g} s"
            self.close(UnavailableError(late))
            return math.inf
        heard, self._heard = self._heard, False
        act = self._silence.check(now, heard)
        if act is Act.BREAK:
            silent = f"nothing came from {options.peer} for {3 * options.keepalive_s:g} s (DYN_KEEPALIVE_S)"
            self.close(UnavailableError(silent))
            return math.inf
        if act is Act.STALL and self.dialer:
            bound = f"{options.keepalive_s:g} s (DYN_KEEPALIVE_S)"
            silent = f"nothing came from {options.peer} for {bound}, and no answer to this call before that"
            for call in [*self.calls.values(), *self.waiting]:
                if call.request.idempotent and not call.answered:
                    call.leave(UnavailableError(silent, retry=Retry.UNKNOWN))
        if act is not Act.NOTHING:
            self.h2.ping(bytes(8))
            self._wake()
        return self._silence.next_check(now)

    # The end of it.

    def goaway(self) -> None:
        """Drain (listener). The first time it asks for no new streams, the second time it takes none."""
        if self.closed or self.goaways == 2:
            return
        self.goaways += 1
        self._extra += self.h2.data_to_send()
        self._extra += goaway_frame(ALL_STREAMS if self.goaways == 1 else self.last_id)
        self._wake()

    def close(self, error: DynamoError | None = None) -> None:
        """Send what the windows let through, say goodbye, and end all calls as broken."""
        if self.closed:
            return
        if not self.dialer:
            self._extra[:0] = b"".join(self.take_output(2**62))
        self._end(error, goaway_frame(self.last_id, _CODES.NO_ERROR, str(error or "")))

    def connection_lost(self, error: Exception | None = None) -> None:
        if not self.closed:
            lost = UnavailableError(f"the connection to {self.options.peer} was lost{_because(error)}")
            lost.__cause__ = error
            self._end(lost, b"")
        self._extra.clear()

    def unreachable(self, error: DynamoError) -> None:
        """There never was a transport: each call ends with ``error``."""
        self._end(error, b"")
        self._extra.clear()

    def _cut_off(self, code: h2.errors.ErrorCodes, why: Exception) -> None:
        goodbye = goaway_frame(self.last_id, code, str(why))
        self._end(WireError(f"{self.options.peer} was cut off: {why}"), goodbye)

    def _violated(self, what: str) -> None:
        error = WireError(f"{self.options.peer} broke HTTP/2: {what}")
        # h2 has said GOAWAY with the right code, if it came to frames.
        silent = not self.greeted
        self._end(error, goaway_frame(0, _CODES.PROTOCOL_ERROR, what) if silent else b"")

    def _end(self, error: DynamoError | None, goodbye: bytes) -> None:
        if self.closed:
            return
        self.closed, self.error = True, error
        self._extra += self.h2.data_to_send()
        self._extra += goodbye
        why = str(error or f"the connection to {self.options.peer} was closed")
        waiting, calls = list(self.waiting), list(self.calls.values())
        self.waiting.clear()
        self.busy.clear()
        self.blocked.clear()
        for call in waiting:
            if error is None or not self.ready:
                ending = copy.copy(error) or UnavailableError(f"{why} (the call was not sent)")
            else:
                ending = UnavailableError(f"{why} (the call was not sent)")
            call.finish(_caused(ending, error))
        for call in calls:
            ended = _caused(call.broken(why), error)
            if self.dialer:
                call.finish(ended)
            else:
                call.break_off(ended)
        self._wake()

    # What calls ask.

    def wants_to_send(self, call: Http2Call) -> None:
        if not self.closed and call not in self.busy and not call.over:
            self.busy[call] = None
            self._wake()

    def give_credit(self, call: Http2Call, size: int) -> None:
        if not self.closed and not call.over:
            try:
                self.h2.increment_flow_control_window(size, call.id)
            except h2.exceptions.StreamClosedError:
                return
            self._wake()

    def cancel(self, call: Http2Call) -> None:
        """The caller leaves."""
        if self.waiting.pop(call, None) is None and not self.closed:
            self.reset(call, _CODES.CANCEL)

    def finished(self, call: Http2Call) -> None:
        self.busy.pop(call, None)
        self.blocked.pop(call, None)
        self.waiting.pop(call, None)
        self.calls.pop(call.id, None)
        self.unaccepted.discard(call)
        if self.on_idle is not None and not self.calls and not self.waiting:
            self.on_idle()
        if self.waiting:
            self.busy.setdefault(next(iter(self.waiting)))
            self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self.on_output()

    def reset(self, call: Http2Call, code: h2.errors.ErrorCodes) -> None:
        try:
            self.h2.reset_stream(call.id, code)
        except h2.exceptions.StreamClosedError:
            return
        self._wake()

    # Sending.

    def emit(self, call: Http2Call) -> int:
        """One DATA frame of a call, and what stands before and after it; the bytes of it."""
        conn = self.h2
        if call in self.waiting and not self._open_now(call):
            return 0
        if not self.dialer and call.queue and not call.head_sent:
            if call.holds_back:
                return 0
            self._send_head(call)
        size = 0
        if call.queue:
            room = min(conn.local_flow_control_window(call.id), conn.max_outbound_frame_size)
            if room > 0:
                size, parts = _gather(call, room)
                conn.send_data(call.id, b"".join(parts))
                call.sent(size)
                self._floods.sent()
            elif conn.outbound_flow_control_window <= 0:
                self.blocked[call] = None
            if call.queue:
                if room > 0:
                    self.busy[call] = None
                return size
        if call.out_done and not self.dialer:
            self._send_end(call)
        return size + 1

    def _open_now(self, call: Http2Call) -> bool:
        conn = self.h2
        if conn.open_outbound_streams >= conn.remote_settings.max_concurrent_streams:
            return False
        fields = self.waiting.pop(call)
        if fields[-1][0] == _DEADLINE:
            left = float(fields.pop()[1]) - monotonic()
            fields.append(("dynamo-timeout", f"{max(left, 0.0):.6f}"))
        call.id = conn.get_next_available_stream_id()
        self.calls[call.id] = call
        conn.send_headers(call.id, fields)
        if call.id > ALL_STREAMS - 4:
            self.draining = True  # no numbers are left
        return True

    def _send_head(self, call: Http2Call) -> None:
        call.head_sent = True
        self.h2.send_headers(call.id, call.head())

    def _send_end(self, call: Http2Call) -> None:
        fields = headers.end_fields(call.failure, call.failure_retry)
        if not call.head_sent:
            fields = [*call.head(), *fields]
        self.h2.send_headers(call.id, fields, end_stream=True)
        if not call.peer_done:
            self.reset(call, _CODES.NO_ERROR)  # RFC 9113, section 8.1
        call.finish(None)

    # What arrives beside h2's events.

    def _frame_came(self, kind: int, flags: int, length: int) -> None:
        self.greeted = True
        if not self.dialer:
            self._floods.count(kind, flags, length)

    def _goaway_came(self, last_id: int, code: int, text: str) -> None:
        self.draining = True
        peer = self.options.peer
        if code != _CODES.NO_ERROR:
            self._end(WireError(f"{peer} closed the connection with error {code}: {text}"), b"")
            return
        if not self.dialer:
            return
        refused = DrainingError(f"{peer} is draining and takes no new calls")
        for call in [*self.waiting, *(call for call in self.calls.values() if call.id > last_id)]:
            call.finish(copy.copy(refused))
        if not self.calls and self.on_idle is not None:
            self.on_idle()


_DEADLINE = "deadline"  # a note beside the fields of a call that waits, in monotonic time


def _gather(call: Http2Call, room: int) -> tuple[int, list[Payload]]:
    """So many bytes of what a call has queued."""
    parts: list[Payload] = []
    size, queue = 0, call.queue
    while queue and size < room:
        part, offset = queue[0], call.offset
        rest = len(part) - offset
        if rest <= room - size:
            parts.append(part if not offset else memoryview(part)[offset:])
            queue.popleft()
            call.offset = 0
            size += rest
        else:
            parts.append(memoryview(part)[offset : offset + room - size])
            call.offset += room - size
            size = room
    return size, parts


def _because(error: Exception | None) -> str:
    return "" if error is None else f": {error}"


def _caused(error: DynamoError, cause: DynamoError | None) -> DynamoError:
    error.__cause__ = cause
    return error
