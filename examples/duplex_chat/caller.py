"""Talk: each line that you type goes into the same call, while its answer arrives. Ctrl-D hangs up."""

import asyncio
import sys
from collections.abc import AsyncIterator

from dynamo.runtime import DistributedRuntime, dynamo_worker


async def typed() -> AsyncIterator[str]:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async for line in lines:
        yield line.decode()


@dynamo_worker()
async def main(runtime: DistributedRuntime) -> None:
    client = await runtime.endpoint("demo.eliza.chat").client()
    async with client.duplex(inputs=typed()) as words:
        async for word in words:
            print(word, end="", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
