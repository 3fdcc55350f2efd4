"""A worker that echoes, in a process of its own: prints its address, and ends with its standard input."""

from __future__ import annotations

import asyncio
import json
import sys

from integration.planes import working


async def main() -> None:
    scheme, settings = sys.argv[1], json.loads(sys.argv[2])
    async with working(scheme, **settings) as worker:
        print(worker.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
