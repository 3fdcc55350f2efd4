"""The chart of a run: how many times better than Dynamo's wheel, shape by shape. python benchmarks/plot.py"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot
from report import OUTPUT, Values, from_rows
from shapes import SHAPES

PICTURES = Path("docs/pictures")
BESIDE = "dynamo"
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)
COLOURS = {"grpc.aio": "#9aa5b1", "ours spelling": "#6fa8dc", "ours tcp": "#1f5fa8", "ceiling": "#d9a441"}
LABELS = {"ours spelling": "ours, Dynamo's spelling", "ours tcp": "ours", "ceiling": "bare protocol"}
RATES = ("/s",)  # what ends so is better when higher; all else, when lower


def times_better(values: Values, shape: str, system: str, metric: str) -> float | None:
    mine, beside = values.get((shape, system, metric)), values.get((shape, BESIDE, metric))
    if mine is None or beside is None or mine.median <= 0 or beside.median <= 0:
        return None
    ratio = mine.median / beside.median
    return ratio if metric.endswith(RATES) else 1 / ratio


def draw(values: Values) -> None:
    """Write docs/pictures/request_plane.png and .svg."""
    rows = [
        (shape.name, metric)
        for shape in SHAPES
        for metric in shape.shows
        if times_better(values, shape.name, "ours tcp", metric) is not None
    ]
    if not rows:
        sys.exit(f"nothing to draw: the run has no figures of both 'ours tcp' and '{BESIDE}'")
    mpl.rcParams.update({"svg.hashsalt": "dynamo", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(figsize=(9, 0.55 * len(rows) + 1.2), layout="constrained")
    height = 0.8 / len(COLOURS)
    for index, (system, colour) in enumerate(COLOURS.items()):
        ratios = [times_better(values, shape, system, metric) or 0 for shape, metric in rows]
        places = [row - 0.4 + (index + 0.5) * height for row in range(len(rows))]
        bars = axes.barh(places, ratios, height, color=colour, label=LABELS.get(system, system), log=True)
        labels = [f"{ratio:.2g}x" if ratio else "" for ratio in ratios]
        axes.bar_label(bars, labels=labels, padding=2, fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.margins(y=0.005)
    axes.set_xticks(TICKS, [f"{tick:g}x" for tick in TICKS])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [f"{shape}, {metric}" for shape, metric in rows])
    axes.invert_yaxis()
    axes.set_xlabel("times better than ai-dynamo-runtime 1.6.1 (CPU, latency and memory: times less)")
    figure.legend(loc="outside upper right", ncols=len(COLOURS))
    axes.spines[["top", "right"]].set_visible(False)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        path = PICTURES / f"request_plane.{kind}"
        figure.savefig(path, dpi=150, metadata=metadata)
        print(f"written to {path}")
    pyplot.close(figure)


if __name__ == "__main__":
    draw(from_rows(json.loads(OUTPUT.read_text()))[0])
