"""A worker: serves the echo engine as demo.backend.generate until told to stop. Usage: worker.py NAME"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo.engines.echo import EchoEngine, EchoRequest
from dynamo.runtime import Context, DistributedRuntime, dynamo_worker


@dynamo_worker()
async def main(runtime: DistributedRuntime, name: str) -> None:
    engine = EchoEngine(delay_s=0.04)

    async def generate(request: EchoRequest, context: Context) -> AsyncIterator[dict[str, Any]]:
        async for item in engine.generate(request, context):
            yield {**item, "worker": name}

    # An echo may be started twice without harm, so callers may try again what a dying worker never answered.
    await runtime.endpoint("demo.backend.generate").serve_endpoint(generate, name=name, idempotent=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
