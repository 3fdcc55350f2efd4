"""Calls and streams of this library beside Dynamo's wheel, grpc.aio and a bare protocol, in one run.

    python benchmarks/request_plane.py [full] [--wheel PYTHON] [--seconds 0.45] [--rounds 7]
                                       [--system NAME ...] [--shape NAME ...] [--cpu] [--plot]

Two processes a system, started once; for each shape, rounds that go from system to system, so that whatever
else the machine does meets them all. Prints medians with their spread, then what the project aims at beside
what this run showed, and writes build/bench/request_plane.json. Trust ratios, not figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict, deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import report
from processes import Program, ProgramError, setting, write_json
from report import Value
from shapes import SHAPES, Shape
from systems import CONTROLS, Make, systems

BOUND_S = 90.0  # of one load, beside its seconds


class Programs:
    """The processes of each system: started when they are asked for, and again after they were ended."""

    def __init__(self, chosen: dict[str, Make]) -> None:
        self._systems = chosen
        self._running: dict[str, tuple[Program, ExitStack]] = {}

    def started(self, name: str) -> Program:
        if name not in self._running:
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dyn-bench-")))
                program = stack.enter_context(self._systems[name](folder).started(folder))
                self._running[name] = program, stack.pop_all()
        return self._running[name][0]

    def end(self, name: str) -> None:
        if name in self._running:
            self._running.pop(name)[1].close()

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self.end(name)


class Run:
    def __init__(self, chosen: dict[str, Make], seconds: float, rounds: int) -> None:
        self._systems, self._seconds, self._rounds = chosen, seconds, rounds
        self.values: dict[report.Key, Value] = {}
        self.failed: dict[tuple[str, str], str] = {}

    def measure(self, shapes: list[Shape]) -> None:
        with Programs(self._systems) as programs:
            for name in self._systems:
                programs.started(name)  # whoever cannot even start ends the run
            for shape in shapes:
                if not shape.apart:
                    self._shape(shape, self._of(shape), programs)
        for shape in shapes:
            if shape.apart:
                for name in self._of(shape):
                    with Programs(self._systems) as programs:
                        self._shape(shape, [name], programs)

    def _of(self, shape: Shape) -> list[str]:
        """The systems that are measured in ``shape``."""
        return [name for name in self._systems if shape.name in CONTROLS.get(name, (shape.name,))]

    def _shape(self, shape: Shape, names: list[str], programs: Programs) -> None:
        began = time.monotonic()
        seconds = self._seconds * shape.longer
        found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
        if not shape.apart:
            for name in names:  # what is built on first use
                self._load(shape, name, programs, min(0.1, seconds))
        order = deque(names)
        for _ in range(min(shape.rounds or self._rounds, self._rounds)):
            for name in order:
                for metric, value in self._load(shape, name, programs, seconds).items():
                    found[name][metric].append(value)
            order.rotate()  # nobody always runs in the wake of the same other
        for name, metrics in found.items():
            if (shape.name, name) in self.failed:
                continue
            for metric, rounds in metrics.items():
                key = shape.name, name, metric
                self.values[key] = Value(statistics.median(rounds), min(rounds), max(rounds))
        whose = f" of {', '.join(names)}" if shape.apart else ""
        print(f"{shape.name}{whose}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)

    def _load(self, shape: Shape, name: str, programs: Programs, seconds: float) -> dict[str, float]:
        """Its metrics, none if the system cannot do it; one that hangs or dies costs this shape only."""
        if (shape.name, name) in self.failed:
            return {}
        load = dict(shape.load) if shape.apart else {**shape.load, "seconds": seconds}
        answer: dict[str, Any]
        try:
            answer = programs.started(name).run(load, BOUND_S + seconds)
        except ProgramError as error:
            programs.end(name)
            answer = {"failed": str(error)}
        if "failed" in answer:
            self.failed[shape.name, name] = answer["failed"]
        metrics: dict[str, float] = answer.get("metrics", {})
        return metrics


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the request plane beside its peers.")
    parser.add_argument("which", nargs="?", choices=("quick", "full"), default="quick")
    parser.add_argument("--seconds", type=float, default=0.45, help="of each round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--wheel", metavar="PYTHON", help="of the environment with ai-dynamo-runtime")
    parser.add_argument("--system", action="append", help="one of them only; may be given again")
    parser.add_argument("--shape", action="append", help="one of them only; may be given again")
    parser.add_argument("--cpu", action="store_true", help="show CPU time per request too")
    parser.add_argument("--plot", action="store_true", help="draw docs/pictures/request_plane.*")
    options = parser.parse_args()
    known = systems(options.wheel)
    names = {shape.name for shape in SHAPES}
    for given, all_ in ((options.system or (), known), (options.shape or (), names)):
        if unknown := [name for name in given if name not in all_]:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(all_)}")
    chosen = {name: make for name, make in known.items() if not options.system or name in options.system}
    shapes = [
        shape
        for shape in SHAPES
        if (shape.name in options.shape if options.shape else shape.quick or options.which == "full")
    ]
    if options.wheel is None:
        print("dynamo is left out: no --wheel", file=sys.stderr)
    about = setting(seconds=options.seconds, rounds=options.rounds)
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    run = Run(chosen, options.seconds, options.rounds)
    try:
        run.measure(shapes)
    except ProgramError as error:
        print(error, file=sys.stderr)
        return 1
    cpu = [f"{side} us/request" for side in ("server", "client", "both")] if options.cpu else []
    rows = [
        (shape.name, metric)
        for shape in shapes
        for metric in (*shape.shows, *cpu)
        if any((shape.name, system, metric) in run.values for system in chosen)
    ]
    print()
    report.show(report.table(rows, list(chosen), run.values))
    report.show(report.verdicts(run.values))
    for (shape, system), why in run.failed.items():
        print(f"{system} did not do {shape}: {why}")
    write_json(report.OUTPUT, report.as_rows(run.values, about))
    if options.plot:
        import plot

        plot.draw(run.values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
