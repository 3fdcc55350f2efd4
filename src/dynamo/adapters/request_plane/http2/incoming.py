"""The worker's side: header fields become requests, and requests with their first item become calls."""

from __future__ import annotations

import hmac
from functools import partial
from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2 import headers
from dynamo.adapters.request_plane.http2.frames import Code, Violation, reset_frame
from dynamo.adapters.request_plane.http2.headers import NATIVE
from dynamo.adapters.request_plane.http2.json_call import JSON, JsonCall
from dynamo.adapters.request_plane.http2.settings import MAX_STREAMS
from dynamo.adapters.request_plane.http2.statuses import MethodError, UnsupportedMediaError
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import (
    AuthError,
    BadPayloadError,
    DrainingError,
    DynamoError,
    OverloadedError,
    Retry,
    WrongInstanceError,
)
from dynamo.core.ports.request_plane import Request

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection


HELD_SHARE = 8  # one byte in so many of the budget is for what one peer began to send and did not finish


class Incoming:
    """Calls are ``held`` until their first item is whole, and accepted then."""

    def __init__(self, connection: Http2Connection) -> None:
        self._connection = connection

    def open(self, stream: int, fields: dict[str, str] | None, *, ended: bool) -> None:
        """A message that opens a stream; without ``fields`` it is none that HTTP knows."""
        connection = self._connection
        connection.last_id = stream
        connection.floods.opened()
        if len(connection.calls) >= MAX_STREAMS:
            raise Violation(Code.PROTOCOL_ERROR, f"more than {MAX_STREAMS} streams at a time")
        if fields is None or not _is_request(fields):
            connection.outbox.put(reset_frame(stream, Code.PROTOCOL_ERROR))
            connection.floods.spend()
            return
        native = fields.get("content-type") == NATIVE and fields[":method"] == "POST"
        error: DynamoError | None = None
        try:
            request = headers.read_request(fields)
            error = self._reason_to_refuse(fields, native)
        except DynamoError as problem:
            request, error = Request(endpoint="", request_id=""), problem
        call = (
            Http2Call(connection, request, connection.first_window)
            if native
            else JsonCall(connection, request, connection.first_window, fields)
        )
        call.id = stream
        call.peer_done = ended
        call.credit = connection.peer.window
        connection.calls[stream] = call
        if error is None and not ended:
            budget = connection.budget
            if connection.held * call.window < budget.total // HELD_SHARE and budget.reserve(call.window):
                call.reserved = call.window
            else:
                full = "no memory is left for the input of a call (DYN_RECEIVE_BUDGET_BYTES)"
                error = OverloadedError(full)
        if error is not None:
            _turn_away(call, error)
            connection.outbox.emit(call)  # it does not count as a call any more
            return
        call.max_send = min(call.max_send, headers.read_limit(fields))
        call.held = True
        connection.held += 1
        if native and fields.get("dynamo-first-item") == "none":
            self._accept(call)
        elif native:
            call.on_first = partial(self._accept_first, call)
        if ended:
            self.end(call)

    def _reason_to_refuse(self, fields: dict[str, str], native: bool) -> DynamoError | None:
        connection = self._connection
        options = connection.options
        if options.token:
            kind, _, token = fields.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(token.encode(), options.token.encode()):
                where = f"{fields[':scheme']}://{fields.get(':authority', '')}"
                return AuthError(
                    f"{where:.300} wants a bearer token; set DYN_AUTH_TOKEN to the same on both sides"
                )
        if connection.goaways == 2:
            return DrainingError("this worker is draining and takes no new calls")
        if not native:
            kind, method = fields.get("content-type", "").partition(";")[0].strip(), fields[":method"]
            path = fields.get(":path", "")
            if path == "/" and method != "GET":
                return MethodError(f"{method} /: expected GET, which lists what is served here", "GET")
            if path != "/" and method != "POST":
                return MethodError(f"{method} {path:.80}: expected POST", "POST")
            if path == "/":
                return None
            if kind.lower() != JSON:
                return UnsupportedMediaError(f"content-type {kind!r:.80}: expected {JSON}")
        if "dynamo-instance" not in fields:
            return None
        instance_id, incarnation = headers.read_expected(fields)
        if instance_id in (0, options.instance_id) and incarnation in (0, options.incarnation):
            return None
        return WrongInstanceError(
            f"another instance lives here: {options.instance_id:x}-{options.incarnation:x}, "
            f"not {instance_id:x}-{incarnation:x}"
        )

    def on_data(self, call: Http2Call, body: bytes) -> None:
        """Raises what is wrong with it."""
        if call.killed or (call.failure is not None and not isinstance(call, JsonCall)):
            return
        call.arrived(body)
        if call.held and call.failure is None and (excess := call.excess):
            if not self._connection.budget.grant_now(excess):
                raise OverloadedError("no memory is left for large items (DYN_RECEIVE_BUDGET_BYTES)")
            call.granted(excess)

    def end(self, call: Http2Call) -> None:
        """Its side of the stream is closed: what was to come is here, or never will be."""
        connection = self._connection
        if not call.held or call.failure is not None:
            call.end_input(None)
            if call.queued:
                connection.outbox.brings(call, 0)  # it was held back
        elif isinstance(call, JsonCall):
            try:
                self._accept_first(call)
            except BadPayloadError as error:
                call.fail(error)
        else:
            call.fail(BadPayloadError("the request ended before its first item was whole"))

    def _accept_first(self, call: Http2Call) -> None:
        """Its first item is whole. Raises BadPayloadError."""
        call.request.payload = call.take_first()
        self._accept(call)

    def _accept(self, call: Http2Call) -> None:
        connection = self._connection
        call.held = False
        connection.held -= 1
        if call.request.end:
            call.end_input(None)
        else:
            beyond = connection.options.window_bytes - call.window
            if beyond > 0 and connection.budget.reserve(beyond):
                call.reserved += beyond
                call.widen(call.window + beyond)
        if connection.accept is not None:
            connection.accept(call)


def _turn_away(call: Http2Call, error: DynamoError) -> None:
    """Before its handler begins, which makes it safe to try again what may go better then."""
    if error.retry is Retry.SAFE:
        call.refuse(error)
    else:
        call.fail(error)


def _is_request(fields: dict[str, str]) -> bool:
    """RFC 9113, section 8.3.1; of CONNECT, section 8.5."""
    if ":status" in fields:
        return False
    if fields.get(":method") == "CONNECT":
        return ":authority" in fields
    return all(fields.get(name) for name in (":method", ":scheme", ":path"))
