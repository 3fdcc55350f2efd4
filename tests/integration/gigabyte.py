"""One side of a long stream, in a process of its own: ``worker``, or ``caller SIZE COUNT raw|maps``.

The environment says where they meet. The caller waits for a line on its standard input before it reads, and
prints how many bytes arrived.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo.runtime import DistributedRuntime

ENDPOINT = "demo.backend.give"


async def give(request: dict[str, Any]) -> AsyncIterator[Any]:
    """``count`` items of ``size`` bytes: raw from one buffer, or a map that is encoded each time."""
    block = bytes(request["size"])
    view = memoryview(block)
    for number in range(request["count"]):
        yield view if request["raw"] else {"number": number, "data": block}


async def work() -> None:
    async with DistributedRuntime() as runtime, runtime.endpoint(ENDPOINT).serve(give):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def call(size: int, count: int, raw: bool) -> None:
    async with DistributedRuntime() as runtime:
        client = await runtime.endpoint(ENDPOINT).client()
        await client.wait_for_instances()
        request = {"size": size, "count": 1, "raw": raw}
        async with client.stream(request, buffers=True) as items:  # the way is warm
            async for _ in items:
                pass
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        received = 0
        async with client.stream(request | {"count": count}, buffers=True) as items:
            async for item in items:
                received += len(item) if raw else len(item["data"])
        print(received, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    role, *numbers = sys.argv[1:]
    if role == "worker":
        asyncio.run(work())
    else:
        asyncio.run(call(int(numbers[0]), int(numbers[1]), numbers[2] == "raw"))
