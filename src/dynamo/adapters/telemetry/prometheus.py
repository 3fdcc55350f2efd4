"""Telemetry counted for Prometheus, under Dynamo's metric names where it has them.

The core tells of requests on its loop, and the status server reads there too, so that the counts are plain
numbers without a lock: a request's three calls take a fifth of what prometheus-client's own objects would.
What one endpoint counts is one object, made when the endpoint is served or a client made: nothing is looked
up per request.

Labels are ``dynamo_namespace``, ``dynamo_component`` and ``dynamo_endpoint``, and those that the endpoint is
served with.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dynamo.core.config import Settings
from dynamo.core.errors import CallCancelledError, ConfigError
from dynamo.core.model import EndpointId, shown
from dynamo.core.ports.discovery import Change, Put, Removed, Snapshot
from dynamo.core.ports.telemetry import NO_LABELS, EndpointTelemetry, Side, Telemetry
from dynamo.core.registry import url_options

LABEL = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")
LABEL_RULE = "A-Z a-z 0-9 _, not beginning with a digit or __"
RESERVED = ("dynamo_namespace", "dynamo_component", "dynamo_endpoint", "error_type", "le", "quantile")
CANCELLED = CallCancelledError.__name__

# Seconds. From a call within one host to a long answer of a large model.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
BOUNDS = (*(str(float(bound)) for bound in BUCKETS), "+Inf")

PREFIXES = {Side.SERVER: "dynamo_component", Side.CLIENT: "dynamo_client"}


class EndpointCounts(EndpointTelemetry):
    """What one endpoint, seen from one side, has counted.

    ``durations`` and ``first_items`` are by bucket, the last one for what is longer than all.
    """

    __slots__ = (
        "begun", "cancelled", "durations", "durations_s", "errors", "first_items", "first_items_s", "labels",
        "refusals", "retries",
    )  # fmt: skip

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = labels
        self.begun = self.cancelled = 0
        self.durations, self.first_items = [0] * (len(BUCKETS) + 1), [0] * (len(BUCKETS) + 1)
        self.durations_s = self.first_items_s = 0.0
        self.errors: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.retries: dict[str, int] = {}

    @property
    def inflight(self) -> int:
        return self.begun - sum(self.durations)

    def started(self) -> None:
        self.begun += 1

    def first_item(self, after_s: float) -> None:
        self.first_items[bisect_left(BUCKETS, after_s)] += 1
        self.first_items_s += after_s

    def ended(self, after_s: float, error: str | None) -> None:
        self.durations[bisect_left(BUCKETS, after_s)] += 1
        self.durations_s += after_s
        if error is not None:
            if error == CANCELLED:
                self.cancelled += 1
            else:
                self.errors[error] = self.errors.get(error, 0) + 1

    def refused(self, error: str) -> None:
        self.refusals[error] = self.refusals.get(error, 0) + 1

    def retried(self, error: str) -> None:
        self.retries[error] = self.retries.get(error, 0) + 1


class PrometheusTelemetry(Telemetry, Collector):
    """One per runtime; give it to several with care: what they count is added up.

    It is a prometheus-client collector too, for a program that exposes its metrics itself:
    ``REGISTRY.register(telemetry)``.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[Side, EndpointId, tuple[tuple[str, str], ...]], EndpointCounts] = {}
        self._changes = dict.fromkeys(("snapshot", "put", "removed", "stale"), 0)
        self._lease_held: bool | None = None
        self._leases_lost = 0

    def endpoint(
        self, endpoint_id: EndpointId, side: Side, labels: Mapping[str, str] = NO_LABELS
    ) -> EndpointCounts:
        """Serving an endpoint again, with the same labels, goes on with its counts."""
        key = (side, endpoint_id, tuple(sorted((str(name), str(value)) for name, value in labels.items())))
        if (counts := self._counts.get(key)) is None:
            counts = self._counts[key] = EndpointCounts(labels_of(endpoint_id, labels))
        return counts

    def instances_changed(self, change: Change) -> None:
        match change:
            case Snapshot():
                self._changes["snapshot"] += 1
            case Put():
                self._changes["put"] += 1
            case Removed():
                self._changes["removed"] += 1
            case _:
                self._changes["stale"] += 1

    def lease_changed(self, held: bool, reason: str) -> None:
        self._lease_held = held
        if not held:
            self._leases_lost += 1

    def collect(self) -> Iterator[Metric]:
        for side, prefix in PREFIXES.items():
            counts = [one for key, one in self._counts.items() if key[0] is side]
            if counts:
                yield from _requests(prefix, side, counts)
        changes = Metric("dynamo_discovery_changes", "What watches were told of instances.", "counter")
        for name, number in self._changes.items():
            changes.add_sample(f"{changes.name}_total", {"change": name}, number)
        yield changes
        if self._lease_held is not None:
            held = Metric("dynamo_discovery_lease_held", "1 while this runtime holds its lease.", "gauge")
            held.add_sample(held.name, {}, int(self._lease_held))
            yield held
            lost = Metric("dynamo_discovery_leases_lost", "Leases that this runtime lost.", "counter")
            lost.add_sample(f"{lost.name}_total", {}, self._leases_lost)
            yield lost


