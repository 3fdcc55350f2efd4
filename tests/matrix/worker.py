"""The worker that every end-to-end test calls: a program of its own, or a runtime inside the test's process.

As a program, ``python worker.py NAME``, the environment says how it is found and called. It prints ``ready``
once everything is registered, drains on SIGTERM and exits with 0.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from dynamo.core.errors import OverloadedError
from dynamo.runtime import Client, Context, DistributedRuntime, RequestStream

COMPONENT = "matrix.worker"
ENDPOINTS = ("echo", "count", "total", "fail", "linger", "relay", "ended")


class Handlers:
    """What one worker serves; every answer says whose it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.relayed: Client | None = None
        self._ends: defaultdict[str, asyncio.Future[str]] = defaultdict(
            asyncio.get_running_loop().create_future
        )

    async def echo(self, request: Any, context: Context) -> dict[str, Any]:
        """One item, after ``pause_s`` where the request asks for it."""
        if isinstance(request, dict) and "pause_s" in request:
            await asyncio.sleep(request["pause_s"])
        return {
            "worker": self.name,
            "request": request,
            "id": context.id(),
            "metadata": dict(context.metadata),
            "timeout_s": context.timeout_s,
        }

    async def count(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """``items`` items of ``bytes`` bytes each, ``pause_s`` apart."""
        filling = bytes(request.get("bytes", 0))
        for number in range(request["items"]):
            if "pause_s" in request:
                await asyncio.sleep(request["pause_s"])
            yield {"worker": self.name, "number": number, "filling": filling}

    async def total(self, numbers: RequestStream[int]) -> AsyncIterator[dict[str, Any]]:
        """The sum so far after each number, and whether it is the last one at the end of the input."""
        total = 0
        async for number in numbers:
            total += number
            yield {"worker": self.name, "total": total, "last": False}
        yield {"worker": self.name, "total": total, "last": True}

    async def fail(self, request: dict[str, Any]) -> AsyncIterator[int]:
        """Raise after ``items`` items: a class of the library, or one that it does not know."""
        for number in range(request["items"]):
            yield number
        if request["ours"]:
            raise OverloadedError("the engine behind this worker is full")
        raise KeyError("no such adapter")

    async def linger(self, request: Any, context: Context) -> AsyncIterator[str]:
        """Say who it is, then run until somebody ends it; ``ended`` tells how that came."""
        end = self._ends[context.id()]
        try:
            yield self.name
            await context.async_killed_or_stopped()
            if context.is_killed():
                await asyncio.get_running_loop().create_future()  # the cancellation comes on its own
            yield "asked to stop"
            end.set_result("stopped")
        except asyncio.CancelledError:
            end.set_result("cancelled")
            raise

    async def relay(self, request: Any, context: Context) -> AsyncIterator[str]:
        """Pass on what another endpoint streams, as a part of this call."""
        assert self.relayed is not None
        async with self.relayed.stream(request, context=context) as items:
            async for item in items:
                yield item

    async def ended(self, request_id: str) -> str:
        """Wait for the end of a ``linger`` call of this worker, and say how it came."""
        return await asyncio.shield(self._ends[request_id])


@asynccontextmanager
async def serving(runtime: DistributedRuntime, name: str) -> AsyncIterator[None]:
    """Serve everything under ``COMPONENT``; reachable and registered when the block begins."""
    handlers = Handlers(name)
    async with AsyncExitStack() as stack:
        for endpoint in ENDPOINTS:
            served = runtime.endpoint(f"{COMPONENT}.{endpoint}")
            await stack.enter_async_context(
                served.serve(getattr(handlers, endpoint), name=name, metadata={"zone": name})
            )
        handlers.relayed = await runtime.endpoint(f"{COMPONENT}.linger").client()
        yield


async def main(name: str) -> None:
    told_to_leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_leave.set)
    async with DistributedRuntime.from_env() as runtime, serving(runtime, name):
        print("ready", flush=True)
        await told_to_leave.wait()
        await runtime.shutdown()


def loop_factory() -> asyncio.AbstractEventLoop:
    """The loop that the session asks for, in workers too."""
    if os.environ.get("DYNAMO_TEST_LOOP") == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(sys.argv[1]))
