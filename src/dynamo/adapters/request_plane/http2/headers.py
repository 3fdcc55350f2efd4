"""A request and the end of a call as HTTP header fields, both ways."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from time import monotonic
from typing import Any
from urllib.parse import quote, unquote

import msgpack
from attrs import define

from dynamo.adapters.request_plane.http2.fields import (
    FIELD_COST,
    FieldEncoder,
    Fields,
    Recurring,
    literal,
)
from dynamo.adapters.request_plane.http2.settings import MAX_LIST_BYTES
from dynamo.core.errors import BadPayloadError, DynamoError, EncodeError, Retry, TooLargeError, WireError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.faults import decode_error, encode_error
from dynamo.core.wire.frames import Malformed
from dynamo.core.wire.opening import Options

NATIVE = "application/vnd.dynamo.stream"
LINES = "application/x-ndjson"
EVENTS = "text/event-stream"
MOST_KINDS = 1024  # of calls, by endpoint, that a connection keeps the fields of
END_BYTES = 192  # of trailers, beside the error
MAX_ERROR_BYTES = 24 * 1024  # of an encoded error: its three texts may have 16 KiB each
_MAX_INT = 2**31 - 1

_META = "dynamo-meta-"
_META_REST = "dynamo-meta-bin"  # what is no header field, as base64 of a MessagePack map
_META_AS_THEY_ARE = ("traceparent", "tracestate", "baggage")
_NAME = re.compile(r"[a-z0-9_.-]+\Z")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?\Z")


@define
class Opening:
    """What opens a call: fields as they are on all calls of this kind, and what is this one's own."""

    recurring: Recurring
    varying: bytes
    expires_at: float | None  # in monotonic time

    def block(self, encoder: FieldEncoder) -> bytes:
        block = encoder.encode(self.recurring) + self.varying
        if self.expires_at is not None:
            block += literal("dynamo-timeout", f"{max(self.expires_at - monotonic(), 0.0):.6f}")
        return block


