"""What h2 says has happened becomes calls, items and ends."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

import h2.errors
import h2.events
import h2.settings

from dynamo.adapters.request_plane.http2 import headers
from dynamo.adapters.request_plane.http2.json_call import JSON, JsonCall
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import (
    AuthError,
    BadPayloadError,
    CallCancelledError,
    DrainingError,
    DynamoError,
    OverloadedError,
    Retry,
    UnavailableError,
    WireError,
    WrongInstanceError,
)
from dynamo.core.ports.request_plane import Request

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection

MAX_TABLE_BYTES = 4096  # of fields that HPACK remembers for us, however much the peer would
_CODES = h2.errors.ErrorCodes


class Dispatch:
    """The receiving half of one connection."""

    def __init__(self, connection: Http2Connection) -> None:
        self._connection = connection

    def on_event(self, event: h2.events.Event) -> None:
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
        connection = self._connection
        code = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
        encoder = connection.h2.encoder
        if encoder.header_table_size > MAX_TABLE_BYTES:  # it is searched for each field, and kept
            encoder.header_table_size = MAX_TABLE_BYTES
        window = connection.h2.remote_settings.initial_window_size
        if (not connection.ready or code in event.changed_settings) and window != connection.peer_window:
            difference, connection.peer_window = window - connection.peer_window, window
            for call in [*connection.calls.values(), *connection.waiting]:
                call.credited(difference)
                connection.wants_to_send(call)
        if not connection.ready:
            connection.ready = True
            if connection.on_ready is not None:
                connection.on_ready()
                connection.on_ready = None
        connection.busy.update(dict.fromkeys(connection.waiting))

    def _on_window(self, event: h2.events.WindowUpdated) -> None:
        connection = self._connection
        if event.stream_id:
            if (call := connection.calls.get(event.stream_id)) is not None:
                call.credited(event.delta or 0)
                if call.queue or call.out_done:
                    connection.wants_to_send(call)
        else:
            connection.busy.update(connection.blocked)
            connection.blocked.clear()

    def _on_request(self, event: h2.events.RequestReceived) -> None:
        connection = self._connection
        fields = _texts(event.headers)
        connection.last_id = max(connection.last_id, event.stream_id)
        error: DynamoError | None = None
        try:
            request = headers.read_request(fields)
            error = self._reason_to_refuse(fields)
        except DynamoError as problem:
            request, error = Request(endpoint="", request_id=""), problem
        native = fields.get("content-type", "") == headers.NATIVE
        call = Http2Call(connection, request) if native else JsonCall(connection, request, fields)
        call.id = event.stream_id
        call.credit = connection.h2.remote_settings.initial_window_size
        if error is None and not connection.budget.reserve(call.window):
            error = OverloadedError("no memory is left for the input of a call (DYN_RECEIVE_BUDGET_BYTES)")
        elif error is None:
            call.reserved = call.window
            call.max_send = min(call.max_send, headers.read_limit(fields))
        connection.calls[call.id] = call
        if error is not None:
            call.refuse(error)
            connection.emit(call)
        elif not native:
            connection.unaccepted.add(call)
            if event.stream_ended is not None:
                self._accept_whole(call)
        elif fields.get("dynamo-first-item") == "none":
            if request.end:
                call.end_input(None)
            self._take(call)
        else:
            connection.unaccepted.add(call)
            call.on_first = self._accept_first

    def _reason_to_refuse(self, fields: dict[str, str]) -> DynamoError | None:
        connection = self._connection
        options = connection.options
        if options.token:
            kind, _, token = fields.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(token.encode(), options.token.encode()):
                return AuthError("this worker wants a bearer token, the one of its DYN_AUTH_TOKEN")
        if connection.goaways == 2:
            return DrainingError("this worker is draining and takes no new calls")
        kind, method = fields.get("content-type", "").partition(";")[0], fields[":method"]
        if method != "POST" or kind not in (headers.NATIVE, JSON):
            return BadPayloadError(f"{method} with content-type {kind!r:.80}: expected POST with {JSON}")
        instance_id, incarnation = headers.read_expected(fields)
        if instance_id in (0, options.instance_id) and incarnation in (0, options.incarnation):
            return None
        return WrongInstanceError(
            f"another instance lives here: {options.instance_id:x}-{options.incarnation:x}, "
            f"not {instance_id:x}-{incarnation:x}"
        )

    def _on_data(self, event: h2.events.DataReceived) -> None:
        connection = self._connection
        length, data = event.flow_controlled_length or 0, event.data or b""
        connection.owed += length
        call = connection.calls.get(event.stream_id)
        if call is None or call.killed:
            return
        if padding := length - len(data):
            connection.give_credit(call, padding)
        try:
            call.arrived(data)
        except DynamoError as error:
            self._spoilt(call, error)
            return
        if call in connection.unaccepted and (excess := call.excess) and not call.out_done:
            if connection.budget.grant_now(excess):
                call.granted(excess)
            else:
                self._refuse(
                    call, OverloadedError("no memory is left for large items (DYN_RECEIVE_BUDGET_BYTES)")
                )

    def _accept_first(self, call: Http2Call) -> None:
        """Its first item is whole."""
        connection = self._connection
        connection.unaccepted.discard(call)
        call.take_first()
        if call.request.end:
            call.end_input(None)
        self._take(call)

    def _accept_whole(self, call: Http2Call) -> None:
        """Nothing more comes, and its body is the first item."""
        try:
            self._accept_first(call)
        except DynamoError as error:
            call.refuse(error)

    def _refuse(self, call: Http2Call, error: DynamoError) -> None:
        """What comes of it until it is told will not be the first item any more."""
        self._connection.unaccepted.discard(call)
        call.refuse(error)

    def _take(self, call: Http2Call) -> None:
        connection = self._connection
        if connection.accept is not None:
            connection.accept(call)

    def _spoilt(self, call: Http2Call, error: DynamoError) -> None:
        """What arrived ends this call, and nothing else."""
        connection = self._connection
        if connection.dialer:
            connection.reset(call, _CODES.CANCEL)
            call.finish(error)
        elif call in connection.unaccepted:
            self._refuse(call, error)
        else:
            call.fail(error)
            call.end_input(error)

    def _on_fields(self, event: h2.events.ResponseReceived | h2.events.TrailersReceived) -> None:
        connection = self._connection
        call = connection.calls.get(event.stream_id)
        if call is None or not connection.dialer:
            return
        fields = _texts(event.headers)
        call.head_came()
        if "dynamo-max-message" in fields:
            call.max_send = min(call.max_send, headers.read_limit(fields))
        if event.stream_ended is None:
            return
        error: DynamoError | None
        try:
            error = headers.read_end(fields)
        except WireError as problem:
            status = fields.get(":status")
            error = (
                problem
                if status is None
                else UnavailableError(f"status {status} from {connection.options.peer}")
            )
        if error is not None and error.retry is Retry.SAFE and (call.received or call.buffered):
            error.retry = Retry.UNKNOWN  # a handler had started
        call.finish(error)

    def _on_stream_ended(self, event: h2.events.StreamEnded) -> None:
        connection = self._connection
        if (call := connection.calls.get(event.stream_id)) is None:
            return
        if connection.dialer:
            call.finish(call.broken(f"{connection.options.peer} ended the response without trailers"))
            return
        call.peer_done = True
        if call.queue:  # it was held back
            connection.wants_to_send(call)
        if call in connection.unaccepted and isinstance(call, JsonCall):
            self._accept_whole(call)
            return
        call.end_input(None)
        if call in connection.unaccepted:
            connection.unaccepted.discard(call)
            if call.error is None:
                self._take(call)
            else:
                call.refuse(call.error)

    def _on_reset(self, event: h2.events.StreamReset) -> None:
        connection = self._connection
        if (call := connection.calls.get(event.stream_id)) is None:
            return
        if connection.dialer:
            call.finish(
                call.broken(f"{connection.options.peer} reset the stream with error {event.error_code}")
            )
        elif event.error_code == _CODES.CANCEL:
            call.break_off(CallCancelledError("the call was killed by its caller"))
        else:
            call.break_off(call.broken(f"the caller reset the stream with error {event.error_code}"))


def _texts(fields: Iterable[tuple[bytes | str, bytes | str]] | None) -> dict[str, str]:
    """Any bytes may stand in a field; h2 would raise UnicodeDecodeError for some, in the middle of a read."""
    return {_text(name): _text(value) for name, value in fields or ()}


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")
