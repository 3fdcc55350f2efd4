import asyncio

from dynamo.runtime import DistributedRuntime


async def shout(request):
    for word in request["prompt"].split():
        yield word.upper()


async def main():
    async with DistributedRuntime(discovery="mem", request_plane="mem") as runtime:
        generate = runtime.endpoint("demo.backend.generate")
        client = await generate.client()
        async with generate.serve(shout), client.stream({"prompt": "tokens travel one by one"}) as words:
            async for word in words:
                print(word, end=" ", flush=True)


asyncio.run(main())
