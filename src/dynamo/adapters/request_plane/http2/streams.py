"""What a peer may do with the streams of a connection, and what comes of what it may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2.frames import Code, Violation, reset_frame
from dynamo.adapters.request_plane.http2.stream import Http2Call

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection


def must_have_been(connection: Http2Connection, stream: int) -> None:
    """A frame came for a stream that is over; was there ever one? Raises Violation."""
    ours = bool(stream % 2) is connection.dialer
    last = connection.outbox.last_opened if ours else connection.last_id
    if not stream or stream > last or (ours and not connection.dialer):
        raise Violation(Code.PROTOCOL_ERROR, f"a frame for stream {stream}, which was never opened")


def break_stream(call: Http2Call, code: Code, what: str) -> None:
    """The peer broke the rules of this stream, and of no other. Raises Flooded."""
    connection = call.connection
    connection.outbox.put(reset_frame(call.id, code))
    call.peer_done = True
    error = call.broken(f"{connection.options.peer} broke HTTP/2: {what}")
    if connection.dialer:
        call.finish(error)
    else:
        call.break_off(error)
        connection.floods.spend()
