"""Failures as an HTTP client reads them: a status and ``application/problem+json`` (RFC 9457).

======  ==========================================================================================
400     the body is no JSON, does not fit the method, or the method raised BadPayloadError itself
404     no such route; ``routes`` lists those there are
405     another HTTP method; with ``Allow``
406     no form that ``Accept`` leaves can be given
408     the body did not arrive in time
413     the body is larger than the limit
415     the body is not announced as JSON
429     overloaded, with ``Retry-After``: here, or a service behind this one
500     the method failed; why is in the log, under the request id
502     a service behind this one failed, or vanished in mid-answer
503     draining, or nobody serves what is needed; with ``Retry-After``
504     the deadline passed
======  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from attrs import Factory, frozen

from dynamo.core.errors import (
    BadPayloadError,
    CardinalityError,
    ClosedError,
    DeadlineError,
    DynamoError,
    OverloadedError,
    StreamBrokenError,
    UnavailableError,
    WireError,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


@frozen(kw_only=True)
class Problem:
    """``members`` are what RFC 9457 calls extension members."""

    status: int
    detail: str
    headers: Mapping[str, str] = Factory(dict)
    members: Mapping[str, Any] = Factory(dict)

    def document(self, request_id: str) -> dict[str, Any]:
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.members,
            "request_id": request_id,
        }


class Refusal(Exception):
    """A request that is answered with a problem instead."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(status=status, detail=detail, headers=headers or {}, members=members or {})


def problem_of(error: BaseException, endpoint: str) -> Problem:
    """What a client is told of an error that a method raised.

    Texts of our own errors about what was called and cannot be had are passed on. Those of what broke hold
    addresses, and those of other exceptions, here or in a service behind, anything: they stay in the log.
    """
    if isinstance(error, Refusal):
        return error.problem
    kind, retry = type(error).__name__, {"Retry-After": str(RETRY_AFTER_S)}
    members = {"error": kind}
    match error:
        case BadPayloadError() if not error.remote and error.__cause__ is None:
            return Problem(status=400, detail=str(error), members=members)
        case OverloadedError():
            return Problem(status=429, detail=str(error), headers=retry, members=members)
        case UnavailableError() | ClosedError():
            return Problem(status=503, detail=str(error), headers=retry, members=members)
        case DeadlineError():
            return Problem(status=504, detail=str(error), members=members)
        case StreamBrokenError() | WireError() | CardinalityError() | DynamoError(remote=True):
            kind = getattr(error, "type_name", "") or kind
            detail = f"{endpoint}: a service behind it failed with {kind}; the log says why"
            return Problem(status=502, detail=detail, members={"error": kind})
    return Problem(status=500, detail=f"{endpoint} failed with {kind}; the log says why", members=members)
