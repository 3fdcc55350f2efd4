"""Dynamo's unary adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from dynamo.core.codec import encode
from dynamo.core.context import Context
from dynamo.core.ports.request_plane import IncomingCall
from dynamo.core.unary import UnaryClient, serve_unary_endpoint
from unit.calling import deployed, reply, until

pytestmark = pytest.mark.anyio


async def test_it_returns_the_one_response() -> None:
    async with deployed() as world:
        worker = await world.worker(reply({"answer": 1}))
        client = UnaryClient(await world.ready_client())
        assert await client.complete("q", context=Context("mine")) == {"answer": 1}
        assert worker.calls[0].request.request_id == "mine"


async def test_an_envelope_is_opened() -> None:
    async with deployed() as world:
        await world.worker(reply({"_dynamo_annotated": True, "data": 5}))
        assert await UnaryClient(await world.ready_client()).complete("q") == 5


async def test_no_response_is_a_runtime_error() -> None:
    async with deployed() as world:
        await world.worker(reply())
        with pytest.raises(RuntimeError, match="returned no response"):
            await UnaryClient(await world.ready_client()).complete("q")


async def test_several_responses_are_a_runtime_error_and_a_kill() -> None:
    def answer(call: IncomingCall) -> None:
        call.send(encode(1))
        call.send(encode(2))

    async with deployed() as world:
        worker = await world.worker(answer)
        with pytest.raises(RuntimeError, match="returned multiple responses"):
            await UnaryClient(await world.ready_client()).complete("q")
        await until(lambda: worker.cancelled == [True])


async def test_a_unary_handler_is_served_as_a_stream_of_one() -> None:
    served: list[Callable[..., AsyncIterator[Any]]] = []

    class Endpoint:
        async def serve_endpoint(self, handler: Callable[..., AsyncIterator[Any]]) -> None:
            served.append(handler)

    async def handler(request: Any, *, context: Context) -> Any:
        return [request, context.id()]

    await serve_unary_endpoint(Endpoint(), handler)
    assert [item async for item in served[0]("q", context=Context("mine"))] == [["q", "mine"]]