class Openings:
    """Of the calls of one connection."""

    def __init__(self, scheme: str, options: Options) -> None:
        expected = options.expected_instance_id, options.expected_incarnation
        self._first: Fields = [
            (":method", "POST"),
            (":scheme", scheme),
            (":authority", options.peer.partition("://")[2]),
        ]
        self._common: Fields = [
            ("content-type", NATIVE),
            ("te", "trailers"),
            ("dynamo-max-message", str(options.max_message_bytes)),
        ]
        if any(expected):
            self._common.append(("dynamo-instance", f"{expected[0]:x}-{expected[1]:x}"))
        if options.token:
            self._common.append(("authorization", f"Bearer {options.token}"))
        self._known: dict[tuple[str, bool, bool], Recurring] = {}

    def of(self, request: Request, most: float) -> Opening:
        """Raises TooLargeError for what is over ``most``, the peer's limit, or ours, and EncodeError."""
        try:
            return self._opening(request, most)
        except (TypeError, UnicodeError) as error:
            raise EncodeError(f"the metadata of the call cannot be sent: {error}") from error

    def _opening(self, request: Request, most: float) -> Opening:
        key = request.endpoint, request.payload is None, request.end
        recurring = self._known.get(key)
        if recurring is None:
            if len(self._known) >= MOST_KINDS:
                self._known.clear()
            recurring = self._known[key] = self._recurring(*key)
        varying = [literal("x-request-id", quote(request.request_id, safe="!#$&'()*+,/:;=?@[]"))]
        if request.attempt != 1:
            varying.append(literal("dynamo-attempt", str(request.attempt)))
        if request.priority:
            varying.append(literal("dynamo-priority", str(request.priority)))
        if request.metadata:
            varying += [literal(name, value) for name, value in _metadata_fields(request.metadata)]
        own = b"".join(varying)
        size = recurring.size + len(own) + FIELD_COST * len(varying)
        limit = int(min(most, MAX_LIST_BYTES))
        limit -= min(1024, limit // 8)  # room for what is added when it is sent, and by proxies
        if size > limit:
            raise TooLargeError(f"endpoint and metadata of {size} bytes are over the limit of {limit}")
        timeout_s = request.timeout_s
        return Opening(recurring, own, None if timeout_s is None else monotonic() + timeout_s)

    def _recurring(self, endpoint: str, empty: bool, end: bool) -> Recurring:
        path = "/".join(quote(part, safe="") for part in endpoint.split("."))
        fields = [*self._first, (":path", f"/{path}"), *self._common]
        if empty:
            fields.append(("dynamo-first-item", "none"))
        if end:
            fields.append(("dynamo-input", "ended"))
        return Recurring(fields)


def read_request(fields: Mapping[str, str]) -> Request:
    """Raises BadPayloadError for what is no such request."""
    path = fields.get(":path", "")  # CONNECT has none
    parts = [unquote(part) for part in path.partition("?")[0].strip("/").split("/")]
    timeout_s = _number(fields, "dynamo-timeout")
    return Request(
        endpoint=".".join(parts),
        request_id=unquote(fields.get("x-request-id", "")),
        end="dynamo-input" in fields,
        attempt=_whole(fields, "dynamo-attempt", 1, least=1),
        timeout_s=timeout_s,
        metadata=_metadata(fields),
        priority=_whole(fields, "dynamo-priority", 0, least=-_MAX_INT),
    )


def read_expected(fields: Mapping[str, str]) -> tuple[int, int]:
    """Instance id and incarnation that the caller wants, 0 for any. Raises BadPayloadError."""
    value = fields.get("dynamo-instance", "0")
    instance_id, _, incarnation = value.partition("-")
    try:
        return int(instance_id, 16), int(incarnation or "0", 16)
    except ValueError:
        raise BadPayloadError(f"dynamo-instance: {value!r:.60} is not ID or ID-INCARNATION in hex") from None


def read_limit(fields: Mapping[str, str]) -> float:
    """How large an item may be for who sent these fields; what is no size says nothing."""
    value = fields.get("dynamo-max-message", "")
    return int(value) if value.isdecimal() and len(value) < 20 else math.inf


def end_fields(error: DynamoError | None, retry: Retry | None = None, most: float = MAX_LIST_BYTES) -> Fields:
    """The trailers of a response to a peer that takes ``most`` bytes of fields; a long message is cut."""
    if error is None:
        return [("dynamo-end", "ok")]
    body = encode_error(error, retry)
    limit = int(min(MAX_ERROR_BYTES, (most - END_BYTES) * 3 / 4))  # base64 makes four bytes of three
    if len(body) > limit:
        shorter = type(error)(f"{str(error)[: max(0, min(4096, limit // 4 - 32))]} ...")
        shorter.remote, shorter.retry = error.remote, error.retry
        body = encode_error(shorter, retry)
    return [
        ("dynamo-end", type(error).__name__),
        ("dynamo-error", base64.urlsafe_b64encode(body).decode()),
    ]


def read_end(fields: Mapping[str, str]) -> DynamoError | None:
    """What the trailers say. Raises WireError where they are none of ours."""
    if fields.get("dynamo-end") == "ok":
        return None
    try:
        return decode_error(_unbase64(fields["dynamo-error"]))
    except (KeyError, ValueError, Malformed) as error:
        raise WireError("the response ended without dynamo-end: ok or dynamo-error") from error


def _metadata_fields(metadata: Mapping[str, str]) -> Fields:
    fields: Fields = []
    rest: dict[str, str] = {}
    for key, value in metadata.items():
        if not _VALUE.match(value):
            rest[key] = value
        elif key in _META_AS_THEY_ARE:
            fields.append((key, value))
        elif _NAME.match(key) and key != "bin":
            fields.append((_META + key, value))
        else:
            rest[key] = value
    if rest:
        packed: Any = msgpack.packb(rest)
        fields.append((_META_REST, base64.urlsafe_b64encode(packed).decode()))
    return fields


def _metadata(fields: Mapping[str, str]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for name, value in fields.items():
        if name in _META_AS_THEY_ARE:
            metadata[name] = value
        elif name == _META_REST:
            try:
                rest = msgpack.unpackb(_unbase64(value))
            except Exception as error:  # msgpack raises classes of many kinds
                raise BadPayloadError(f"{_META_REST} is not base64 of MessagePack") from error
            if type(rest) is not dict or not all(type(k) is str and type(v) is str for k, v in rest.items()):
                raise BadPayloadError(f"{_META_REST} is not a map of texts")
            metadata |= rest
        elif name.startswith(_META):
            metadata[name[len(_META) :]] = value
    return metadata


def _unbase64(value: str) -> bytes:
    return base64.b64decode(value.encode(), altchars=b"-_", validate=True)


def _number(fields: Mapping[str, str], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadPayloadError(f"{name}: expected a number, got {value!r:.40}")
    return number


def _whole(fields: Mapping[str, str], name: str, otherwise: int, *, least: int) -> int:
    number = _number(fields, name)
    if number is None:
        return otherwise
    if not least <= number <= _MAX_INT:
        raise BadPayloadError(f"{name}: {fields[name]!r:.40} is not from {least} to {_MAX_INT}")
    return int(number)
