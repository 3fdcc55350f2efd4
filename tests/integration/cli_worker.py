"""A worker for the command's tests: says when it serves, and how each call ended."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo.runtime import Context, DistributedRuntime


async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
    """``count`` items, text or maps; then nothing, an error, or a wait that only a cancel ends."""
    try:
        for number in range(request.get("count", 3)):
            yield {"number": number} if request.get("maps") else f"word-{number}"
        if request.get("hang"):
            await asyncio.Event().wait()
        if request.get("fail"):
            raise KeyError("no such\nmodel")
    except asyncio.CancelledError:
        if tag := request.get("tag"):
            print("cancelled", tag, flush=True)
        raise


async def main() -> None:
    async with DistributedRuntime(handle_signals=True) as runtime:
        async with runtime.endpoint("demo.backend.generate").serve(generate, name=sys.argv[1]):
            print("serving", runtime.connection_id(), flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
