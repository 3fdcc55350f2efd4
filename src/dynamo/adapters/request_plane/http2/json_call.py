"""A call from outside: JSON in, lines of JSON or server-sent events out, told apart by status codes."""

from __future__ import annotations

import base64
import json
import math
from typing import TYPE_CHECKING, Any

import msgpack

from dynamo.adapters.request_plane.http2.fields import FieldEncoder, Fields
from dynamo.adapters.request_plane.http2.headers import EVENTS
from dynamo.adapters.request_plane.http2.statuses import MethodError, status_of
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import BadPayloadError, DynamoError, EncodeError, OverloadedError, Retry
from dynamo.core.ports.request_plane import Payload, Request
from dynamo.core.wire.sending import too_large

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection

JSON = "application/json"
PROBLEM = "application/problem+json"  # RFC 9457
SHORT_BYTES = 16 * 1024  # a body that is not worth a reset


class JsonCall(Http2Call):
    """The worker's end of a call whose caller speaks JSON: the whole body is the one item of its input."""

    def __init__(
        self, connection: Http2Connection, request: Request, window: int, fields: dict[str, str]
    ) -> None:
        super().__init__(connection, request, window)
        self._events = EVENTS in fields.get("accept", "")
        self._asks_what_is_served = fields.get(":method") == "GET"
        self._wants_no_body = fields.get(":method") == "HEAD"
        self._limit = connection.options.max_message_bytes
        length = fields.get("content-length", "")
        self._expected = int(length) if length.isdecimal() and len(length) < 20 else None
        self._body = bytearray()
        self._head: Fields | None = None  # of a problem
        self._item_sent = False

    def put(self, payload: Payload, size: int, flags: int) -> None:
        text = as_json(payload)
        self._item_sent = True
        self._write(text)

    def _write(self, text: bytes, kind: bytes = b"") -> None:
        self._tell(kind + b"data: " + text + b"\n\n" if self._events else text + b"\n")

    @property
    def holds_back(self) -> bool:
        """Refused while its short body is on the way: curl 7.88, told so while it sends, may not read why."""
        if self._head is None or self.peer_done:
            return False
        return max(len(self._body), self._expected or 0) <= SHORT_BYTES

    def arrived(self, data: bytes) -> None:
        self._body += data
        if self._head is not None:
            if not self.holds_back:
                self._wants_to_send(0)
            return
        size = len(self._body)
        if (least := max(size, self._expected or 0)) > self._limit:
            raise too_large(least, self._limit)
        if self._expected is not None:
            needed = self._expected
        else:
            needed = self._limit if 2 * size > self.window else 0
        if not self.granted_bytes and (excess := needed - self.window) > 0:
            if not self.connection.budget.grant_now(excess):
                raise OverloadedError("no memory is left for large bodies (DYN_RECEIVE_BUDGET_BYTES)")
            self.granted(excess)

    @property
    def is_whole(self) -> bool:
        return self.failure is not None or self._expected in (None, len(self._body))

    def take_first(self) -> Payload | None:
        """The body is here. Raises BadPayloadError."""
        self.request.end = True
        if self._asks_what_is_served:
            return None
        try:
            packed: Any = msgpack.packb(json.loads(self._body, parse_constant=_no_constant))
        except (ValueError, OverflowError, RecursionError) as error:
            raise BadPayloadError(f"the body is not JSON that can be passed on: {error}") from error
        self._body.clear()
        return bytes(packed)

    def _fail(self, error: DynamoError, retry: Retry | None) -> None:
        if self.out_done:
            return
        shown = problem_of(error)
        if self._item_sent:
            self._write(json.dumps({"error": shown}).encode(), b"event: error\n")
        else:
            body = json.dumps(shown).encode() + b"\n"
            allow = error.allow if isinstance(error, MethodError) else ""
            self._head = problem_head(shown["status"], len(body), allow)
            if not self._wants_no_body:
                self._tell(body)
        super()._fail(error, retry)

    def head(self, encoder: FieldEncoder) -> bytes:
        if self._head is not None:
            return encoder.encode_once(self._head)
        if self._asks_what_is_served:
            return encoder.encode_once([(":status", "200"), ("content-type", JSON)])
        return encoder.encode(self.connection.event_head if self._events else self.connection.line_head)


def problem_head(status: int, length: int, allow: str = "") -> Fields:
    """What stands before the description of a problem."""
    fields = [(":status", str(status)), ("content-type", PROBLEM), ("content-length", str(length))]
    if status in (429, 503):
        fields.append(("retry-after", "1"))
    if allow:
        fields.append(("allow", allow))
    if status == 401:
        fields.append(("www-authenticate", "Bearer"))
    return fields


def problem_of(error: DynamoError) -> dict[str, Any]:
    """An error as RFC 9457 describes problems; ``type_name`` is what a handler raised."""
    shown: dict[str, Any] = {
        "title": type(error).__name__,
        "status": status_of(error),
        "detail": error.message,
    }
    if type_name := getattr(error, "type_name", ""):
        shown["type_name"] = type_name
    return shown


def as_json(payload: Payload) -> bytes:
    """An item as one line of JSON; what JSON has no word for, as base64 or as text. Raises EncodeError."""
    if isinstance(payload, memoryview):
        return json.dumps(base64.b64encode(payload).decode()).encode()
    try:
        value = _finite(msgpack.unpackb(payload, strict_map_key=False))
        text = json.dumps(value, ensure_ascii=False, default=_shown, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:  # a list as a key, or too deep
        raise EncodeError(f"an item cannot be told in JSON: {error}") from error
    return text.encode(errors="replace")


def _finite(value: Any) -> Any:
    if type(value) is float and not math.isfinite(value):
        return None
    if type(value) is list:
        return [_finite(item) for item in value]
    if type(value) is dict:
        return {k if type(k) is str else str(k): _finite(item) for k, item in value.items()}
    return value


def _shown(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
