"""What arrives on a connection becomes items, ends and calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2 import headers
from dynamo.adapters.request_plane.http2.control import Control
from dynamo.adapters.request_plane.http2.fields import FieldDecoder, Malformed
from dynamo.adapters.request_plane.http2.frames import (
    END_STREAM,
    PADDED,
    Code,
    Violation,
)
from dynamo.adapters.request_plane.http2.headers import NATIVE
from dynamo.adapters.request_plane.http2.incoming import Incoming
from dynamo.adapters.request_plane.http2.reader import unpadded
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.adapters.request_plane.http2.streams import break_stream, must_have_been
from dynamo.core.errors import (
    DynamoError,
    Retry,
    UnavailableError,
    WireError,
)

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection


class Dispatch:
    """The receiving half of one connection. What breaks HTTP/2 beyond one stream is raised as Violation."""

    def __init__(self, connection: Http2Connection) -> None:
        self._connection = connection
        self._decoder = FieldDecoder()
        self._incoming = Incoming(connection)
        self.on_frame = Control(connection).on_frame

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
            must_have_been(connection, stream)
            return
        call.in_credit -= length
        if call.in_credit < 0:
            raise Violation(Code.FLOW_CONTROL_ERROR, f"more than the window of stream {stream}")
        if call.peer_done:
            break_stream(call, Code.STREAM_CLOSED, "DATA after its end")
        elif connection.dialer and not call.head_came:
            break_stream(call, Code.PROTOCOL_ERROR, "DATA before the head of the response")
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
                must_have_been(connection, stream)
                if connection.dialer:
                    return
                if fields is not None and ":method" in fields:
                    raise Violation(Code.STREAM_CLOSED, f"a request on stream {stream}, which is over")
                connection.floods.spend()
            else:
                self._incoming.open(stream, fields, ended=bool(flags & END_STREAM))
        elif fields is None:
            break_stream(call, Code.PROTOCOL_ERROR, problem)
        elif call.peer_done:
            break_stream(call, Code.STREAM_CLOSED, "HEADERS after its end")
        elif connection.dialer:
            self._on_response(call, fields, ended=bool(flags & END_STREAM))
        elif flags & END_STREAM:
            self._on_end(call)
        else:
            break_stream(call, Code.PROTOCOL_ERROR, "trailers that do not end it")

    def _on_response(self, call: Http2Call, fields: dict[str, str], *, ended: bool) -> None:
        peer = self._connection.options.peer
        status = fields.get(":status")
        if not call.head_came:
            if status is None:
                break_stream(call, Code.PROTOCOL_ERROR, "a response without a status")
                return
            if status.startswith("1") and not ended:
                return
            if fields.get("content-type") != NATIVE:
                strange = f"{peer} answered with status {status}: no worker is there, or a proxy before it"
                self._connection.outbox.reset(call, Code.CANCEL)
                call.finish(UnavailableError(strange, retry=Retry.UNKNOWN))
                return
            call.head_came = self._connection.answered = True
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
            break_stream(call, Code.PROTOCOL_ERROR, "a body that is not as long as its content-length")
        else:
            self._incoming.end(call)
