"""A worker in Dynamo's spelling, which runs unchanged on NVIDIA's wheel and on this library."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
import workload

from dynamo.runtime import DistributedRuntime, dynamo_worker

HANDLERS: dict[str, Any] = {
    "generate": workload.generate,
    "block": workload.block,
    "weigh": workload.weigh,
    "linger": workload.linger,
}


@dynamo_worker()
async def worker(runtime: DistributedRuntime) -> None:
    await asyncio.gather(
        *(
            runtime.endpoint(f"bench.worker.{name}").serve_endpoint(handler)
            for name, handler in HANDLERS.items()
        )
    )


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(worker())
