"""What happened, for whoever counts: a small observer, told of requests and changes, never of single items.

Every method returns at once and must not raise; the core calls them on its loop.
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, Self

from dynamo.core.model import EndpointId
from dynamo.core.ports.discovery import Change

NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Side(enum.Enum):
    CLIENT = "client"
    SERVER = "server"


class EndpointTelemetry(Protocol):
    """One endpoint seen from one side; made once, so that labels are looked up once."""

    @abstractmethod
    def started(self) -> None:
        """A request began."""

    @abstractmethod
    def first_item(self, after_s: float) -> None:
        """Its first item came ``after_s`` seconds after the start."""

    @abstractmethod
    def ended(self, after_s: float, error: str | None) -> None:
        """It ended, with the error's class name or None."""

    @abstractmethod
    def refused(self, error: str) -> None:
        """A request was turned away before it started."""

    @abstractmethod
    def retried(self, error: str) -> None:
        """An attempt failed and another one follows."""


class Telemetry(Protocol):
    @abstractmethod
    def endpoint(
        self, endpoint_id: EndpointId, side: Side, labels: Mapping[str, str] = NO_LABELS
    ) -> EndpointTelemetry:
        """``labels`` are those that it is served with. Raises ConfigError for ones that cannot be shown."""

    @abstractmethod
    def instances_changed(self, change: Change) -> None:
        """A watch of this runtime was told this."""

    @abstractmethod
    def lease_changed(self, held: bool, reason: str) -> None:
        """This runtime's lease was taken (True) or lost (False)."""


# Metrics that a program makes for itself: what ``endpoint.metrics`` gives, in prometheus-client's words.


class Counter(Protocol):
    def labels(self, *values: str, **named: str) -> Self:
        """The child for these label values; keep it where it is used often."""
        ...

    def inc(self, amount: float = 1) -> None: ...


class Gauge(Counter, Protocol):
    def dec(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...


class Histogram(Protocol):
    def labels(self, *values: str, **named: str) -> Self: ...

    def observe(self, amount: float) -> None: ...
