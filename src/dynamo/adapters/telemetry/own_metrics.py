"""The metrics that a program makes for itself: prometheus-client's own, in no registry.

Each belongs to one endpoint, whose labels are added when they are shown, so that two endpoints, or two
runtimes of a process, may have metrics of one name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from dynamo.adapters.telemetry.prometheus import RESERVED
from dynamo.core.errors import ConfigError
from dynamo.core.model import shown


def make_metric(
    kind: str, name: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] | None = None
) -> Counter | Gauge | Histogram:
    """Raises ConfigError for names that Prometheus does not allow, or that hide the endpoint's labels."""
    if taken := [label for label in labels if label in RESERVED]:
        raise ConfigError(f"metric {shown(name)}: the label {taken[0]!r} is added by the runtime")
    options: dict[str, Any] = {"registry": None}
    if kind == "histogram" and buckets is not None:
        options["buckets"] = tuple(buckets)
    makers: dict[str, type[Counter | Gauge | Histogram]] = {
        "counter": Counter,
        "gauge": Gauge,
        "histogram": Histogram,
    }
    try:
        return makers[kind](name, help, labels, **options)
    except ValueError as error:
        raise ConfigError(f"metric {shown(name)}: {error}") from error
