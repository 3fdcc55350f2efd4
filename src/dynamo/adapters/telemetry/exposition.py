"""One scrape: everything that a runtime shows, in Prometheus' text format."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from dynamo.adapters.telemetry.prometheus import labels_of
from dynamo.core.distributed import DistributedRuntime

logger = logging.getLogger("dynamo.runtime")

T = TypeVar("T")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition(Collector):
    """Reads a runtime; a registry of its own keeps it apart from the others of the process."""

    def __init__(self, runtime: DistributedRuntime) -> None:
        self._runtime = runtime
        self._failing: set[object] = set()  # callbacks whose failure was logged
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def text(self) -> bytes:
        """One scrape. What a callback of the program raises is logged once, and leaves out what it brings."""
        metrics = self._runtime.observing.metrics.values()
        for update in _once(one.updates for one in metrics):
            self._call(update)
        texts = [generate_latest(self.registry)]
        for make in _once(one.texts for one in metrics):
            text = self._call(make)
            if text:
                encoded = text if isinstance(text, bytes) else str(text).encode()
                texts.append(encoded if encoded.endswith(b"\n") else encoded + b"\n")
        return b"".join(texts)

    def _call(self, callback: Callable[[], object]) -> object:
        try:
            result = callback()
        except Exception:
            if callback not in self._failing:
                self._failing.add(callback)
                logger.exception("a metrics callback failed; further failures of it are not logged")
            return None
        self._failing.discard(callback)
        return result

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        runtime = self._runtime
        uptime = Metric("dynamo_component_uptime_seconds", "Since the runtime was made.", "gauge")
        uptime.add_sample(uptime.name, {}, time.monotonic() - runtime.observing.began_at)
        yield uptime
        yield from self._discovered()
        telemetry = runtime.observing.telemetry
        if (
            collect := getattr(telemetry, "collect", None)
        ) is not None:  # ours, or a program's own that counts
            yield from collect()
        yield from self._own()

    def _discovered(self) -> Iterator[Metric]:
        known = Metric("dynamo_discovery_instances", "Instances that clients here know of.", "gauge")
        stale = Metric("dynamo_discovery_stale", "1 while discovery is away.", "gauge")
        for membership in self._runtime.watched:
            labels, peers = labels_of(membership.endpoint_id, {}), membership.peers
            for state, number in (
                ("ready", peers.count - len(peers.aside) - len(peers.unreachable)),
                ("aside", len(peers.aside)),
                ("unreachable", len(peers.unreachable)),
                ("draining", len(peers.by_id) - peers.count),
            ):
                known.add_sample(known.name, {**labels, "state": state}, number)
            stale.add_sample(stale.name, dict(labels), int(membership.stale is not None))
        if known.samples:
            yield known
            yield stale

    def _own(self) -> Iterator[Metric]:
        """The program's own metrics; those of one name, whatever their endpoint, make one family."""
        families: dict[str, Metric] = {}
        for endpoint_id, own in self._runtime.observing.metrics.items():
            labels = labels_of(endpoint_id, own.labels)
            for metric in own.made.values():
                for found in metric.collect():
                    family = families.setdefault(
                        found.name, Metric(found.name, found.documentation, found.type)
                    )
                    family.samples += [
                        sample._replace(labels={**labels, **sample.labels}) for sample in found.samples
                    ]
        yield from families.values()


def _once(callbacks: Iterable[list[T]]) -> list[T]:
    """Each of them once, in order, also where several endpoints registered it."""
    return list(dict.fromkeys(callback for some in callbacks for callback in some))
