"""Requests and items a second between two processes, over TCP and over its Unix-socket fast path.

    python benchmarks/request_plane.py [--seconds 3] [--loop asyncio|uvloop] [--transport tcp|unix|bare]

Prints a table and writes build/bench/request_plane.json. One process calls, one works; msgspec and uvloop
serve where they are installed, unless --loop says otherwise. The `bare` rows are what Python can do at all on
this machine at this moment; the last column is the share of it. Trust shares, not figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import bare

from dynamo.runtime import DistributedRuntime

TRANSPORTS = ("bare", "tcp", "unix")
ENDPOINT = "bench.worker.generate"
OUTPUT = Path("build/bench/request_plane.json")
WARM_UP_S = 0.5
BOUND_S = 30.0  # for what must come at all
Shape = tuple[int, int, bool]  # callers, items, paced
Ask = Callable[[dict[str, Any]], Awaitable[int]]  # send a request, read its answer, count the items
SHAPES: tuple[Shape, ...] = (
    (1, 1, False),
    (64, 1, False),
    (1, 100, False),
    (64, 100, False),
    (1, 100, True),
    (64, 100, True),
)


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
    share_of_bare: float | None


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


async def serve_bare(port: int) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await bare.serve(generate, port, stopped.wait())


@asynccontextmanager
async def runtime_asker() -> AsyncIterator[Ask]:
    async with DistributedRuntime.from_env() as runtime:
        client = await runtime.endpoint(ENDPOINT).client()
        await client.wait_for_instances(timeout_s=BOUND_S)
        await client.call({"items": 1, "paced": False}, timeout_s=BOUND_S)

        async def ask(request: dict[str, Any]) -> int:
            if request["items"] == 1:
                await client.call(request)
                return 1
            received = 0
            async with client.stream(request) as items:
                async for _ in items:
                    received += 1
            return received

        yield ask


@asynccontextmanager
async def bare_asker(port: int) -> AsyncIterator[Ask]:
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                caller = await bare.connect(port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)

    async def ask(request: dict[str, Any]) -> int:
        received = 0
        async for _ in caller.ask(request):
            received += 1
        return received

    yield ask
    caller.transport.close()


async def load(ask: Ask, callers: int, items: int, paced: bool, seconds: float) -> tuple[list[float], float]:
    """The duration of each request in seconds, and how long it took in all."""
    request = {"items": items, "paced": paced}
    durations: list[float] = []
    clock = time.perf_counter
    began = clock()
    until = began + seconds

    async def caller() -> None:
        while (asked := clock()) < until:
            if (received := await ask(request)) != items:
                raise RuntimeError(f"{received} items came, not {items}")
            durations.append(clock() - asked)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    return durations, clock() - began


async def measure(transport: str, port: int, seconds: float, ceiling: dict[Shape, float]) -> list[Row]:
    rows: list[Row] = []
    async with bare_asker(port) if transport == "bare" else runtime_asker() as ask:
        for shape in SHAPES:
            callers, items, paced = shape
            await load(ask, *shape, WARM_UP_S)
            durations, spent = await load(ask, *shape, seconds)
            durations.sort()
            requests_per_s = len(durations) / spent
            row = Row(
                transport=transport,
                callers=callers,
                items=items,
                paced=paced,
                requests_per_s=requests_per_s,
                items_per_s=requests_per_s * items,
                p50_us=durations[len(durations) // 2] * 1e6,
                p99_us=durations[len(durations) * 99 // 100] * 1e6,
                share_of_bare=requests_per_s / ceiling[shape] if shape in ceiling else None,
            )
            show(row)
            rows.append(row)
    return rows


def show(row: Row) -> None:
    print(
        f"{row.transport:9} {row.callers:7} {row.items:5} {'yes' if row.paced else 'no':>5} "
        f"{row.requests_per_s:10,.0f} {row.items_per_s:10,.0f} {row.p50_us:10,.0f} {row.p99_us:10,.0f}"
        + (f" {row.share_of_bare:7.0%}" if row.share_of_bare is not None else ""),
        flush=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def where(transport: str, port: int, folder: str) -> dict[str, str]:
    """The environment of both processes: a static instance has no Unix socket, one that is found has."""
    found = {"DYN_REQUEST_PLANE": "tcp", "TMPDIR": folder}
    if transport == "unix":
        return {**found, "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": f"{folder}/store"}
    declared = f"{ENDPOINT}=tcp://127.0.0.1:{port}"
    return {**found, "DYN_DISCOVERY_BACKEND": "static", "DYN_STATIC_INSTANCES": declared}


def run(transport: str, loop: str, seconds: float, ceiling: dict[Shape, float]) -> list[Row]:
    """Start the worker, measure from this process, stop the worker."""
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-") as folder:
        port, before = free_port(), dict(os.environ)
        os.environ.update(where(transport, port, folder))
        worker = subprocess.Popen(
            [sys.executable, __file__, "--loop", loop, "--transport", transport, "--worker", str(port)]
        )
        try:
            with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
                return runner.run(measure(transport, port, seconds, ceiling))
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
    parser.add_argument("--transport", choices=TRANSPORTS, help="one of them only")
    parser.add_argument("--worker", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
            runner.run(serve_bare(options.worker) if options.transport == "bare" else serve())
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
    print("transport callers items paced requests/s    items/s     p50 us     p99 us of bare")
    rows: list[Row] = []
    for transport in (options.transport,) if options.transport else TRANSPORTS:
        ceiling = {
            (row.callers, row.items, row.paced): row.requests_per_s for row in rows if row.transport == "bare"
        }
        rows += run(transport, options.loop, options.seconds, ceiling)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps({**setting, "rows": [attrs.asdict(row) for row in rows]}, indent=2) + "\n")
    print(f"written to {OUTPUT}")


if __name__ == "__main__":
    main()
