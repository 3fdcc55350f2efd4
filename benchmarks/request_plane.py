"""Requests and items a second between two processes, over TCP and over its Unix-socket fast path.

    python benchmarks/request_plane.py [--seconds 3] [--loop asyncio|uvloop] [--transport tcp|unix]

Prints a table and writes build/bench/request_plane.json. One process calls, one works; msgspec and uvloop
serve where they are installed, unless --loop says otherwise. Figures from a busy machine are worth nothing:
trust ratios of runs made one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs

from dynamo.runtime import Client, DistributedRuntime

ENDPOINT = "bench.worker.generate"
OUTPUT = Path("build/bench/request_plane.json")
WARM_UP_S = 0.5
BOUND_S = 30.0  # for what must come at all
SHAPES = ((1, 1, False), (64, 1, False), (1, 100, False), (64, 100, False), (1, 100, True), (64, 100, True))


@attrs.frozen
class Row:
    """What one shape of load came to. ``paced``: the handler lets the loop run between items."""

    transport: str
    callers: int
    items: int
    paced: bool
    requests_per_s: float
    items_per_s: float
    p50_us: float
    p99_us: float


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


async def generate(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    paced = request["paced"]
    for index in range(request["items"]):
        if paced:
            await asyncio.sleep(0)
        yield {"token_ids": [index], "text": " word"}


async def serve() -> None:
    async with DistributedRuntime.from_env(handle_signals=True) as runtime:
        await runtime.endpoint(ENDPOINT).serve_endpoint(generate)


async def load(
    client: Client, callers: int, items: int, paced: bool, seconds: float
) -> tuple[list[float], float]:
    """The duration of each request in seconds, and how long it took in all."""
    request = {"items": items, "paced": paced}
    durations: list[float] = []
    clock = time.perf_counter
    began = clock()
    until = began + seconds

    async def caller() -> None:
        while (asked := clock()) < until:
            if items == 1:
                await client.call(request)
            else:
                received = 0
                async with client.stream(request) as stream:
                    async for _ in stream:
                        received += 1
                if received != items:
                    raise RuntimeError(f"{received} items came, not {items}")
            durations.append(clock() - asked)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return durations, clock() - began


async def measure(transport: str, seconds: float) -> list[Row]:
    rows = []
    async with DistributedRuntime.from_env() as runtime:
        client = await runtime.endpoint(ENDPOINT).client()
        await client.wait_for_instances(timeout_s=BOUND_S)
        await client.call({"items": 1, "paced": False}, timeout_s=BOUND_S)
        for callers, items, paced in SHAPES:
            await load(client, callers, items, paced, WARM_UP_S)
            durations, spent = await load(client, callers, items, paced, seconds)
            durations.sort()
            rows.append(
                Row(
                    transport=transport,
                    callers=callers,
                    items=items,
                    paced=paced,
                    requests_per_s=len(durations) / spent,
                    items_per_s=len(durations) * items / spent,
                    p50_us=durations[len(durations) // 2] * 1e6,
                    p99_us=durations[len(durations) * 99 // 100] * 1e6,
                )
            )
            show(rows[-1])
    return rows


def show(row: Row) -> None:
    print(
        f"{row.transport:9} {row.callers:7} {row.items:5} {'yes' if row.paced else 'no':>5} "
        f"{row.requests_per_s:10,.0f} {row.items_per_s:10,.0f} {row.p50_us:10,.0f} {row.p99_us:10,.0f}",
        flush=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def where(transport: str, folder: str) -> dict[str, str]:
    """The environment of both processes: a static instance has no Unix socket, one that is found has."""
    found = {"DYN_REQUEST_PLANE": "tcp", "TMPDIR": folder}
    if transport == "unix":
        return {**found, "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": f"{folder}/store"}
    declared = f"{ENDPOINT}=tcp://127.0.0.1:{free_port()}"
    return {**found, "DYN_DISCOVERY_BACKEND": "static", "DYN_STATIC_INSTANCES": declared}


def run(transport: str, loop: str, seconds: float) -> list[Row]:
    """Start the worker, measure from this process, stop the worker."""
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-") as folder:
        surroundings = where(transport, folder)
        worker = subprocess.Popen(
            [sys.executable, __file__, "--worker", "--loop", loop], env={**os.environ, **surroundings}
        )
        before = dict(os.environ)
        os.environ.update(surroundings)
        try:
            with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
                return runner.run(measure(transport, seconds))
        finally:
            os.environ.clear()
            os.environ.update(before)
            worker.terminate()
            try:
                worker.wait(BOUND_S)
            finally:
                worker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the request plane between two processes.")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument(
        "--loop", choices=("asyncio", "uvloop"), default="uvloop" if find_spec("uvloop") else "asyncio"
    )
    parser.add_argument("--transport", choices=("tcp", "unix"), help="one of them only")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
            runner.run(serve())
        return
    setting = {
        "python": platform.python_version(),
        "loop": options.loop,
        "codec": "msgspec" if find_spec("msgspec") else "msgpack",
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "seconds": options.seconds,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    print("transport callers items paced requests/s    items/s     p50 us     p99 us")
    rows: list[Row] = []
    for transport in (options.transport,) if options.transport else ("tcp", "unix"):
        rows += run(transport, options.loop, options.seconds)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps({**setting, "rows": [attrs.asdict(row) for row in rows]}, indent=2) + "\n")
    print(f"written to {OUTPUT}")


if __name__ == "__main__":
    main()
