"""A client in Dynamo's spelling, which runs unchanged on NVIDIA's wheel and on this library.

What it runs with: the process id of the worker.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop
import workload

from dynamo.runtime import Client, DistributedRuntime, dynamo_worker


class Calls(workload.Calls):
    def __init__(self, generate: Client, block: Client, weigh: Client, linger: Client) -> None:
        self.generate, self.block, self.weigh, self.linger = generate, block, weigh, linger

    async def ask(self, request: dict[str, Any]) -> int:
        received = 0
        async for _ in await self.generate.generate(request, annotated=False):
            received += 1
        return received

    async def fetch(self, size: int) -> int:
        received = 0
        async for item in await self.block.generate({"bytes": size}, annotated=False):
            received += len(item)
        return received

    async def give(self, size: int) -> int:
        weight = 0
        async for item in await self.weigh.generate(workload.bytes_of(size), annotated=False):
            weight += item
        return weight

    async def leave(self) -> None:
        items = await self.linger.generate(None, annotated=False)
        await anext(items)  # dropping the last reference then kills

    async def hold(self) -> workload.Close:
        held = [await self.linger.generate(None, annotated=False)]
        await anext(held[0])

        async def drop() -> None:
            held.clear()

        return drop

    async def anew(self) -> None:
        runtime = DistributedRuntime.detached()
        client = await runtime.endpoint("bench.worker.generate").client()
        await client.wait_for_instances()
        async for _ in await client.generate({"items": 1, "pause": None}, annotated=False):
            pass
        runtime.shutdown()


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    clients = []
    for name in ("generate", "block", "weigh", "linger"):
        clients.append(await runtime.endpoint(f"bench.worker.{name}").client())
        await clients[-1].wait_for_instances()
    calls = Calls(*clients)
    for _ in range(3):
        await calls.ask({"items": 1, "pause": None})
    await workload.obey(calls, int(sys.argv[1]))


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
