"""Errors on the wire: numeric codes and the classes of ``dynamo.core.errors``, in one table."""

from __future__ import annotations

from typing import Any

from dynamo.core import errors
from dynamo.core.errors import DynamoError, RemoteError, Retry, StreamBrokenError
from dynamo.core.wire.frames import RETRIES, RETRY_NUMBERS, Malformed
from dynamo.core.wire.packing import pack, text, unpack_map, whole

MAX_TEXT = 16 * 1024  # bytes of one text that we send

CLASSES: tuple[type[DynamoError], ...] = (
    errors.DynamoError,
    errors.WireError,
    errors.AuthError,
    errors.RemoteError,
    errors.UnavailableError,
    errors.NoInstancesError,
    errors.DrainingError,
    errors.OverloadedError,
    errors.UnknownEndpointError,
    errors.WrongInstanceError,
    errors.DeadlineError,
    errors.CallCancelledError,
    errors.StreamBrokenError,
    errors.CardinalityError,
    errors.TooLargeError,
    errors.BadPayloadError,
    errors.EncodeError,
    errors.ConfigError,
    errors.UnsupportedError,
    errors.ConflictError,
    errors.ClosedError,
    errors.LeaseLostError,
    errors.MissingExtraError,
)
"""By code. Numbers are never reused; new ones go to the end."""

CODES: dict[type[DynamoError], int] = {kind: code for code, kind in enumerate(CLASSES)}
AUTH_CODE = CODES[errors.AuthError]


def encode_error(error: DynamoError, retry: Retry | None = None) -> bytes:
    """The body of an ERROR frame; ``retry`` instead of the error's own."""
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    body: dict[int, Any] = {0: code, 1: RETRY_NUMBERS[retry or error.retry]}
    if message := str(error):
        body[2] = _cut(message)
    if error.remote:
        body[3] = True
    if isinstance(error, RemoteError):
        if error.type_name:
            body[4] = _cut(str(error.type_name))
        if type(error.status) is int and -(2**31) <= error.status < 2**31:
            body[5] = error.status
        if error.detail is not None:
            body[6] = _cut(str(error.detail))
    elif isinstance(error, StreamBrokenError) and error.received:
        body[7] = min(error.received, 2**53 - 1)
    return pack(body)


def decode_error(body: bytes | memoryview) -> DynamoError:
    """What the peer reported. Raises Malformed."""
    fields = unpack_map(body)
    code = whole(fields, 0, "code", 0, 2**32 - 1)
    if code is None:
        raise Malformed("ERROR without a code")
    retry = RETRIES[whole(fields, 1, "retry", 0, 2, default=2)]
    message = text(fields, 2, "message", default="")
    remote = fields.get(3, False)
    if type(remote) is not bool:
        raise Malformed("remote: expected a boolean")
    type_name = text(fields, 4, "type_name", default="")
    status = whole(fields, 5, "status", -(2**31), 2**31 - 1)
    detail = text(fields, 6, "detail")
    received = whole(fields, 7, "received", 0, 2**53 - 1, default=0)
    kind: type[DynamoError] = RemoteError if remote else DynamoError
    if code < len(CLASSES):
        kind = CLASSES[code]
    if kind is RemoteError:
        return RemoteError(
            message, type_name=type_name, status=status, detail=detail, retry=retry, remote=remote
        )
    if kind is StreamBrokenError:
        return StreamBrokenError(message, received=received, retry=retry, remote=remote)
    return kind(message, retry=retry, remote=remote)


def _cut(value: str) -> str:
    """At most MAX_TEXT bytes of UTF-8; lone surrogates, which have none, are spelt out."""
    if len(value) <= MAX_TEXT // 4 and value.isascii():
        return value
    return value.encode(errors="backslashreplace")[:MAX_TEXT].decode(errors="ignore")
