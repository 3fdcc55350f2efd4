"""The metrics that a program makes for itself: prometheus-client's own, in no registry.

Each belongs to one endpoint, whose labels are added when they are shown, so that two endpoints, or two
runtimes of a process, may have metrics of one name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from dynamo.adapters.telemetry.prometheus import LABEL, LABEL_RULE, RESERVED
from dynamo.core.errors import ConfigError
from dynamo.core.model import shown

NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")


def make_metric(
    kind: str, name: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] | None = None
) -> Counter | Gauge | Histogram:
    """Raises ConfigError for names that Prometheus does not allow, or that hide the endpoint's labels."""
    if NAME.fullmatch(name) is None:  # prometheus-client takes any text, and shows another name then
        raise ConfigError(f"metric {shown(name)}: A-Z a-z 0-9 _ :, not beginning with a digit")
    for label in labels:
        if label in RESERVED:
            raise ConfigError(f"metric {shown(name)}: the label {label!r} is added by the runtime")
        if LABEL.fullmatch(label) is None:
            raise ConfigError(f"metric {shown(name)}: bad label {shown(label)}: {LABEL_RULE}")
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
