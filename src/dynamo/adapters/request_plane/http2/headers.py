"""A request and the end of a call as HTTP header fields, both ways."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgpack

from dynamo.core.errors import BadPayloadError, DynamoError, Retry, TooLargeError, WireError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.faults import decode_error, encode_error
from dynamo.core.wire.frames import Malformed

NATIVE = "application/vnd.dynamo.stream"
MAX_LIST_BYTES = 64 * 1024  # of the header fields of one message, counted as RFC 9113, section 6.5.2 says
_MAX_INT = 2**31 - 1
FIELD_COST = 32  # of that, beyond its name and value
MAX_ERROR_BYTES = 24 * 1024  # of an encoded error: its three texts may have 16 KiB each

Fields = list[tuple[str, str]]

_META = "dynamo-meta-"
_META_REST = "dynamo-meta-bin"  # what is no header field, as base64 of a MessagePack map
_META_AS_THEY_ARE = ("traceparent", "tracestate", "baggage")
_NAME = re.compile(r"[a-z0-9_.-]+\Z")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?\Z")


def request_fields(
    request: Request,
    *,
    authority: str,
    scheme: str,
    expected: tuple[int, int],
    max_message: int,
    token: str | None,
) -> Fields:
    """What opens a call, without the time left. Raises TooLargeError."""
    fields = [
        (":method", "POST"),
        (":scheme", scheme),
        (":authority", authority),
        (":path", "/" + "/".join(quote(part, safe="") for part in request.endpoint.split("."))),
        ("content-type", NATIVE),
        ("te", "trailers"),
        ("x-request-id", quote(request.request_id, safe="!#$&'()*+,/:;=?@[]")),
        ("dynamo-max-message", str(max_message)),
    ]
    if token:
        fields.append(("authorization", f"Bearer {token}"))
    if any(expected):
        fields.append(("dynamo-instance", f"{expected[0]:x}-{expected[1]:x}"))
    if request.payload is None:
        fields.append(("dynamo-first-item", "none"))
    if request.end:
        fields.append(("dynamo-input", "ended"))
    if request.attempt != 1:
        fields.append(("dynamo-attempt", str(request.attempt)))
    if request.priority:
        fields.append(("dynamo-priority", str(request.priority)))
    fields += _metadata_fields(request.metadata)
    size = sum(len(name) + len(value.encode()) + FIELD_COST for name, value in fields)
    if size > MAX_LIST_BYTES - 1024:  # room for what is added when it is sent, and by proxies
        raise TooLargeError(f"endpoint and metadata of {size} bytes are over the limit of {MAX_LIST_BYTES}")
    return fields


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


def end_fields(error: DynamoError | None, retry: Retry | None = None) -> Fields:
    """The trailers of a response."""
    if error is None:
        return [("dynamo-end", "ok")]
    body = encode_error(error, retry)
    if len(body) > MAX_ERROR_BYTES:
        shorter = type(error)(f"{str(error)[:4096]} ...")
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
