"""The shapes of load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen
class Shape:
    """``load``: what ``workload.obey`` is asked, but for the seconds. ``shows``: the metrics in the table."""

    name: str
    load: Mapping[str, Any]
    shows: tuple[str, ...]
    quick: bool = False  # measured without being asked for all
    rounds: int | None = None  # where that many are enough
    longer: float = 1.0  # its rounds, as a multiple of the seconds that are asked for
    apart: bool = False  # in fresh processes, one system at a time


def _streams(
    callers: int, items: int, pause: float | None, shows: tuple[str, ...], quick: bool = False
) -> Shape:
    name = f"{callers} x {items}" + ("" if pause is None else " sleep(0)")
    load = {"load": "streams", "callers": callers, "items": items, "pause": pause}
    return Shape(name, load, shows, quick)


def _payload(name: str, size: int, shows: tuple[str, ...], *, up: bool = False, quick: bool = False) -> Shape:
    load = {"load": "payload", "size": size, "up": up}
    return Shape(f"payload {name}{' up' if up else ''}", load, shows, quick)


def _paced(count: int) -> Shape:
    load = {"load": "paced", "streams": count, "pause": 0.01}
    shows = ("server us/item", "client us/item", "both us/item")
    return Shape(f"paced {count}", load, shows, quick=True, rounds=5, longer=2.2)


REQUESTS, ITEMS = ("requests/s",), ("items/s",)
SHAPES = (
    _streams(1, 1, None, REQUESTS, quick=True),
    _streams(64, 1, None, ("requests/s", "p99 ms"), quick=True),
    _streams(512, 1, None, REQUESTS),
    _streams(1, 100, None, ITEMS, quick=True),
    _streams(1, 100, 0, ITEMS, quick=True),
    _streams(64, 100, None, ITEMS, quick=True),
    _streams(64, 100, 0, ITEMS, quick=True),
    _paced(64),
    _paced(256),
    _payload("64 B", 64, ("requests/s",)),
    _payload("4 KiB", 4 * 2**10, ("requests/s",)),
    _payload("1 MiB", 2**20, ("MB/s",)),
    _payload("16 MiB", 16 * 2**20, ("MB/s",), quick=True),
    _payload("16 MiB", 16 * 2**20, ("MB/s",), up=True),
    Shape("duplex 64 x 100", {"load": "echo", "callers": 64, "items": 100}, ITEMS),
    Shape("storm 64", {"load": "storm", "callers": 64}, REQUESTS),
    Shape("connect", {"load": "connect", "most": 20}, ("connect ms",), rounds=1),
    Shape(
        "idle 10000",
        {"load": "idle", "streams": 10_000},
        ("resident MiB", "KiB/stream"),
        rounds=1,
        apart=True,
    ),
)
