"""Asks four times. Who is declared is asked in turn; who does not answer is passed over."""

import asyncio

from dynamo.runtime import DistributedRuntime, dynamo_worker


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    client = await runtime.endpoint("demo.backend.generate").client()
    for number in range(1, 5):
        async with client.stream({"prompt": f"answer number {number}"}, timeout_s=10) as words:
            print(" ".join([word async for word in words]))


if __name__ == "__main__":
    asyncio.run(main())
