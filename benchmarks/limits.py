"""What bounds memory and delay: an unread stream, a gigabyte, and small items beside large ones.

    python benchmarks/limits.py [--loop asyncio|uvloop] [--transport tcp|unix] [--gib 1] [--seconds 5]

Measured between two processes. An unread stream: what its handler could send before it had to wait (the
bound is one window and one item; what the kernel buffers comes out of that window). One GiB through a
stream: how much both processes grew. Items of 16 MiB on one stream: how late the small items of another
stream of the same connection arrive (the target is a p99 below 20 ms).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cancellation import loop_factory, where

from dynamo.runtime import Client, DistributedRuntime

COMPONENT = "bench.cancellation"  # what `where` declares for static discovery
TRANSPORTS = ("tcp", "unix")
MIB = 2**20
BOUND_S = 120.0
ITEM_BYTES = 4096
PACE_S = 0.002


def resident_bytes() -> int:
    """Of this process, by the kernel's word."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Worker:
    """One endpoint, ``linger``, which does what its request names."""

    def __init__(self) -> None:
        self._sent = 0

    async def linger(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        match request["do"]:
            case "pour":  # as much as the window lets through
                self._sent = 0
                while True:
                    yield bytes(ITEM_BYTES)
                    self._sent += ITEM_BYTES
            case "sent":
                yield self._sent
            case "resident":
                yield resident_bytes()
            case "bytes":
                item = bytes(request["size"])
                for _ in range(request["count"]):
                    yield item
            case "ticks":
                while True:
                    yield time.monotonic()
                    await asyncio.sleep(PACE_S)

    @asynccontextmanager
    async def serving(self, runtime: DistributedRuntime) -> AsyncIterator[None]:
        async with runtime.endpoint(f"{COMPONENT}.linger").serve(self.linger):
            yield


async def serve() -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with DistributedRuntime.from_env() as runtime, Worker().serving(runtime):
        await stopped.wait()


async def unread(client: Client, window: int) -> str:
    """How far a handler gets ahead of a reader that took one item and then none."""
    async with client.stream({"do": "pour"}) as items:
        await anext(items)
        sent, unchanged = -1, 0
        while unchanged < 5:
            await asyncio.sleep(0.1)
            now = await client.call({"do": "sent"})
            sent, unchanged = now, unchanged + 1 if now == sent else 0
    return f"sent {sent / 1024:.0f} KiB before it waited; window {window / 1024:.0f} KiB, item {ITEM_BYTES} B"


async def gigabyte(client: Client, gib: float, size: int) -> str:
    """How much both processes grow while that much goes through one stream."""
    count = int(gib * 1024 * MIB / size)
    ours, theirs = resident_bytes(), await client.call({"do": "resident"})
    most_ours = most_theirs = received = 0
    began = time.perf_counter()
    async with client.stream({"do": "bytes", "size": size, "count": count}, buffers=True) as items:
        async for item in items:
            received += len(item)
            if received % (64 * MIB) < size:
                most_ours = max(most_ours, resident_bytes() - ours)
                most_theirs = max(most_theirs, await client.call({"do": "resident"}) - theirs)
    assert received == count * size
    rate = received / MIB / (time.perf_counter() - began)
    return (
        f"{received / MIB:.0f} MiB in items of {size // 1024} KiB at {rate:.0f} MiB/s: caller grew by "
        f"{most_ours / MIB:.1f} MiB, worker by {most_theirs / MIB:.1f} MiB"
    )


async def beside_large_items(client: Client, seconds: float, large: bool) -> str:
    """How late items paced at 2 ms arrive while their connection carries items of 16 MiB, or nothing else."""
    late_ms: list[float] = []
    moved = 0

    async def carry() -> None:
        nonlocal moved
        async with client.stream({"do": "bytes", "size": 16 * MIB, "count": 10**6}, buffers=True) as items:
            async for _ in items:
                moved += 16

    carrier = asyncio.create_task(carry()) if large else None
    began = time.monotonic()
    async with client.stream({"do": "ticks"}) as ticks:
        async for sent_at in ticks:
            now = time.monotonic()
            late_ms.append((now - sent_at) * 1e3)
            if now - began > seconds:
                break
    if carrier is not None:
        carrier.cancel()
        await asyncio.gather(carrier, return_exceptions=True)
    late_ms.sort()
    p50, p99 = (late_ms[int(len(late_ms) * share)] for share in (0.5, 0.99))
    beside = f"{moved / seconds:.0f} MiB/s of 16 MiB items" if large else "nothing"
    return (
        f"{len(late_ms)} small items beside {beside}: "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {late_ms[-1]:.2f} ms"
    )


async def measure(transport: str, gib: float, seconds: float) -> None:
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(DistributedRuntime.from_env())
        client = await runtime.endpoint(f"{COMPONENT}.linger").client()
        await client.wait_for_instances(timeout_s=BOUND_S)
        async with asyncio.timeout(BOUND_S):
            print(
                f"{transport:5} unread    {await unread(client, runtime.settings.window_bytes)}", flush=True
            )
            for size in (64 * 1024, MIB):
                print(f"{transport:5} gigabyte  {await gigabyte(client, gib, size)}", flush=True)
            for large in (False, True):
                print(
                    f"{transport:5} small     {await beside_large_items(client, seconds, large)}", flush=True
                )


def run(transport: str, loop: str, gib: float, seconds: float) -> None:
    """Start the worker, measure from this process, stop the worker."""
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-") as folder:
        before = dict(os.environ)
        os.environ.update(where(transport, folder))
        worker = subprocess.Popen([sys.executable, Path(__file__), "--loop", loop, "--worker"])
        try:
            with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
                runner.run(measure(transport, gib, seconds))
        finally:
            os.environ.clear()
            os.environ.update(before)
            worker.terminate()
            try:
                worker.wait(BOUND_S)
            finally:
                worker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what bounds memory and delay.")
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of small items")
    parser.add_argument(
        "--loop", choices=("asyncio", "uvloop"), default="uvloop" if find_spec("uvloop") else "asyncio"
    )
    parser.add_argument("--transport", choices=TRANSPORTS, help="one of them only")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
            runner.run(serve())
        return
    print(f"{options.loop}, one caller and one worker process")
    for transport in (options.transport,) if options.transport else TRANSPORTS:
        run(transport, options.loop, options.gib, options.seconds)


if __name__ == "__main__":
    main()
