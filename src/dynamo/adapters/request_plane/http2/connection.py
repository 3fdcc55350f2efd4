"""One HTTP/2 connection without its transport: what ``h2`` says becomes calls, and calls become frames."""

from __future__ import annotations

import copy
import hmac
import math
from collections.abc import Callable, Iterable
from time import monotonic

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from dynamo.adapters.request_plane.http2 import headers
from dynamo.adapters.request_plane.http2.frames import ALL_STREAMS, Cutter, goaway_frame
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import (
    AuthError,
    CallCancelledError,
    DrainingError,
    DynamoError,
    OverloadedError,
    Retry,
    UnavailableError,
    WireError,
    WrongInstanceError,
)
from dynamo.core.ports.request_plane import Payload, Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.opening import Options
from dynamo.core.wire.sending import too_large
from dynamo.core.wire.silence import Act, Silence

READ_BYTES = 64 * 1024
MAX_STREAMS = 4096  # of one connection at a time
GIVE_BYTES = 2**24  # of the connection's window, which holds nobody up: given back in large pieces
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
        self._accept = accept
        self._scheme = scheme
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._cutter = Cutter(self._goaway_came, self._frame_came, preface=not dialer)
        self._calls: dict[int, Http2Call] = {}
        self._unaccepted: set[Http2Call] = set()  # its first item is not whole
        self._waiting: dict[Http2Call, headers.Fields] = {}  # to be opened
        self._busy: dict[Http2Call, None] = {}  # may have something to send
        self._blocked: dict[Http2Call, None] = {}  # by the connection's window
        self._extra = bytearray()  # frames that h2 does not make for us
        self._silence = Silence(options.keepalive_s)
        self._heard = False
        self._began_at: float | None = None
        self._goaways = 0
        self._last_id = 0
        self._owed = 0  # of the connection's window
        self._woken = False
        self._peer_window = options.window_bytes if dialer else 65_535
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=dialer, header_encoding="utf-8")
        )
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
        self._h2.local_settings = h2.settings.Settings(client=self.dialer, initial_values=said)
        self._h2.initiate_connection()
        if codes.INITIAL_WINDOW_SIZE not in said:  # holds once the peer has said that it knows
            self._h2.update_settings({codes.INITIAL_WINDOW_SIZE: window})
        self._h2.increment_flow_control_window(_LARGEST_WINDOW - 65_535)

    # What the driver asks.

    @property
    def open_streams(self) -> int:
        return len(self._calls) + len(self._waiting)

    @property
    def stalled(self) -> bool:
        """The peer was silent for K, and still is."""
        return self._silence.stalled and not self.closed

    @property
    def has_output(self) -> bool:
        return bool(self._busy or self._extra)

    @property
    def waiting_bytes(self) -> int:
        return len(self._busy)

    def get_buffer(self) -> memoryview:
        return self._buffer

    def buffer_updated(self, size: int) -> None:
        if self.closed:
            return
        self._heard = True
        try:
            data = self._cutter.cut(self._buffer[:size])
            if data and not self.closed:
                for event in self._h2.receive_data(data):
                    self._on_event(event)
                    if self.closed:
                        break
        except h2.exceptions.ProtocolError as error:
            self._violated(str(error) or type(error).__name__)
        self._wake()

    def take_output(self, limit: int) -> list[bytes]:
        """What is to be written now, about ``limit`` bytes of it."""
        self._woken = False
        conn = self._h2
        if self._owed >= GIVE_BYTES and not self.closed:
            owed, self._owed = self._owed, 0
            conn.increment_flow_control_window(owed)
        taken = 0
        if self.ready:
            while self._busy and taken < limit:
                call = next(iter(self._busy))
                del self._busy[call]
                taken += self._emit(call)
        data = conn.data_to_send()
        if self._extra:
            data += bytes(self._extra)
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
        call.credit = self._peer_window
        if (reason := self._reason_not_to_open()) is not None:
            call.finish(reason)
            return call
        self._waiting[call] = fields
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
            for call in [*self._calls.values(), *self._waiting]:
                if call.request.idempotent and not call.answered:
                    call.leave(UnavailableError(silent, retry=Retry.UNKNOWN))
        if act is not Act.NOTHING:
            self._h2.ping(bytes(8))
            self._wake()
        return self._silence.next_check(now)

    # The end of it.

    def goaway(self) -> None:
        """Drain (listener). The first time it asks for no new streams, the second time it takes none."""
        if self.closed or self._goaways == 2:
            return
        self._goaways += 1
        self._extra += goaway_frame(ALL_STREAMS if self._goaways == 1 else self._last_id)
        self._wake()

    def close(self, error: DynamoError | None = None) -> None:
        """Send what the windows let through, say goodbye, and end all calls as broken."""
        if self.closed:
            return
        if not self.dialer:
            self._extra[:0] = b"".join(self.take_output(2**62))
        self._end(error, goaway_frame(self._last_id, _CODES.NO_ERROR, str(error or "")))

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

    def _violated(self, what: str) -> None:
        error = WireError(f"{self.options.peer} broke HTTP/2: {what}")
        self._extra += self._h2.data_to_send()  # h2's own GOAWAY with the right code
        self._end(error, b"")

    def _end(self, error: DynamoError | None, goodbye: bytes) -> None:
        if self.closed:
            return
        self.closed, self.error = True, error
        self._extra += goodbye
        why = str(error or f"the connection to {self.options.peer} was closed")
        waiting, calls = list(self._waiting), list(self._calls.values())
        self._waiting.clear()
        self._busy.clear()
        self._blocked.clear()
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
        if not self.closed and call not in self._busy and not call.over:
            self._busy[call] = None
            self._wake()

    def give_credit(self, call: Http2Call, size: int) -> None:
        if not self.closed and not call.over:
            try:
                self._h2.increment_flow_control_window(size, call.id)
            except h2.exceptions.StreamClosedError:
                return
            self._wake()

    def cancel(self, call: Http2Call) -> None:
        """The caller leaves."""
        if self._waiting.pop(call, None) is None and not self.closed:
            self._reset(call, _CODES.CANCEL)

    def finished(self, call: Http2Call) -> None:
        self._busy.pop(call, None)
        self._blocked.pop(call, None)
        self._waiting.pop(call, None)
        self._calls.pop(call.id, None)
        self._unaccepted.discard(call)
        if self.on_idle is not None and not self._calls and not self._waiting:
            self.on_idle()
        if self._waiting:
            self._busy.setdefault(next(iter(self._waiting)))
            self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self.on_output()

    def _reset(self, call: Http2Call, code: h2.errors.ErrorCodes) -> None:
        try:
            self._h2.reset_stream(call.id, code)
        except h2.exceptions.StreamClosedError:
            return
        self._wake()

    # Sending.

    def _emit(self, call: Http2Call) -> int:
        """One DATA frame of a call, and what stands before and after it; the bytes of it."""
        conn = self._h2
        if call in self._waiting and not self._open_now(call):
            return 0
        if not self.dialer and call.queue and not call.head_sent:
            self._send_head(call)
        size = 0
        if call.queue:
            room = min(conn.local_flow_control_window(call.id), conn.max_outbound_frame_size)
            if room > 0:
                size, parts = _gather(call, room)
                conn.send_data(call.id, b"".join(parts))
            elif conn.outbound_flow_control_window <= 0:
                self._blocked[call] = None
            if call.queue:
                if room > 0:
                    self._busy[call] = None
                return size
        if call.out_done and not self.dialer:
            self._send_end(call)
        return size + 1

    def _open_now(self, call: Http2Call) -> bool:
        conn = self._h2
        if conn.open_outbound_streams >= conn.remote_settings.max_concurrent_streams:
            return False
        fields = self._waiting.pop(call)
        if fields[-1][0] == _DEADLINE:
            left = float(fields.pop()[1]) - monotonic()
            fields.append(("dynamo-timeout", f"{max(left, 0.0):.6f}"))
        call.id = conn.get_next_available_stream_id()
        self._calls[call.id] = call
        conn.send_headers(call.id, fields)
        if call.id > ALL_STREAMS - 4:
            self.draining = True  # no numbers are left
        return True

    def _send_head(self, call: Http2Call) -> None:
        call.head_sent = True
        self._h2.send_headers(
            call.id,
            [
                (":status", "200"),
                ("content-type", headers.NATIVE),
                ("dynamo-max-message", str(self.options.max_message_bytes)),
            ],
        )

    def _send_end(self, call: Http2Call) -> None:
        fields = headers.end_fields(call.failure, call.failure_retry)
        if not call.head_sent:
            fields = [
                (":status", "200"),
                ("content-type", headers.NATIVE),
                ("dynamo-max-message", str(self.options.max_message_bytes)),
                *fields,
            ]
        self._h2.send_headers(call.id, fields, end_stream=True)
        self._reset(call, _CODES.NO_ERROR)  # the caller's side is open: RFC 9113, section 8.1
        call.finish(None)

    # Receiving.

    def _frame_came(self, kind: int, flags: int) -> None:
        self.greeted = True

    def _goaway_came(self, last_id: int, code: int, text: str) -> None:
        self.draining = True
        peer = self.options.peer
        if code != _CODES.NO_ERROR:
            self._end(WireError(f"{peer} closed the connection with error {code}: {text}"), b"")
            return
        if not self.dialer:
            return
        refused = DrainingError(f"{peer} is draining and takes no new calls")
        for call in [*self._waiting, *(call for call in self._calls.values() if call.id > last_id)]:
            call.finish(copy.copy(refused))
        if not self._calls and self.on_idle is not None:
            self.on_idle()

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                self._on_data(event)
            case h2.events.RequestReceived():
                self._on_request(event)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self._on_fields(event)
            case h2.events.WindowUpdated():
                self._on_window(event)
            case h2.events.StreamEnded():
                self._on_stream_ended(event)
            case h2.events.StreamReset():
                self._on_reset(event)
            case h2.events.RemoteSettingsChanged():
                self._on_settings(event)

    def _on_settings(self, event: h2.events.RemoteSettingsChanged) -> None:
        code = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
        window = self._h2.remote_settings.initial_window_size
        if (not self.ready or code in event.changed_settings) and window != self._peer_window:
            difference, self._peer_window = window - self._peer_window, window
            for call in [*self._calls.values(), *self._waiting]:
                call.credited(difference)
                self.wants_to_send(call)
        if not self.ready:
            self.ready = True
            if self.on_ready is not None:
                self.on_ready()
                self.on_ready = None
        self._busy.update(dict.fromkeys(self._waiting))

    def _on_window(self, event: h2.events.WindowUpdated) -> None:
        if event.stream_id:
            if (call := self._calls.get(event.stream_id)) is not None:
                call.credited(event.delta or 0)
                if call.queue or call.out_done:
                    self.wants_to_send(call)
        else:
            self._busy.update(self._blocked)
            self._blocked.clear()

    def _on_request(self, event: h2.events.RequestReceived) -> None:
        fields = _texts(event.headers)
        self._last_id = max(self._last_id, event.stream_id)
        error: DynamoError | None = None
        try:
            request = headers.read_request(fields)
            error = self._reason_to_refuse(fields)
        except DynamoError as problem:
            request, error = Request(endpoint="", request_id=""), problem
        call = Http2Call(self, request)
        call.id = event.stream_id
        call.credit = self._h2.remote_settings.initial_window_size
        if error is None and not self.budget.reserve(call.window):
            error = OverloadedError("no memory is left for the input of a call (DYN_RECEIVE_BUDGET_BYTES)")
        elif error is None:
            call.reserved = call.window
            call.max_send = min(call.max_send, headers.read_limit(fields))
        self._calls[call.id] = call
        if error is not None:
            call.refuse(error)
            self._emit(call)
        elif fields.get("dynamo-first-item") == "none":
            if request.end:
                call.end_input(None)
            self._take(call)
        else:
            self._unaccepted.add(call)
            call.on_first = self._accept_first

    def _reason_to_refuse(self, fields: dict[str, str]) -> DynamoError | None:
        options = self.options
        if options.token:
            kind, _, token = fields.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(token.encode(), options.token.encode()):
                return AuthError("this worker wants a bearer token, the one of its DYN_AUTH_TOKEN")
        if self._goaways == 2:
            return DrainingError("this worker is draining and takes no new calls")
        instance_id, incarnation = headers.read_expected(fields)
        if instance_id in (0, options.instance_id) and incarnation in (0, options.incarnation):
            return None
        return WrongInstanceError(
            f"another instance lives here: {options.instance_id:x}-{options.incarnation:x}, "
            f"not {instance_id:x}-{incarnation:x}"
        )

    def _on_data(self, event: h2.events.DataReceived) -> None:
        length, data = event.flow_controlled_length or 0, event.data or b""
        self._owed += length
        call = self._calls.get(event.stream_id)
        if call is None or call.killed:
            return
        if padding := length - len(data):
            self.give_credit(call, padding)
        try:
            call.arrived(data)
        except DynamoError as error:
            self._spoilt(call, error)
            return
        if call in self._unaccepted and (excess := call.excess) and not call.out_done:
            if self.budget.grant_now(excess):
                call.granted(excess)
            else:
                call.refuse(OverloadedError("no memory is left for large items (DYN_RECEIVE_BUDGET_BYTES)"))

    def _accept_first(self, call: Http2Call) -> None:
        """Its first item is whole."""
        self._unaccepted.discard(call)
        call.take_first()
        if call.request.end:
            call.end_input(None)
        self._take(call)

    def _take(self, call: Http2Call) -> None:
        if self._accept is not None:
            self._accept(call)

    def _spoilt(self, call: Http2Call, error: DynamoError) -> None:
        """What arrived ends this call, and nothing else."""
        if self.dialer:
            self._reset(call, _CODES.CANCEL)
            call.finish(error)
        elif call in self._unaccepted:
            call.refuse(error)
        else:
            call.fail(error)
            call.end_input(error)

    def _on_fields(self, event: h2.events.ResponseReceived | h2.events.TrailersReceived) -> None:
        call = self._calls.get(event.stream_id)
        if call is None or not self.dialer:
            return
        fields = _texts(event.headers)
        call.head_came()
        if "dynamo-max-message" in fields:
            call.max_send = min(call.max_send, headers.read_limit(fields))
        if event.stream_ended is None:
            return
        try:
            error = headers.read_end(fields)
        except WireError as problem:
            status = fields.get(":status")
            error = (
                problem if status is None else UnavailableError(f"status {status} from {self.options.peer}")
            )
        if error is not None and error.retry is Retry.SAFE and (call.received or call.buffered):
            error.retry = Retry.UNKNOWN  # a handler had started
        call.finish(error)

    def _on_stream_ended(self, event: h2.events.StreamEnded) -> None:
        if (call := self._calls.get(event.stream_id)) is None:
            return
        if self.dialer:
            call.finish(call.broken(f"{self.options.peer} ended the response without trailers"))
        else:
            call.end_input(None)
            if call in self._unaccepted:
                self._unaccepted.discard(call)
                self._take(call)

    def _on_reset(self, event: h2.events.StreamReset) -> None:
        if (call := self._calls.get(event.stream_id)) is None:
            return
        if self.dialer:
            call.finish(call.broken(f"{self.options.peer} reset the stream with error {event.error_code}"))
        elif event.error_code == _CODES.CANCEL:
            call.break_off(CallCancelledError("the call was killed by its caller"))
        else:
            call.break_off(call.broken(f"the caller reset the stream with error {event.error_code}"))


_DEADLINE = "deadline"  # a note beside the fields of a call that waits, in monotonic time


def _texts(fields: Iterable[tuple[bytes | str, bytes | str]] | None) -> dict[str, str]:
    """The fields as h2 decodes them here, which its types do not tell."""
    return {str(name): str(value) for name, value in fields or ()}


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
