"""Writes the figures of the last runs into docs/performance.md, so that none is typed.

    python benchmarks/page.py

Each part of the page between `<!-- NAME -->` and `<!-- /NAME -->` is replaced.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import report
import routing
from report import Target, Value, Values, number
from shapes import SHAPES
from systems import CONTROLS

PAGE = Path("docs/performance.md")
CHART = "pictures/request_plane.svg"
TCP = (
    "dynamo",
    "grpc.aio",
    "ours tcp",
    "ours spelling",
    "ours unix",
    "ours fallback",
    "ceiling",
    "ceiling unix",
)
PLANES = ("dynamo", "dynamo nats", "grpc.aio", "ours http2", "ours nats", "ours mem", "ours tcp solo")


def markdown(lines: list[list[str]]) -> str:
    first, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (first, ["---"] * len(first), *rest))


def cell(value: Value | None, beside: Value) -> str:
    if value is None:
        return "-"
    ratio = "" if value is beside else f" ({number(value.median / beside.median)}x)"
    return number(value.median) + ratio


def figures(values: Values, order: Sequence[str]) -> str:
    """Medians, each with its ratio to the first of the row: Dynamo's, where it has that shape."""
    systems = [system for system in order if any(key[1] == system for key in values)]
    lines = [["shape", "", *systems]]
    for shape in SHAPES:
        for metric in shape.shows:
            row = [values.get((shape.name, system, metric)) for system in systems]
            first = next((value for value in row if value), None)
            if first is not None and row.count(None) < len(row) - 1:
                lines.append([shape.name, metric, *(cell(value, first) for value in row)])
    return markdown(lines)


def unix(values: Values) -> str:
    """What a Unix socket gains over TCP: here, and in the bare protocol."""
    pairs = {"ours": ("ours unix", "ours tcp"), "the bare protocol": ("ceiling unix", "ceiling")}
    lines = [["Unix socket / TCP", *pairs]]
    for shape in SHAPES:
        if shape.name in CONTROLS["ceiling unix"]:
            metric = shape.shows[0]
            line = [shape.name]
            for over_unix, over_tcp in pairs.values():
                ratio = Target(shape.name, metric, over_tcp, system=over_unix).ratio(values)
                line.append("-" if ratio is None else f"{ratio:.2f}x")
            lines.append(line)
    return markdown(lines)


def chart() -> str:
    """The picture, if ``plot.py`` has drawn it."""
    path = PAGE.parent / CHART
    return f"![Times better than Dynamo's wheel, by shape of load]({CHART})" if path.exists() else ""


def main() -> None:
    values, about = report.from_rows(json.loads(report.OUTPUT.read_text()))
    parts = {
        "chart": chart(),
        "setting": ", ".join(f"{name} {value}" for name, value in about.items()) + ".",
        "figures": figures(values, TCP),
        "planes": figures(values, PLANES),
        "unix": unix(values),
        "aims": markdown(report.verdicts(values)),
    }
    if routing.OUTPUT.exists():
        parts["routing"] = markdown(routing.table(json.loads(routing.OUTPUT.read_text())))
    page = PAGE.read_text()
    for name, text in parts.items():
        marked = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = marked.search(page)
        if found is None:
            sys.exit(f"{PAGE} has no <!-- {name} --> ... <!-- /{name} -->")
        page = f"{page[: found.end(1)]}{text}\n{page[found.start(2) :]}"
    PAGE.write_text(page)
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