def _requests(prefix: str, side: Side, counts: Iterable[EndpointCounts]) -> Iterator[Metric]:
    """The families of one side."""
    requests = Metric(f"{prefix}_requests", "Requests that began.", "counter")
    inflight = Metric(f"{prefix}_inflight_requests", "Requests that have not ended.", "gauge")
    durations = Metric(f"{prefix}_request_duration_seconds", "From begin to end.", "histogram")
    first_items = Metric(f"{prefix}_first_item_seconds", "From begin to first item.", "histogram")
    cancelled = Metric(f"{prefix}_cancellation", "Requests that the caller left or killed.", "counter")
    errors = Metric(f"{prefix}_errors", "Requests that ended with an error, by its class.", "counter")
    refused = Metric("dynamo_component_refused_requests", "Requests turned away unbegun.", "counter")
    retries = Metric("dynamo_client_retries", "Attempts that another one followed.", "counter")
    for one in counts:
        requests.add_sample(f"{requests.name}_total", dict(one.labels), one.begun)
        inflight.add_sample(inflight.name, dict(one.labels), one.inflight)
        cancelled.add_sample(f"{cancelled.name}_total", dict(one.labels), one.cancelled)
        _add_histogram(durations, one.labels, one.durations, one.durations_s)
        _add_histogram(first_items, one.labels, one.first_items, one.first_items_s)
        for metric, by_type in ((errors, one.errors), (refused, one.refusals), (retries, one.retries)):
            for error, number in by_type.items():
                metric.add_sample(f"{metric.name}_total", {**one.labels, "error_type": error}, number)
    yield from (requests, inflight, durations, first_items, cancelled, errors)
    yield refused if side is Side.SERVER else retries


def _add_histogram(metric: Metric, labels: Mapping[str, str], counts: list[int], total_s: float) -> None:
    seen = 0
    for bound, count in zip(BOUNDS, counts, strict=True):
        seen += count
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": bound}, seen)
    metric.add_sample(f"{metric.name}_count", dict(labels), seen)
    metric.add_sample(f"{metric.name}_sum", dict(labels), total_s)


def labels_of(endpoint_id: EndpointId, labels: Mapping[str, str]) -> dict[str, str]:
    """All labels of an endpoint. Raises ConfigError for a name that Prometheus or we do not allow."""
    for name in labels:
        if LABEL.fullmatch(name) is None:
            raise ConfigError(f"label {shown(name)} of {endpoint_id}: {LABEL_RULE}")
        if name in RESERVED:
            raise ConfigError(f"label {name!r} of {endpoint_id}: the metrics have one of that name already")
    return {
        "dynamo_namespace": endpoint_id.namespace,
        "dynamo_component": endpoint_id.component,
        "dynamo_endpoint": endpoint_id.name,
        **{name: str(value) for name, value in labels.items()},
    }


def open_prometheus(url: str, settings: Settings) -> AbstractAsyncContextManager[PrometheusTelemetry]:
    """``DYN_TELEMETRY=prometheus``, which is also what a runtime has whose status server is on."""
    url_options(url, ())

    @asynccontextmanager
    async def opened() -> AsyncIterator[PrometheusTelemetry]:
        yield PrometheusTelemetry()

    return opened()
