"""What a port, the runtime or a client may raise: one class for each thing that a caller does next.

``retry`` is a field of the error *instance*. Only the runtime says SAFE, and only where no handler can have
started; an error that came out of a remote handler carries ``remote=True`` and is NEVER retried, whatever its
class says.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Retry(enum.Enum):
    """May the same call be sent again?"""

    SAFE = "safe"  # nothing happened at the peer: again, or elsewhere
    UNKNOWN = "unknown"  # it may have happened: only if the endpoint is idempotent
    NEVER = "never"  # the same call would fail the same way


class DynamoError(Exception):
    """Base of all errors of this library; ``__cause__`` is the adapter's own exception where there is one.

    ``retry`` is the verdict on this instance, ``remote`` tells that a handler in another process raised it.
    """

    default_retry: ClassVar[Retry] = Retry.NEVER

    def __init__(self, message: str = "", *, retry: Retry | None = None, remote: bool = False) -> None:
        super().__init__(message)
        self.remote = remote
        self.retry = Retry.NEVER if remote else (retry or self.default_retry)

    @property
    def message(self) -> str:
        """The text without the class name."""
        return str(self)


class ConfigError(DynamoError, ValueError):
    """A name, URL, variable or argument is wrong; raised before any I/O."""


class MissingExtraError(ConfigError, ImportError):
    """The adapter exists, the package that it needs is not installed."""


class UnsupportedError(DynamoError):
    """The adapter's capability says that it cannot do this."""


class ConflictError(DynamoError):
    """Another live owner holds this key, name or address."""


class ClosedError(DynamoError):
    """Used after its ``async with`` block ended, on another loop, or in a forked child."""


class EncodeError(DynamoError, TypeError):
    """The value cannot be sent: not a MessagePack value, or an integer past 64 bits."""


class TooLargeError(DynamoError, ValueError):
    """The item is larger than ``DYN_TCP_MAX_MESSAGE_SIZE`` of one of the sides."""


class BadPayloadError(DynamoError, ValueError):
    """The payload arrived but cannot be decoded, or does not fit the handler's declared type."""


class WireError(DynamoError):
    """The peer sent bytes that the protocol does not allow; its connection is closed."""

    default_retry = Retry.UNKNOWN


class AuthError(DynamoError, PermissionError):
    """The peer failed to prove the shared token or its certificate, or refused ours."""


class RemoteError(DynamoError, ValueError):
    """The remote handler raised something that is not ours.

    ``type_name`` is the class's name over there; ``status`` and the text are what the exception carried.
    """

    def __init__(
        self,
        message: str = "",
        *,
        type_name: str = "",
        status: int | None = None,
        detail: str | None = None,
        retry: Retry | None = None,
        remote: bool = True,
    ) -> None:
        super().__init__(message, retry=retry, remote=remote)
        self.type_name = type_name
        self.status = status
        self.detail = detail

    @property
    def message(self) -> str:
        """The remote exception's own ``message`` attribute where it had one, else its text."""
        return str(self) if self.detail is None else self.detail


class UnavailableError(DynamoError, ConnectionError):
    """No peer or backend took the call."""

    default_retry = Retry.SAFE


class NoInstancesError(UnavailableError):
    """Nobody serves this endpoint, or nobody appeared within the bound."""


class DrainingError(UnavailableError):
    """The instance finishes what it has and takes nothing new."""


class OverloadedError(UnavailableError):
    """The instance refused admission: its queue or its memory for requests is full."""


class UnknownEndpointError(UnavailableError):
    """The process at this address does not serve this endpoint."""


class WrongInstanceError(UnavailableError):
    """Another instance, or another incarnation of it, lives at this address now."""


class LeaseLostError(DynamoError):
    """The lease ended; what was registered under it may be gone."""

    default_retry = Retry.SAFE


class DeadlineError(DynamoError, TimeoutError):
    """The time that the caller gave is over."""


class CallCancelledError(DynamoError):
    """The call was cancelled by its own context, by ``kill()``, or because a parent call was."""


class StreamBrokenError(DynamoError, ConnectionError):
    """The peer vanished, or its link broke, before the stream's end, after ``received`` items."""

    default_retry = Retry.UNKNOWN

    def __init__(
        self, message: str = "", *, received: int = 0, retry: Retry | None = None, remote: bool = False
    ) -> None:
        super().__init__(message, retry=retry, remote=remote)
        self.received = received


class CardinalityError(DynamoError, RuntimeError):
    """A call that takes exactly one item got none, or a second one."""
