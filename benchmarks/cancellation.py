"""How soon a handler knows that its caller has left: from the leave to the CancelledError, on every plane.

    python benchmarks/cancellation.py [--calls 300] [--loop asyncio|uvloop] [--transport mem|tcp|unix]

Prints a table: alone, and beside streams that keep both processes busy. Caller and worker are two processes,
but for mem, and share the monotonic clock of their host. The target is a p99 below 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynamo.runtime import Client, Context, DistributedRuntime

COMPONENT = "bench.cancellation"
TRANSPORTS = ("mem", "tcp", "unix")
BUSY_STREAMS = 32
BOUND_S = 30.0  # for what must come at all


class Worker:
    """Handlers that run until they are cancelled, and when that was."""

    def __init__(self) -> None:
        self._cancelled_at: defaultdict[str, asyncio.Future[float]] = defaultdict(
            asyncio.get_running_loop().create_future
        )

    async def linger(self, request: Any, context: Context) -> AsyncIterator[int]:
        """One item, then nothing until the caller leaves."""
        try:
            yield 0
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self._cancelled_at[context.id()].set_result(time.monotonic())
            raise

    async def chatter(self, request: Any) -> AsyncIterator[dict[str, Any]]:
        """Items without an end, as fast as the loop goes round."""
        while True:
            await asyncio.sleep(0)
            yield {"token_ids": [1], "text": " word"}

    async def cancelled_at(self, request_id: str) -> float:
        """When the ``linger`` call of this id was cancelled, on the monotonic clock."""
        return await self._cancelled_at[request_id]

    @asynccontextmanager
    async def serving(self, runtime: DistributedRuntime) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for handler in (self.linger, self.chatter, self.cancelled_at):
                endpoint = runtime.endpoint(f"{COMPONENT}.{handler.__name__}")
                await stack.enter_async_context(endpoint.serve(handler))
            yield


async def serve() -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with DistributedRuntime.from_env() as runtime, Worker().serving(runtime):
        await stopped.wait()
        await runtime.shutdown()


# Ways to leave; each returns the moment at which it left.


async def leave_the_block(linger: Client, context: Context) -> float:
    async with linger.stream(None, context=context) as items:
        await anext(items)
        left_at = time.monotonic()
    return left_at


async def cancel_the_task(linger: Client, context: Context) -> float:
    reading = asyncio.Event()

    async def read() -> None:
        async with linger.stream(None, context=context) as items:
            await anext(items)
            reading.set()
            await anext(items)

    task = asyncio.create_task(read())
    await reading.wait()
    left_at = time.monotonic()
    task.cancel()
    await asyncio.wait((task,))
    return left_at


async def close_the_stream(linger: Client, context: Context) -> float:
    items = await linger.stream(None, context=context)
    await anext(items)
    left_at = time.monotonic()
    await items.aclose()
    return left_at


async def drop_the_stream(linger: Client, context: Context) -> float:
    items = await linger.generate(None, context=context)
    await anext(items)
    left_at = time.monotonic()
    del items
    return left_at


WAYS = (leave_the_block, cancel_the_task, close_the_stream, drop_the_stream)


async def measure(transport: str, calls: int) -> None:
    """Print the rows of one transport."""
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(DistributedRuntime.from_env())
        if transport == "mem":
            working = await stack.enter_async_context(DistributedRuntime.from_env())
            await stack.enter_async_context(Worker().serving(working))
        linger, chatter, cancelled_at = [
            await runtime.endpoint(f"{COMPONENT}.{name}").client()
            for name in ("linger", "chatter", "cancelled_at")
        ]
        await cancelled_at.wait_for_instances(timeout_s=BOUND_S)
        for busy in (0, BUSY_STREAMS):
            readers = [asyncio.create_task(read_all(chatter)) for _ in range(busy)]
            for leave in WAYS:
                taken_ms = []
                for _ in range(calls):
                    context = Context()
                    async with asyncio.timeout(BOUND_S):
                        left_at = await leave(linger, context)
                        known_at: float = await cancelled_at.call(context.id())
                    taken_ms.append((known_at - left_at) * 1e3)
                show(transport, leave.__name__, busy, sorted(taken_ms))
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)


async def read_all(chatter: Client) -> None:
    async with chatter.stream(None) as items:
        async for _ in items:
            pass


def show(transport: str, way: str, busy: int, taken_ms: list[float]) -> None:
    p50, p99 = (taken_ms[min(len(taken_ms) - 1, int(len(taken_ms) * share))] for share in (0.5, 0.99))
    words = way.replace("_", " ")
    print(
        f"{transport:9} {words:16} {busy:7} {p50:8.2f} {p99:8.2f} {taken_ms[-1]:8.2f}"
        + ("" if p99 < 100 else "   over 100 ms"),
        flush=True,
    )


def where(transport: str, folder: str) -> dict[str, str]:
    """The environment of both processes: a static instance has no Unix socket, one that is found has."""
    found = {"DYN_REQUEST_PLANE": "tcp", "TMPDIR": folder, "DYN_DRAIN_GRACE_S": "0"}
    match transport:
        case "mem":
            return {**found, "DYN_REQUEST_PLANE": "mem", "DYN_DISCOVERY_BACKEND": "mem"}
        case "unix":
            return {**found, "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": f"{folder}/store"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    names = ("linger", "chatter", "cancelled_at")
    declared = ";".join(f"{COMPONENT}.{name}={address}" for name in names)
    return {**found, "DYN_DISCOVERY_BACKEND": "static", "DYN_STATIC_INSTANCES": declared}


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def run(transport: str, loop: str, calls: int) -> None:
    """Start the worker, measure from this process, stop the worker."""
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-") as folder:
        before = dict(os.environ)
        os.environ.update(where(transport, folder))
        worker: subprocess.Popen[bytes] | None = None
        if transport != "mem":
            worker = subprocess.Popen([sys.executable, Path(__file__), "--loop", loop, "--worker"])
        try:
            with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
                runner.run(measure(transport, calls))
        finally:
            os.environ.clear()
            os.environ.update(before)
            if worker is not None:
                worker.terminate()
                try:
                    worker.wait(BOUND_S)
                finally:
                    worker.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how soon a handler knows that its caller has left.")
    parser.add_argument("--calls", type=int, default=300, help="left in each way")
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
    print(f"{options.calls} calls each, {options.loop}; streams beside, then milliseconds")
    print("transport way              streams      p50      p99      max")
    for transport in (options.transport,) if options.transport else TRANSPORTS:
        run(transport, options.loop, options.calls)


if __name__ == "__main__":
    main()
