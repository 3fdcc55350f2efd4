"""The frontend: takes requests as demo.frontend.chat and passes each on to one worker.

When a worker dies in the middle of an answer, another one goes on with the words that are missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dynamo.engines.echo import EchoRequest
from dynamo.runtime import Context, DistributedRuntime, dynamo_worker


def rest_of(request: EchoRequest, items_so_far: list[Any]) -> EchoRequest:
    """What to ask another worker for, when the first one died after these items."""
    arrived = "".join(item["text"] for item in items_so_far)
    return {"prompt": request["prompt"].removeprefix(arrived)}


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    backend = await runtime.endpoint("demo.backend.generate").client(strategy="round_robin")

    async def chat(request: EchoRequest, context: Context) -> AsyncIterator[dict[str, Any]]:
        async with backend.stream(request, context=context, resume=rest_of) as items:
            async for item in items:
                yield item

    await runtime.endpoint("demo.frontend.chat").serve_endpoint(chat)


if __name__ == "__main__":
    asyncio.run(main())
