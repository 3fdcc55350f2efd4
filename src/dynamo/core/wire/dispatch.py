"""What arrives on a connection, frame by frame, and what is wrong with it: sections 2 to 10 of the page."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from dynamo.core.errors import (
    AuthError,
    BadPayloadError,
    CallCancelledError,
    DrainingError,
    DynamoError,
    OverloadedError,
    Retry,
    TooLargeError,
    WireError,
)
from dynamo.core.wire import opening
from dynamo.core.wire.faults import AUTH_CODE, CODES, decode_error, encode_error
from dynamo.core.wire.frames import (
    ALLOWED_FLAGS,
    AUTH,
    BODY_SIZE,
    DEFAULT_WINDOW,
    ERROR,
    F_END,
    F_ITEM,
    F_MORE,
    F_RAW,
    FIRST_MANDATORY_TYPE,
    FROM_DIALER_ONLY,
    FROM_LISTENER_ONLY,
    HELLO,
    ITEM_COST,
    KILL,
    LAST_TYPE,
    MAGIC,
    MAX_BODY,
    MAX_CREDIT,
    MAX_STREAM_ID,
    ON_CONNECTION,
    PONG,
    Malformed,
    Type,
    header,
    map_frame,
    unpack_u32,
    unpack_u64,
)
from dynamo.core.wire.receiving import NO_ITEMS, StreamFailure
from dynamo.core.wire.sending import small_limit, too_large
from dynamo.core.wire.stream import Stream

if TYPE_CHECKING:
    from dynamo.core.wire.connection import Connection

MAX_OPENING_BODY = 4096  # of HELLO and AUTH

Handler: TypeAlias = Callable[[int, int, memoryview, bool], None]  # flags, stream, body, placed


class Dispatch:
    """Handles the frames of one connection. It raises nothing on what a peer sent."""

    __slots__ = ("_connection", "_handlers", "_rules")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rules = _RULES_OF_LISTENER if connection._dialer else _RULES_OF_DIALER
        self._handlers: tuple[Handler, ...] = (
            self._unexpected,
            self._unexpected,  # HELLO
            self._unexpected,  # AUTH
            self._open,
            self._item,
            self._end,
            self._error,
            self._stop,
            self._kill,
            self._window,
            self._ping,
            self._pong,
            self._goaway,
        )

    # Frames in general.

    def on_magic(self, found: bytes) -> None:
        if found != MAGIC:
            connection = self._connection
            hint = ""
            if found[:1] in (b"\x15", b"\x16") and found[1:2] == b"\x03":
                hint = (
                    ": it speaks TLS, so one side has certificates set (DYN_TCP_TLS_*) and the other has not"
                )
            elif found[:5] in (b"HTTP/", b"GET /", b"POST ") or found.startswith(b"PRI "):
                hint = ": it speaks HTTP"
            what = (
                f"{connection.options.peer} does not speak the wire protocol{hint} (it began with {found!r})"
            )
            connection._close(WireError(what), tell=False)

    def on_header(self, length: int, kind: int, zero: int) -> None:
        connection = self._connection
        if length > MAX_BODY or zero:
            connection._violate(_bad_header(length, zero))
        elif not connection.ready and length > MAX_OPENING_BODY and kind in (HELLO, AUTH):
            connection._violate(f"{Type(kind).name} of {length} bytes")
        elif (
            not connection._handshake.hello_read
            and kind != HELLO
            and not (kind == ERROR and connection._dialer)
        ):
            connection._violate(f"a frame of type {kind:#04x} came before HELLO")

    def on_frame(self, kind: int, flags: int, zero: int, number: int, body: memoryview, placed: bool) -> None:
        connection, length = self._connection, len(body)
        if length > MAX_BODY or zero:
            connection._violate(_bad_header(length, zero))
            return
        rule = self._rules[kind] if kind <= LAST_TYPE else None
        if rule is None:
            if kind == 0 or kind >= FIRST_MANDATORY_TYPE:
                connection._violate(f"frame type {kind:#04x} is not one that this version knows")
                return
            if kind <= LAST_TYPE:
                connection._violate(f"{Type(kind).name} is not the {_ROLES[connection._dialer]}'s to send")
                return
        else:
            bad_flags, size, on_stream = rule
            if flags & bad_flags or size not in (-1, length) or on_stream is (number == 0):
                connection._violate(
                    f"{Type(kind).name} with flags {flags:#04x}, {length} bytes, on stream {number}"
                )
                return
        if not connection.ready:
            self._opening(kind, number, body)
        elif rule is not None:
            self._handlers[kind](flags, number, body, placed)

    # The opening.

    def _opening(self, kind: int, number: int, body: memoryview) -> None:
        connection = self._connection
        self.on_header(len(body), kind, 0)
        if connection.closed:
            return
        try:
            if kind == ERROR and number == 0:
                self._told(body)
            elif kind == ERROR:
                connection._violate(f"ERROR on stream {number} came before the opening was done")
            elif not connection._handshake.hello_read:
                connection._handshake.greet(opening.decode_hello(body))
            elif kind == AUTH:
                connection._handshake.authenticate(opening.decode_auth(body))
            elif kind == HELLO:
                connection._violate("a second HELLO")
            else:
                raise AuthError(
                    "a token is asked for here (DYN_AUTH_TOKEN), and a call came before the proof of it"
                )
        except Malformed as error:
            connection._violate(f"unreadable {Type(kind).name}: {error}")
        except DynamoError as error:
            connection._close(error, tell=True, refuses=True)

    def _told(self, body: memoryview) -> None:
        """ERROR on stream 0: the peer closes, and says why."""
        connection = self._connection
        try:
            error = decode_error(body)
        except Malformed as reason:
            connection._violate(f"unreadable ERROR: {reason}")
            return
        error.args = (f"{connection.options.peer}: {error}",)  # the peer does not know how it is called here
        refused = not connection._handshake.hello_read or CODES.get(type(error)) == AUTH_CODE
        connection._close(error, tell=False, refused=refused)

    # Frames of the connection.

    def _unexpected(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        self._connection._violate("HELLO or AUTH after the opening")

    def _ping(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        self._connection._out.answer(_PONG_HEADER + body)

    def _pong(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        """It was heard, which is all."""

    def _goaway(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        connection = self._connection
        limit = unpack_u64(body)[0]
        if limit > connection._limit_id:
            connection._violate(f"GOAWAY {limit} after GOAWAY {connection._limit_id}")
            return
        connection.draining = True
        connection._limit_id = limit
        text = f"{connection.options.peer} is draining and did not take the call"
        for stream in [*connection._waiting, *connection._streams.values()]:
            if stream.id == 0 or stream.id > limit:
                stream._finish(DrainingError(text, retry=Retry.UNKNOWN if stream.answered else Retry.SAFE))

    # Frames of streams. A stream that is not there has ended, or was never opened.

    def _missing(self, kind: int, number: int) -> None:
        connection = self._connection
        if number > connection._last_id and (connection._dialer or number <= connection._limit_id):
            connection._violate(f"{Type(kind).name} on stream {number}, which was never opened")

    def _fail(self, stream: Stream, error: DynamoError) -> None:
        """Stream failure: this stream ends, the peer is told, nothing else happens."""
        connection = self._connection
        if connection._dialer:
            stream._tell(KILL)
            stream._finish(error)
        else:
            connection._out.answer(map_frame(ERROR, stream.id, encode_error(error)))
            connection._kill(stream, error)

    def _item(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        stream = self._connection._streams.get(number)
        if stream is None:
            self._missing(Type.ITEM, number)
            return
        try:
            payload = stream._receive(flags, body, placed)
            if payload is None:
                return
            if stream._first and not self._connection._dialer:
                stream._begin(payload, bool(flags & F_END))
                self._connection._accept(stream)
                return
            if stream._items is NO_ITEMS:
                stream._items = deque()
            stream._items.append(payload)
            if flags & F_END:
                stream._end_input()
            if stream.on_readable is not None:
                stream._wake_reader()
        except StreamFailure as failure:
            self._fail(stream, failure.error)

    def _end(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        stream = self._connection._streams.get(number)
        if stream is None:
            self._missing(Type.END, number)
            return
        try:
            stream._end_input()
        except StreamFailure as failure:
            self._fail(stream, failure.error)

    def _error(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        connection = self._connection
        if number == 0:
            self._told(body)
            return
        stream = connection._streams.get(number)
        if stream is None:
            self._missing(Type.ERROR, number)
            return
        try:
            error = decode_error(body)
        except Malformed as reason:
            error = WireError(f"the call ended with an ERROR that cannot be read: {reason}")
        if error.retry is Retry.SAFE and (stream.received or stream._items):
            error.retry = Retry.UNKNOWN
        stream._answered = True
        stream._finish(error)

    def _stop(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        stream = self._connection._streams.get(number)
        if stream is None:
            self._missing(Type.STOP, number)
        elif not stream.stopped:
            stream.stopped = True
            if (hook := stream.on_cancel) is not None:
                hook(False)

    def _kill(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        stream = self._connection._streams.get(number)
        if stream is None:
            self._missing(Type.KILL, number)
        else:
            self._connection._kill(stream, CallCancelledError("the caller left the call"))

    def _window(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        stream = self._connection._streams.get(number)
        if stream is None:
            self._missing(Type.WINDOW, number)
            return
        if stream._out_done and not stream._pending:
            return
        increment = unpack_u64(body)[0]
        if not 0 < increment <= MAX_CREDIT - stream._credit:
            self._fail(stream, WireError(f"WINDOW of {increment} on a credit of {stream._credit}"))
        else:
            stream._credited(increment)

    # OPEN.

    def _open(self, flags: int, number: int, body: memoryview, placed: bool) -> None:
        connection = self._connection
        if number > connection._limit_id:
            return
        if not connection._last_id < number <= MAX_STREAM_ID:
            connection._violate(f"OPEN {number} after OPEN {connection._last_id}")
            return
        connection._last_id = number
        try:
            self._take_call(flags, number, body)
        except StreamFailure as failure:
            connection._out.answer(map_frame(ERROR, number, encode_error(failure.error)))

    def _take_call(self, flags: int, number: int, body: memoryview) -> None:
        connection = self._connection
        options = connection.options
        if flags & F_MORE and flags & F_END:
            raise StreamFailure(WireError("OPEN has both MORE and END"))
        item_at = 4 + unpack_u32(body)[0] if len(body) >= 4 else 4
        if item_at > len(body) or (not flags & F_ITEM and (item_at != len(body) or flags & (F_MORE | F_RAW))):
            raise StreamFailure(BadPayloadError("OPEN is not a head and, with the flag ITEM, an item"))
        if item_at - 4 > options.max_head_bytes:
            what = (
                f"endpoint and metadata of {item_at - 4} bytes are over the limit of {options.max_head_bytes}"
            )
            raise StreamFailure(TooLargeError(what))
        if len(connection._streams) >= options.max_streams:
            raise StreamFailure(OverloadedError(f"{options.max_streams} calls are open on this connection"))
        try:
            request, window = opening.decode_head(body[4:item_at], connection._hello.window)
        except Malformed as reason:
            raise StreamFailure(BadPayloadError(f"unreadable OPEN: {reason}")) from reason
        request.end = bool(flags & F_END)
        stream = connection._stream_type(connection, request)
        stream.id = number
        stream._credit = stream._window_out = window
        stream._small = stream._half = small_limit(window, connection._max_send)
        stream._window = options.window_bytes
        stream._give_at = stream._window // 2
        stream._in_credit = max(stream._window, DEFAULT_WINDOW)
        if flags & F_MORE:
            stream._first = True
            stream._receive(flags, body[item_at:])
        elif flags & F_ITEM:
            item = bytes(body[item_at:])
            if len(item) > connection._max_receive:
                raise StreamFailure(too_large(len(item), connection._max_receive))
            stream._spend(len(item) + ITEM_COST)
            request.payload = memoryview(item) if flags & F_RAW else item
        if not request.end and not stream._secure_input():
            what = "no memory is left here for the input of another call (DYN_RECEIVE_BUDGET_BYTES)"
            raise StreamFailure(OverloadedError(what))
        connection._streams[number] = stream
        if not stream._first:
            stream._begin(request.payload, request.end)
            connection._accept(stream)


def _bad_header(length: int, zero: int) -> str:
    return (
        f"a frame of {length} bytes (at most {MAX_BODY})"
        if length > MAX_BODY
        else f"a header with {zero} for zero"
    )


def _rules(forbidden: frozenset[int]) -> tuple[tuple[int, int, bool | None] | None, ...]:
    """By type, for one sender: flags not to be set, size of the body (-1: any), on a stream (None: both)."""
    rules: list[tuple[int, int, bool | None] | None] = [None]
    for kind in Type:
        on_stream: bool | None = kind not in ON_CONNECTION
        if kind is Type.ERROR:
            on_stream = None if forbidden is FROM_DIALER_ONLY else False
        rule = (0xFF & ~ALLOWED_FLAGS[kind], BODY_SIZE[kind], on_stream)
        rules.append(None if kind in forbidden else rule)
    return tuple(rules)


_RULES_OF_DIALER = _rules(FROM_LISTENER_ONLY)
_RULES_OF_LISTENER = _rules(FROM_DIALER_ONLY)
_ROLES = ("dialer", "listener")
_PONG_HEADER = header(PONG, 0, 0, 8)
