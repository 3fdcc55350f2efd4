"""Errors as HTTP status codes: what proxies and load balancers act on."""

from __future__ import annotations

from dynamo.core import errors
from dynamo.core.errors import BadPayloadError, DynamoError, RemoteError


class MethodError(BadPayloadError):
    """That is not asked for by this method, but by ``allow``."""

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class UnsupportedMediaError(BadPayloadError):
    """A body of a kind that is not read here."""


_STATUSES: tuple[tuple[type[DynamoError], int], ...] = (  # the first that fits
    (errors.UnknownEndpointError, 404),
    (errors.TooLargeError, 413),
    (errors.OverloadedError, 429),
    (errors.UnavailableError, 503),
    (errors.DeadlineError, 504),
    (MethodError, 405),
    (UnsupportedMediaError, 415),
    (errors.BadPayloadError, 400),
    (errors.WireError, 400),
    (errors.AuthError, 401),
)


def status_of(error: DynamoError) -> int:
    """500 for what a handler raised and every other class; a RemoteError may name its own."""
    if isinstance(error, RemoteError) and error.status is not None and 400 <= error.status < 600:
        return error.status
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
