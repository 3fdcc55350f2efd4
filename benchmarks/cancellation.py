"""How soon a handler knows that its caller has left: from the leave to the CancelledError, on every plane.

    python benchmarks/cancellation.py [--calls 300] [--loop asyncio|uvloop] [--transport mem|tcp|unix]

Prints a table: alone, and beside streams that keep both processes busy. Caller and worker are two processes,
but for mem, and share the monotonic clock of their host. The target is a p99 below 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from processes import LOOPS, default_loop, environment, loop_factory, process, python, until_told, where

from dynamo.runtime import Client, Context, DistributedRuntime

ENDPOINTS = tuple(f"bench.cancellation.{name}" for name in ("linger", "chatter", "cancelled_at"))
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
            handlers: tuple[Any, ...] = (self.linger, self.chatter, self.cancelled_at)
            for path, handler in zip(ENDPOINTS, handlers, strict=True):
                await stack.enter_async_context(runtime.endpoint(path).serve(handler))
            yield


async def serve() -> None:
    async with DistributedRuntime.from_env() as runtime, Worker().serving(runtime):
        await until_told()


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
        linger, chatter, cancelled_at = [await runtime.endpoint(path).client() for path in ENDPOINTS]
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


def run(transport: str, loop: str, calls: int) -> None:
    """Start the worker, measure from this process, stop the worker."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dyn-bench-")))
        stack.enter_context(environment(where(transport, folder, ENDPOINTS)))
        if transport != "mem":
            stack.enter_context(process([*python("cancellation.py"), "--loop", loop, "--worker"]))
        with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
            runner.run(measure(transport, calls))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how soon a handler knows that its caller has left.")
    parser.add_argument("--calls", type=int, default=300, help="left in each way")
    parser.add_argument("--loop", choices=LOOPS, default=default_loop())
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
