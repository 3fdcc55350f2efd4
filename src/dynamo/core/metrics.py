"""A program's own metrics of an endpoint, beside those that the runtime keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dynamo.core import registry
from dynamo.core.errors import ConfigError
from dynamo.core.model import EndpointId, shown
from dynamo.core.ports.telemetry import Counter, Gauge, Histogram


class EndpointMetrics:
    """Shown at ``/metrics`` with the endpoint's labels, where the status server is on; they count without
    it too.

    Callbacks run on the loop at each scrape, so they must be quick. One that raises is logged and left out
    of that scrape.
    """

    def __init__(self, endpoint_id: EndpointId, kinds: dict[str, str]) -> None:
        self.endpoint_id = endpoint_id
        self.labels: dict[str, str] = {}  # those that it was last served with
        self.made: dict[str, Any] = {}
        self.updates: list[Callable[[], Any]] = []
        self.texts: list[Callable[[], str]] = []
        self._kinds = kinds  # of all metrics of the runtime: one name has one kind

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only grows; shown as ``name_total``.

        The same name gives the same counter. With ``labels``, ``counter.labels(...)`` gives what counts.
        Raises ConfigError, MissingExtraError."""
        counter: Counter = self._make("counter", name, help, labels, None)
        return counter

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Gauge:
        """A number that goes up and down. As ``counter``."""
        gauge: Gauge = self._make("gauge", name, help, labels, None)
        return gauge

    def histogram(
        self, name: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] | None = None
    ) -> Histogram:
        """How values spread, over ``buckets`` (upper bounds). As ``counter``."""
        histogram: Histogram = self._make("histogram", name, help, labels, buckets)
        return histogram

    def register_prometheus_update_callback(self, callback: Callable[[], Any]) -> None:
        """Call it before each scrape, to bring metrics up to date."""
        self.updates.append(callback)

    def register_prometheus_expfmt_callback(self, callback: Callable[[], str]) -> None:
        """Append the text that it returns, in Prometheus' exposition format, to each scrape, as it is.

        One function registered by several endpoints is called once."""
        self.texts.append(callback)

    def _make(
        self, kind: str, name: str, help: str, labels: Sequence[str], buckets: Sequence[float] | None
    ) -> Any:
        if name.startswith("dynamo_"):
            raise ConfigError(f"metric {shown(name)}: names that begin with dynamo_ are the runtime's own")
        if (known := self._kinds.get(name, kind)) != kind:
            raise ConfigError(
                f"metric {shown(name)} is a {known} of this runtime, and cannot be a {kind} too"
            )
        if (metric := self.made.get(name)) is None:
            make = registry.metrics.factory("prometheus")
            metric = self.made[name] = make(kind, name, help, tuple(labels), buckets)
            self._kinds[name] = kind
        return metric
