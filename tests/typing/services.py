"""What type checkers see of services; checked by mypy and pyright, never run.

What a line ignores is an error of that line: both checkers report an ignore that they do not need.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, assert_type

from attrs import frozen

from dynamo.runtime import (
    Context,
    DistributedRuntime,
    ServedServices,
    ServiceGraph,
    api,
    configured,
    current_context,
    depends,
    endpoint,
    on_shutdown,
    on_start,
    read_config,
    serve_services,
    service,
    service_client,
    using,
)


@frozen
class Options:
    depth: int = 3


@frozen
class Usage:
    words: int


@service(namespace="demo", name="Words", workers=2, resources={"gpu": 1})
class Backend:
    @endpoint
    async def generate(self, prompt: str, max_tokens: int = 16) -> AsyncIterator[str]:
        for word in prompt.split()[:max_tokens]:
            yield word

    @endpoint(name="usage", idempotent=True, max_inflight=8, queue=8)
    async def usage(self, prompt: str) -> Usage:
        return Usage(len(prompt))


@service
class Middle:
    backend = depends(Backend, strategy="least_loaded")
    unseen = depends("somewhere.else:Service")
    options = configured(Options)

    def __init__(self, model: str = "small") -> None:
        self.model = model

    @on_start
    async def load(self) -> None:
        assert_type(self.backend, Backend)
        assert_type(self.unseen, Any)
        assert_type(self.options, Options)
        assert_type(self.options.depth, int)

    @on_shutdown
    async def unload(self) -> None:
        assert_type(current_context(), Context | None)

    @api
    async def generate(self, prompt: str) -> AsyncIterator[str]:
        assert_type(await self.backend.usage(prompt), Usage)
        async for word in using(self.backend, timeout_s=2.0, instance="worker-1").generate(
            prompt, max_tokens=3
        ):
            assert_type(word, str)
            yield word

    @api(path="/v1/usage")
    @endpoint(queue=1, max_inflight=1)
    async def usage(self, prompt: str) -> Usage:
        return await using(self.backend, idle_timeout_s=1.0, context=None).usage(prompt=prompt)

    @endpoint
    async def signatures(self) -> None:
        generate: Callable[[str, int], AsyncIterator[str]] = self.backend.generate
        usage: Callable[[str], Awaitable[Usage]] = self.backend.usage
        assert_type(generate("a b", 3), AsyncIterator[str])
        assert_type(await usage("a b"), Usage)
        assert_type([len(word) async for word in self.backend.generate("a b")], list[int])
        assert_type((await self.backend.usage("a b")).words, int)
        assert_type(await anext(self.backend.generate(max_tokens=1, prompt="a")), str)

    @endpoint
    async def mistakes(self) -> None:
        self.backend.generate(5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        self.backend.generate()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
        self.backend.generate("x", top_k=3)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
        self.backend.generate("x", max_tokens="3")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        self.backend.generat("x")  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
        await self.backend.generate("x")  # type: ignore[misc] # pyright: ignore[reportGeneralTypeIssues]
        async for _ in self.backend.usage("x"):  # type: ignore[attr-defined] # pyright: ignore[reportGeneralTypeIssues]
            pass
        print((await self.backend.usage("x")).wordz)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
        async for word in self.backend.generate("x"):
            print(word + 1)  # type: ignore[operator] # pyright: ignore[reportOperatorIssue]
        await using(self.backend).usage(5)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        using(self.backend, timeout=1.0)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


assert_type(Middle("large"), Middle)
assert_type(Middle().generate("x"), AsyncIterator[str])


async def program() -> None:
    config = read_config("config.yaml", ["--Middle.model=large"])
    graph = ServiceGraph.of(Middle, config=config)
    async with (
        DistributedRuntime.from_env() as runtime,
        serve_services(runtime, Backend, Middle, graph=graph) as served,
    ):
        assert_type(served, ServedServices)
        assert_type(served[Middle], Middle)
        middle = await service_client(runtime, Middle)
        assert_type(middle, Middle)
        async for word in middle.generate("a b"):
            assert_type(word, str)
        middle.generate(None)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        served[Backend].generat("x")  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
        await served.until_shutdown()
