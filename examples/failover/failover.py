"""A worker is killed in mid-sentence; another one goes on with the words that are missing.

Started without arguments, it starts two workers (itself, with a name) and asks them.
"""

import asyncio
import sys
from typing import Any

from dynamo.engines.echo import EchoEngine, EchoRequest
from dynamo.runtime import DistributedRuntime, dynamo_worker

STORY = (
    "A worker may die in the middle of a sentence, and whoever asked need not notice, "
    "because another one goes on with the words that are missing."
)


@dynamo_worker(discovery="file")
async def work(runtime: DistributedRuntime, name: str) -> None:
    engine = EchoEngine(delay_s=0.04)
    await runtime.endpoint("demo.backend.generate").serve_endpoint(
        engine.generate, name=name, idempotent=True
    )


def rest_of(request: EchoRequest, items_so_far: list[Any]) -> EchoRequest:
    """What to ask another worker for, once the first one died after these items."""
    arrived = "".join(item["text"] for item in items_so_far)
    return {"prompt": request["prompt"].removeprefix(arrived)}


@dynamo_worker(discovery="file")
async def ask(runtime: DistributedRuntime) -> None:
    names = ("worker-1", "worker-2")
    workers = {name: await asyncio.create_subprocess_exec(sys.executable, __file__, name) for name in names}
    try:
        client = await runtime.endpoint("demo.backend.generate").client()
        await client.wait_for_instances(len(workers), timeout_s=20)
        async with client.stream({"prompt": STORY}, resume=rest_of) as items:
            speaker, said = None, 0
            async for item in items:
                assert items.instance is not None
                if items.instance.name != speaker:
                    speaker = items.instance.name
                    print(f"\n{speaker}: ", end="")
                print(item["text"], end="", flush=True)
                said += 1
                if said == 9:
                    workers[str(speaker)].kill()
        print()
    finally:
        for worker in workers.values():
            if worker.returncode is None:
                worker.terminate()
            await worker.wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]) if sys.argv[1:] else ask())
