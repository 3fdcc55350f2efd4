"""Serves at the first address of deployment.yaml that is this host's and free; nothing in here is about that.

Start it twice, each in a process of its own.
"""

import asyncio
import os
from collections.abc import AsyncIterator

from dynamo.runtime import DistributedRuntime, dynamo_worker


async def generate(request: dict[str, str]) -> AsyncIterator[str]:
    for word in request["prompt"].split():
        yield f"{word} ({os.getpid()})"


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    # Idempotent: what a dying worker took and never answered may be asked again, of another one.
    await runtime.endpoint("demo.backend.generate").serve_endpoint(generate, idempotent=True)


if __name__ == "__main__":
    asyncio.run(main())
