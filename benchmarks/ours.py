"""This library under load: python ours.py server | client SERVER_PID | both

The environment says where they meet. Every call has a deadline and metadata; metrics, windows, cancellation
and retries are as they are by default. uvloop runs where it is installed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import workload
from workload import TIMEOUT_S, TRACE

from dynamo.runtime import Client, Context, DistributedRuntime, RequestStream

try:
    from uvloop import new_event_loop
except ModuleNotFoundError:
    from asyncio import new_event_loop  # type: ignore[assignment]

COMPONENT = "bench.worker"


async def block(request: dict[str, Any], context: Context) -> AsyncIterator[memoryview]:
    """As the common handler, but a buffer, which goes as it is."""
    yield memoryview(workload.bytes_of(request["bytes"]))


async def echo(inputs: RequestStream[Any], context: Context) -> AsyncIterator[Any]:
    async for item in inputs:
        yield item


HANDLERS: dict[str, Any] = {
    "generate": workload.generate,
    "block": block,
    "weigh": workload.weigh,
    "linger": workload.linger,
    "echo": echo,
}


class Calls(workload.Calls):
    def __init__(self, generate: Client, block: Client, weigh: Client, linger: Client, echo: Client) -> None:
        self.generate, self.block, self.weigh, self.linger, self._echo = generate, block, weigh, linger, echo

    @classmethod
    @asynccontextmanager
    async def of(cls, runtime: DistributedRuntime) -> AsyncIterator[Calls]:
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(await runtime.endpoint(f"{COMPONENT}.{name}").client())
                for name in HANDLERS
            ]
            for client in clients:
                await client.wait_for_instances(timeout_s=TIMEOUT_S)
            calls = cls(*clients)
            await calls.ask({"items": 1, "pause": None})  # a static instance is there before its process is
            yield calls

    async def ask(self, request: dict[str, Any]) -> int:
        if request["items"] == 1:
            await self.generate.call(request, timeout_s=TIMEOUT_S, metadata=TRACE)
            return 1
        received = 0
        async with self.generate.stream(request, timeout_s=TIMEOUT_S, metadata=TRACE) as items:
            async for _ in items:
                received += 1
        return received

    async def fetch(self, size: int) -> int:
        request = {"bytes": size}
        return len(await self.block.call(request, timeout_s=TIMEOUT_S, metadata=TRACE, buffers=True))

    async def give(self, size: int) -> int:
        data = memoryview(workload.bytes_of(size))
        weight: int = await self.weigh.call(data, timeout_s=TIMEOUT_S, metadata=TRACE)
        return weight

    async def leave(self) -> None:
        async with self.linger.stream(None, timeout_s=TIMEOUT_S, metadata=TRACE) as items:
            await anext(items)

    async def hold(self) -> workload.Close:
        items = self.linger.stream(None, metadata=TRACE)
        await anext(items)
        return items.aclose

    async def echo(self, count: int) -> int:
        async def inputs() -> AsyncIterator[dict[str, Any]]:
            for index in range(count):
                yield {"token_ids": [index], "text": " word"}

        received = 0
        async with self._echo.duplex(inputs=inputs(), timeout_s=TIMEOUT_S, metadata=TRACE) as items:
            async for _ in items:
                received += 1
        return received

    async def anew(self) -> None:
        async with DistributedRuntime.from_env() as runtime:
            client = await runtime.endpoint(f"{COMPONENT}.generate").client()
            await client.wait_for_instances(timeout_s=TIMEOUT_S)
            await client.call({"items": 1, "pause": None}, timeout_s=TIMEOUT_S)


async def serve() -> None:
    async with DistributedRuntime.from_env(handle_signals=True) as runtime:
        endpoints = ((runtime.endpoint(f"{COMPONENT}.{name}"), HANDLERS[name]) for name in HANDLERS)
        await asyncio.gather(*(endpoint.serve_endpoint(handler) for endpoint, handler in endpoints))


async def call(server_pid: int) -> None:
    async with DistributedRuntime.from_env() as runtime, Calls.of(runtime) as calls:
        await workload.obey(calls, server_pid)


async def both() -> None:
    async with DistributedRuntime.from_env() as runtime, AsyncExitStack() as stack:
        for name, handler in HANDLERS.items():
            await stack.enter_async_context(runtime.endpoint(f"{COMPONENT}.{name}").serve(handler))
        await call(0)


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"server": serve, "client": call, "both": both}

if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(ROLES[role](*map(int, rest)))
