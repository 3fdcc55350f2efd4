"""What gRPC and etcd say, in our words."""

from __future__ import annotations

import re

import grpc
import grpc.aio

from dynamo.adapters.discovery.etcd.configuration import Endpoint, EtcdConfig
from dynamo.core.errors import AuthError, DynamoError, UnavailableError

Code = grpc.StatusCode

REFUSALS = (  # codes that stand for an answer to this very request; everything else is an outage
    Code.NOT_FOUND,
    Code.ALREADY_EXISTS,
    Code.FAILED_PRECONDITION,
    Code.OUT_OF_RANGE,
    Code.INVALID_ARGUMENT,
)
BAD_LOGIN = re.compile(r"authentication failed|user name is empty|invalid user ID or password")
TOKEN_GONE = re.compile(r"invalid auth token|revision of auth store is old|unauthenticated", re.IGNORECASE)


class RefusedError(DynamoError):
    """etcd answered, and the answer is no. ``code`` is gRPC's."""

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code


def said(error: grpc.aio.AioRpcError) -> str:
    """The part of gRPC's text that a person needs."""
    text = (error.details() or "").strip()
    if error.code() is Code.DEADLINE_EXCEEDED:
        return "no answer in time"
    if "last error:" in text:  # failed to connect to all addresses; last error: UNKNOWN: ipv4:h:p: ...
        text = text.rpartition(": ")[2]
    return text.removeprefix("etcdserver: ") or error.code().name.lower()


def token_is_gone(error: grpc.aio.AioRpcError) -> bool:
    """The token expired, or the users changed: another one is needed."""
    if error.code() is Code.UNAUTHENTICATED:
        return True
    return error.code() is Code.INVALID_ARGUMENT and TOKEN_GONE.search(error.details() or "") is not None


def is_outage(error: grpc.aio.AioRpcError) -> bool:
    """Whether it may go better with another member, or later."""
    code, text = error.code(), error.details() or ""
    return code not in (*REFUSALS, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED) and not BAD_LOGIN.search(
        text
    )


def translated(error: grpc.aio.AioRpcError, endpoint: Endpoint, config: EtcdConfig) -> DynamoError:
    """One error of ours: AuthError, RefusedError or UnavailableError."""
    code, text = error.code(), said(error)
    ours: DynamoError
    if code is Code.INVALID_ARGUMENT and "user name is empty" in text:
        ours = AuthError(
            f"etcd at {endpoint} ({config.source}) wants a user: set {config.user_source} and "
            f"{config.password_source}"
        )
    elif BAD_LOGIN.search(text) or code is Code.UNAUTHENTICATED:
        ours = AuthError(
            f"etcd at {endpoint} ({config.source}) refused user {config.username!r}: {text}; "
            f"check {config.user_source} and {config.password_source}"
        )
    elif code is Code.PERMISSION_DENIED:
        ours = AuthError(
            f"etcd at {endpoint} ({config.source}): user {config.username!r} ({config.user_source}) may not "
            f"read and write /services/: {text}; grant it a role that may"
        )
    elif code in REFUSALS:
        ours = RefusedError(f"etcd at {endpoint}: {text}", code)
    elif "database space exceeded" in text:
        ours = UnavailableError(
            f"etcd at {endpoint} ({config.source}) takes no writes: its disk quota is used up; compact and "
            "defragment it, then disarm its alarm (etcdctl compact, defrag, alarm disarm)"
        )
    elif code is Code.UNIMPLEMENTED:
        ours = UnavailableError(f"what answers at {endpoint} ({config.source}) is no etcd: {text}")
    else:
        ours = UnavailableError(f"no etcd at {endpoint} ({config.source}): {text}")
    ours.__cause__ = error.with_traceback(None)  # its frames hold calls, and these connections
    return ours
