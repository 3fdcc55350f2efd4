"""Frames that carry no message: SETTINGS, PING, GOAWAY, WINDOW_UPDATE and RST_STREAM."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2.frames import (
    ACK,
    CONTINUATION,
    GOAWAY,
    LARGEST_WINDOW,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    WORKER_DRAINS,
    Code,
    Violation,
    frame,
    unpack_u32,
)
from dynamo.adapters.request_plane.http2.streams import must_have_been
from dynamo.core.errors import (
    CallCancelledError,
    DrainingError,
    DynamoError,
    OverloadedError,
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


class Control:
    """What a peer says about the connection and its streams."""

    def __init__(self, connection: Http2Connection) -> None:
        self._connection = connection
        self._handlers = {
            RST_STREAM: self._on_reset,
            SETTINGS: self._on_settings,
            PING: self._on_ping,
            GOAWAY: self._on_goaway,
            WINDOW_UPDATE: self._on_window,
        }

    def on_frame(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        """Raises Violation."""
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
            must_have_been(connection, stream)
            return
        (code,) = unpack_u32(body)
        call.peer_done = True
        if call.head_sent:
            connection.floods.excuse()
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
            must_have_been(connection, stream)
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
        # A proxy recycles a connection that it had calls answered on; who wants none on a new one drains.
        connection.spent = connection.answered and not body.startswith(WORKER_DRAINS.encode(), 8)
        refused: DynamoError = DrainingError(f"{peer} is draining and takes no new calls")
        if connection.spent:
            refused = OverloadedError(f"{peer} takes no more calls on this connection")
        beyond = [call for call in connection.calls.values() if call.id > last_id]
        for call in [*connection.outbox.waiting, *beyond]:
            error = copy.copy(refused)
            if call.head_came:  # it was taken, whatever the peer says
                error.retry = Retry.UNKNOWN
            call.finish(error)
        if not connection.calls and connection.on_idle is not None:
            connection.on_idle()
