"""What arrives on a connection becomes items, ends and calls."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2 import headers
from dynamo.adapters.request_plane.http2.fields import FieldDecoder, Malformed
from dynamo.adapters.request_plane.http2.frames import (
    ACK,
    CONTINUATION,
    END_STREAM,
    GOAWAY,
    LARGEST_WINDOW,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    Code,
    Violation,
    frame,
    reset_frame,
    unpack_u32,
)
from dynamo.adapters.request_plane.http2.headers import NATIVE
from dynamo.adapters.request_plane.http2.incoming import Incoming
from dynamo.adapters.request_plane.http2.reader import unpadded
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import (
    CallCancelledError,
    DrainingError,
    DynamoError,
    Retry,
    UnavailableError,
    WireError,
)

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection

CALLS_PER_FRAME = 64  # whose windows SETTINGS may change at the price of one more frame
_SIZES = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}  # of bodies
_OF_STREAMS = (PRIORITY, RST_STREAM)
_OF_CONNECTIONS = (SETTINGS, PING, GOAWAY)


class Dispatch:
    """The receiving half of one connection. What breaks HTTP/2 beyond one stream is raised as Violation."""

    def __init__(self, connection: Http2Connection) -> None:
        self._connection = connection
        self._decoder = FieldDecoder()
        self._incoming = Incoming(connection)
        self._handlers = {
            RST_STREAM: self._on_reset,
            SETTINGS: self._on_settings,
            PING: self._on_ping,
            GOAWAY: self._on_goaway,
            WINDOW_UPDATE: self._on_window,
        }

    @property
    def closed(self) -> bool:
        return self._connection.closed

    def on_data(self, stream: int, flags: int, body: bytes) -> None:
        connection = self._connection
        length = len(body)
        connection.outbox.owed += length
        if flags & PADDED:
            body = unpadded(flags, body)
        call = connection.calls.get(stream)
        if call is None:
            self._closed_stream(stream)
            return
        call.in_credit -= length
        if call.in_credit < 0:
            raise Violation(Code.FLOW_CONTROL_ERROR, f"more than the window of stream {stream}")
        if call.peer_done:
            self._break_stream(call, Code.STREAM_CLOSED, "DATA after its end")
        elif connection.dialer and not call.head_came:
            self._break_stream(call, Code.PROTOCOL_ERROR, "DATA before the head of the response")
        else:
            if flags & PADDED and not call.killed:
                call.pad(length - len(body))
            try:
                if connection.dialer:
                    call.arrived(body)
                else:
                    self._incoming.on_data(call, body)
            except DynamoError as error:
                self._spoilt(call, error)
            if flags & END_STREAM and not call.over:
                self._on_end(call)

    def _spoilt(self, call: Http2Call, error: DynamoError) -> None:
        """What arrived ends this call, and nothing else."""
        connection = self._connection
        if connection.dialer:
            connection.outbox.reset(call, Code.CANCEL)
            call.finish(error)
        elif call.held:
            call.refuse(error)
        else:
            call.fail(error)
            call.end_input(error)

    def on_headers(self, stream: int, flags: int, block: bytes) -> None:
        connection = self._connection
        fields: dict[str, str] | None
        try:
            fields, problem = self._decoder.decode(block), ""
        except Malformed as error:
            fields, problem = None, str(error)
        call = connection.calls.get(stream)
        if call is None:
            if connection.dialer or stream <= connection.last_id or not stream % 2:
                self._closed_stream(stream)
                if connection.dialer:
                    return
                if fields is not None and ":method" in fields:
                    raise Violation(Code.STREAM_CLOSED, f"a request on stream {stream}, which is over")
                connection.floods.spend()
            else:
                self._incoming.open(stream, fields, ended=bool(flags & END_STREAM))
        elif fields is None:
            self._break_stream(call, Code.PROTOCOL_ERROR, problem)
        elif call.peer_done:
            self._break_stream(call, Code.STREAM_CLOSED, "HEADERS after its end")
        elif connection.dialer:
            self._on_response(call, fields, ended=bool(flags & END_STREAM))
        elif flags & END_STREAM:
            self._on_end(call)
        else:
            self._break_stream(call, Code.PROTOCOL_ERROR, "trailers that do not end it")

    def _on_response(self, call: Http2Call, fields: dict[str, str], *, ended: bool) -> None:
        peer = self._connection.options.peer
        status = fields.get(":status")
        if not call.head_came:
            if status is None:
                self._break_stream(call, Code.PROTOCOL_ERROR, "a response without a status")
                return
            if status.startswith("1") and not ended:
                return
            if fields.get("content-type") != NATIVE:
                strange = f"{peer} answered with status {status}: no worker is there, or a proxy before it"
                self._connection.outbox.reset(call, Code.CANCEL)
                call.finish(UnavailableError(strange, retry=Retry.UNKNOWN))
                return
            call.head_came = True
            call.max_send = min(call.max_send, headers.read_limit(fields))
        if not ended:
            return
        error: DynamoError | None
        try:
            error = headers.read_end(fields)
        except WireError as problem:
            error = problem
        if error is not None and error.retry is Retry.SAFE and (call.received or call.buffered):
            error.retry = Retry.UNKNOWN  # a handler had started
        call.peer_done = True
        call.finish(error)

    def _on_end(self, call: Http2Call) -> None:
        """The peer's side of the stream is closed."""
        connection = self._connection
        call.peer_done = True
        if connection.dialer:
            call.finish(call.broken(f"{connection.options.peer} ended the response without trailers"))
        elif call.held and not call.is_whole:
            self._break_stream(call, Code.PROTOCOL_ERROR, "a body that is not as long as its content-length")
        else:
            self._incoming.end(call)

    def on_frame(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind in (PUSH_PROMISE, CONTINUATION):
            raise Violation(Code.PROTOCOL_ERROR, f"a frame of type {kind} here")
        if len(body) != _SIZES.get(kind, len(body)):
            raise Violation(Code.FRAME_SIZE_ERROR, f"a frame of type {kind} with {len(body)} bytes")
        if (kind in _OF_STREAMS and not stream) or (kind in _OF_CONNECTIONS and stream):
            raise Violation(Code.PROTOCOL_ERROR, f"a frame of type {kind} on stream {stream}")
        if (handler := self._handlers.get(kind)) is not None:
            handler(flags, stream, body)

    def _on_reset(self, flags: int, stream: int, body: bytes) -> None:
        connection = self._connection
        if (call := connection.calls.get(stream)) is None:
            self._closed_stream(stream)
            return
        (code,) = unpack_u32(body)
        call.peer_done = True
        if connection.dialer:
            error: DynamoError = call.broken(f"{connection.options.peer} reset the stream with error {code}")
            if code == Code.REFUSED_STREAM and not call.head_came:
                error = UnavailableError(f"{connection.options.peer} takes no more calls on this connection")
            call.finish(error)
        elif code == Code.CANCEL:
            call.break_off(CallCancelledError("the call was killed by its caller"))
        else:
            call.break_off(call.broken(f"the caller reset the stream with error {code}"))

    def _on_settings(self, flags: int, stream: int, body: bytes) -> None:
        connection = self._connection
        if flags & ACK:
            if body:
                raise Violation(Code.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a body")
            return
        peer, outbox = connection.peer, connection.outbox
        before = peer.window
        peer.read(body)
        outbox.put(SETTINGS_ACK)
        outbox.encoder.limit_table(peer.table)
        if difference := peer.window - before:
            if not connection.dialer:
                connection.floods.spend(len(connection.calls) // CALLS_PER_FRAME)
            for call in [*connection.calls.values(), *outbox.waiting]:
                call.credited(difference)
                outbox.brings(call, 0)
        if not connection.ready:
            connection.ready = outbox.open = True
            if connection.on_ready is not None:
                connection.on_ready()
                connection.on_ready = None
            outbox.wake()
        outbox.retry_waiting()

    def _on_ping(self, flags: int, stream: int, body: bytes) -> None:
        if not flags & ACK:
            self._connection.outbox.put(frame(PING, ACK, 0, body))

    def _on_window(self, flags: int, stream: int, body: bytes) -> None:
        connection = self._connection
        increment = unpack_u32(body)[0] & LARGEST_WINDOW
        if not increment:
            raise Violation(Code.PROTOCOL_ERROR, "a window opened by nothing")
        if not stream:
            if not connection.outbox.unblock(increment):
                raise Violation(Code.FLOW_CONTROL_ERROR, "a window over 2^31 - 1")
            return
        if (call := connection.calls.get(stream)) is None:
            self._closed_stream(stream)
        elif call.credit + call.queued + increment > LARGEST_WINDOW:
            raise Violation(Code.FLOW_CONTROL_ERROR, "a window over 2^31 - 1")
        else:
            call.credited(increment)
            if call.queued:
                connection.outbox.brings(call, 0)

    def _on_goaway(self, flags: int, stream: int, body: bytes) -> None:
        connection = self._connection
        if len(body) < 8:
            raise Violation(Code.FRAME_SIZE_ERROR, f"GOAWAY of {len(body)} bytes")
        connection.draining = True
        peer = connection.options.peer
        last_id, code = unpack_u32(body)[0] & LARGEST_WINDOW, unpack_u32(body, 4)[0]
        if code != Code.NO_ERROR:
            text = body[8:].decode(errors="replace")
            connection.end(WireError(f"{peer} closed the connection with error {code}: {text}"), b"")
            return
        if not connection.dialer:
            return
        refused = DrainingError(f"{peer} is draining and takes no new calls")
        beyond = [call for call in connection.calls.values() if call.id > last_id]
        for call in [*connection.outbox.waiting, *beyond]:
            call.finish(copy.copy(refused))
        if not connection.calls and connection.on_idle is not None:
            connection.on_idle()

    def _closed_stream(self, stream: int) -> None:
        """A frame came for a stream that is over; was there ever one? Raises Violation."""
        connection = self._connection
        ours = bool(stream % 2) is connection.dialer
        last = connection.outbox.last_opened if ours else connection.last_id
        if not stream or stream > last or (ours and not connection.dialer):
            raise Violation(Code.PROTOCOL_ERROR, f"a frame for stream {stream}, which was never opened")

    def _break_stream(self, call: Http2Call, code: Code, what: str) -> None:
        """The peer broke the rules of this stream, and of no other. Raises Violation, Flooded."""
        connection = self._connection
        connection.outbox.put(reset_frame(call.id, code))
        call.peer_done = True
        error = call.broken(f"{connection.options.peer} broke HTTP/2: {what}")
        if connection.dialer:
            call.finish(error)
        else:
            call.break_off(error)
            connection.floods.spend()
