"""The table of a run, and what it has to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

RUN = "run"
OUTPUT = Path("build/bench/request_plane.json")
Key = tuple[str, str, str]  # shape, system, metric


@attrs.frozen
class Value:
    """The median of the rounds, and from the lowest to the highest of them."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Half of what lies between lowest and highest, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0


Values = Mapping[Key, Value]


@attrs.frozen
class Target:
    """``system`` should have ``at_least`` so many times what ``other`` has, or at most; without ``other`` as
    such."""

    shape: str
    metric: str
    other: str | None
    at_least: float | None = None
    at_most: float | None = None
    system: str = "ours tcp"

    def ratio(self, values: Values) -> float | None:
        mine = values.get((self.shape, self.system, self.metric))
        if self.other is None:
            return mine.median if mine else None
        others = values.get((self.shape, self.other, self.metric))
        return mine.median / others.median if mine and others and others.median else None

    def met(self, ratio: float) -> bool:
        return (self.at_least is None or ratio >= self.at_least) and (
            self.at_most is None or ratio <= self.at_most
        )

    @property
    def wanted(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


def _beside_dynamo(shape: str, metric: str, dynamo: float, ceiling: float | None) -> list[Target]:
    found = [Target(shape, metric, "dynamo", at_least=dynamo)]
    if ceiling is not None:
        found.append(Target(shape, metric, "ceiling", at_least=ceiling))
    return [*found, Target(shape, metric, "dynamo", at_least=dynamo, system="ours spelling")]


TARGETS = (
    Target("64 x 1", "requests/s", "dynamo", at_least=18, system="ceiling"),
    *_beside_dynamo("64 x 1", "requests/s", 10, 0.6),
    *_beside_dynamo("1 x 1", "requests/s", 5, 0.6),
    *_beside_dynamo("1 x 100", "items/s", 12, 0.6),
    *_beside_dynamo("1 x 100 sleep(0)", "items/s", 5, 0.6),
    *_beside_dynamo("64 x 100", "items/s", 7, 0.6),
    *_beside_dynamo("64 x 100 sleep(0)", "items/s", 7, 0.6),
    *(
        Target(f"paced {streams}", f"{side} us/item", other, at_most=most, system=system)
        for streams in (64, 256)
        for side in ("server", "client")
        for system, other, most in (
            ("ours tcp", "dynamo", 0.2),
            ("ours tcp", "ceiling", 2),
            ("ours spelling", "dynamo", 0.2),
        )
    ),
    Target("64 x 1", "p99 ms", "dynamo", at_most=1 / 8),
    Target("64 x 1", "p99 ms", "dynamo", at_most=1 / 8, system="ours spelling"),
    *_beside_dynamo("payload 16 MiB", "MB/s", 2, 0.7),
    Target("64 x 1", "requests/s", "grpc.aio", at_least=5),
    *(
        Target(shape, "items/s", "grpc.aio", at_least=10)
        for shape in ("1 x 100", "1 x 100 sleep(0)", "64 x 100", "64 x 100 sleep(0)")
    ),
    Target("64 x 1", "requests/s", "grpc.aio", at_least=1.3, system="ours http2"),
    *(
        Target(shape, "items/s", "grpc.aio", at_least=5, system="ours http2")
        for shape in ("1 x 100", "1 x 100 sleep(0)", "64 x 100", "64 x 100 sleep(0)")
    ),
    Target("64 x 1", "requests/s", "dynamo nats", at_least=4, system="ours nats"),
    *(
        Target(shape, "items/s", "dynamo nats", at_least=6, system="ours nats")
        for shape in ("1 x 100", "1 x 100 sleep(0)", "64 x 100", "64 x 100 sleep(0)")
    ),
    Target("1 x 1", "requests/s", "ours tcp", at_least=1.15, system="ours unix"),
    Target("1 x 100", "items/s", "ours tcp", at_least=1.5, system="ours unix"),
    Target("1 x 100 sleep(0)", "items/s", "ours tcp", at_least=1.5, system="ours unix"),
    *(
        Target("idle 10000", "resident MiB", None, at_most=1024, system=system)
        for system in ("ours tcp", "ours unix", "ours mem")
    ),
    *(
        Target(shape, metric, other, at_least=1, system="ours mem")
        for other in ("ours tcp", "ours tcp solo")
        for shape, metric in (
            ("1 x 1", "requests/s"),
            ("64 x 1", "requests/s"),
            ("512 x 1", "requests/s"),
            ("1 x 100", "items/s"),
            ("1 x 100 sleep(0)", "items/s"),
            ("64 x 100", "items/s"),
            ("64 x 100 sleep(0)", "items/s"),
            ("payload 64 B", "requests/s"),
            ("payload 4 KiB", "requests/s"),
            ("payload 1 MiB", "MB/s"),
            ("payload 16 MiB", "MB/s"),
            ("payload 16 MiB up", "MB/s"),
            ("duplex 64 x 100", "items/s"),
            ("storm 64", "requests/s"),
        )
    ),
    *(
        Target(f"paced {streams}", "both us/item", "ours tcp solo", at_most=1, system="ours mem")
        for streams in (64, 256)
    ),
)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Iterable[tuple[str, str]], systems: list[str], values: Values) -> list[list[str]]:
    """A line for each shape and metric: the median of each system, and its spread."""
    lines = [["shape", "metric", *systems]]
    for shape, metric in rows:
        cells = [values.get((shape, system, metric)) for system in systems]
        lines.append(
            [shape, metric, *(f"{number(cell.median)} ±{cell.spread:.0%}" if cell else "-" for cell in cells)]
        )
    return lines


def verdicts(values: Values) -> list[list[str]]:
    """A line for each target whose two systems were measured."""
    lines = [["shape", "metric", "system", "against", "wanted", "is", ""]]
    for target in TARGETS:
        ratio = target.ratio(values)
        if ratio is not None:
            missed = "below" if target.at_least is not None else "above"
            lines.append([
                target.shape, target.metric, target.system, target.other or "-", target.wanted,
                f"{ratio:.3g}", "ok" if target.met(ratio) else missed,
            ])  # fmt: skip
    return lines


def show(lines: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)


def as_rows(values: Values, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the output holds: first what was run, as a shape of its own."""
    return [{"shape": RUN, "system": "", "metric": name, "value": value} for name, value in about.items()] + [
        {"shape": shape, "system": system, "metric": metric, "value": value.median, "low": value.low,
         "high": value.high}
        for (shape, system, metric), value in values.items()
    ]  # fmt: skip


def from_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[Key, Value], dict[str, Any]]:
    """``as_rows`` read back."""
    values: dict[Key, Value] = {}
    about: dict[str, Any] = {}
    for row in rows:
        if row["shape"] == RUN:
            about[row["metric"]] = row["value"]
        else:
            key = row["shape"], row["system"], row["metric"]
            values[key] = Value(row["value"], row["low"], row["high"])
    return values, about
