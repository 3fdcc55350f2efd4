"""The worker behind both applications: streams a prompt back, word by word, and says who left early."""

import asyncio
from collections.abc import AsyncIterator

from dynamo.runtime import DistributedRuntime, dynamo_worker

PAUSE_S = 0.1  # stands for the model's work on one token


async def generate(request: dict[str, str]) -> AsyncIterator[str]:
    said = 0
    try:
        for word in request["prompt"].split():
            yield word
            said += 1
            await asyncio.sleep(PAUSE_S)
    except asyncio.CancelledError:  # the HTTP client left: compute nothing more
        print(f"cancelled after {said} words", flush=True)
        raise


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    await runtime.endpoint("demo.backend.generate").serve_endpoint(generate)


if __name__ == "__main__":
    asyncio.run(main())
