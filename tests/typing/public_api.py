"""What type checkers see of the public API; checked by mypy and pyright, never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, assert_type

from dynamo.runtime import (
    Annotated,
    Client,
    Component,
    Context,
    DistributedRuntime,
    DynamoError,
    Endpoint,
    EndpointId,
    Health,
    Instance,
    Namespace,
    Phase,
    RemoteError,
    RequestStream,
    ResponseSender,
    ResponseStream,
    Retry,
    Settings,
    Status,
    StreamBrokenError,
    UnaryClient,
    dynamo_endpoint,
    dynamo_worker,
    serve_unary_endpoint,
)


async def generate(request: dict[str, int], context: Context) -> AsyncIterator[int]:
    assert_type(context.id(), str)
    assert_type(context.timeout_s, float | None)
    assert_type(context.is_stopped(), bool)
    assert_type(context.metadata.get("tenant", ""), str)
    assert_type(context.trace_headers(), dict[str, str])
    assert_type(await context.async_killed_or_stopped(), bool)
    yield request["n"]


async def answer(request: Any) -> str:
    return str(request)


async def double(requests: RequestStream[int]) -> AsyncIterator[int]:
    async for number in requests:
        assert_type(number, int)
        yield number * 2


async def push(request: Any, response_sender: ResponseSender) -> None:
    response_sender.send(request)
    response_sender.close()


@dynamo_endpoint(dict, int)
async def typed(request: dict[str, int]) -> AsyncIterator[int]:
    yield request["n"]


assert_type(typed({"n": 1}), AsyncIterator[int])


@dynamo_worker()
async def worker(runtime: DistributedRuntime, model: str, *, replicas: int = 1) -> int:
    assert_type(runtime, DistributedRuntime)
    return len(model) * replicas


assert_type(asyncio.run(worker("llama", replicas=2)), int | None)


async def program() -> None:
    async with DistributedRuntime.from_env(discovery="mem", request_plane="mem") as runtime:
        assert_type(runtime, DistributedRuntime)
        assert_type(runtime.namespace(), Namespace)
        assert_type(runtime.namespace("demo").component("backend"), Component)
        endpoint = runtime.endpoint("demo.backend.generate")
        assert_type(endpoint, Endpoint)
        assert_type(endpoint.id, EndpointId)
        assert_type(endpoint.connection_id(), int)
        assert_type(runtime.settings, Settings)
        assert_type(runtime.event_loop(), asyncio.AbstractEventLoop)
        health = runtime.health()
        assert_type(health, Health)
        assert_type(health.status, Status)
        async with (
            endpoint.serve(
                generate, name="worker-1", max_inflight=8, queue=16, labels={"model": "m"}
            ) as instance,
            runtime.endpoint("demo.backend.answer").serve(answer, idempotent=True),
            runtime.endpoint("demo.backend.double").serve(double),
            runtime.endpoint("demo.backend.push").serve(push, metadata={"device_type": "cuda"}),
        ):
            assert_type(instance, Instance)
            assert_type(instance.phase, Phase)
            assert_type(instance.addresses, tuple[str, ...])
            client = await endpoint.client(strategy="round_robin")
            assert_type(client, Client)
            assert_type(await client.wait_for_instances(), list[int])
            assert_type(client.instances(), list[Instance])
            reply: str = await client.call({"n": 1}, timeout_s=2.5)
            print(reply)
            async with client.stream({"n": 1}, metadata={"tenant": "a"}) as items:
                assert_type(items, ResponseStream)
                async for item in items:
                    print(item)
            async for envelope in await client.generate({"n": 1}):
                assert isinstance(envelope, Annotated)
            print(await UnaryClient(client).complete({"n": 1}))
        assert_type(await endpoint.serve_endpoint(generate, metrics_labels=[("model", "m")]), None)
        await endpoint.register_endpoint_instance()
        ended = runtime.shutdown()
        assert_type(ended, Awaitable[None])
        await ended


async def unary(request: Any, *, context: Context) -> Any:
    return [request, context.id()]


async def serve_unary(endpoint: Endpoint) -> None:
    await serve_unary_endpoint(endpoint, unary)


def what_to_do(error: DynamoError) -> str:
    if isinstance(error, RemoteError):
        assert_type(error.type_name, str)
        assert_type(error.status, int | None)
        return error.message
    if isinstance(error, StreamBrokenError):
        assert_type(error.received, int)
    assert_type(error.retry, Retry)
    return "again" if error.retry is Retry.SAFE and not error.remote else "no"
