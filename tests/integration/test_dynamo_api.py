"""Dynamo's own ``dynamo.runtime``, as programs written for it use it: the runtime and the worker."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import attrs
import pydantic
import pytest

from dynamo.runtime import (
    BadPayloadError,
    Client,
    ConfigError,
    Context,
    DistributedRuntime,
    PyAsyncRequestStream,
    UnaryClient,
    dynamo_endpoint,
    dynamo_worker,
    serve_unary_endpoint,
)
from unit.deployments import bounded, fresh, make_runtime, until

pytestmark = pytest.mark.anyio

PATH = "demo.backend.generate"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> str:
    """What a deployment sets, for runtimes that read it; returns the store's URL."""
    url = fresh()
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", url)
    monkeypatch.setenv("DYN_REQUEST_PLANE", "mem")
    monkeypatch.setenv("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "0")
    return url


async def generate(request: Any) -> AsyncIterator[Any]:
    for token in request.split():
        yield token


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


# DistributedRuntime.


async def test_several_runtimes_live_in_one_process_with_an_id_each(environment: str) -> None:
    loop = asyncio.get_running_loop()
    runtimes = [DistributedRuntime(loop, environment, "MEM") for _ in range(3)]
    ids = {runtime.endpoint(PATH).connection_id() for runtime in runtimes}
    assert len(ids) == 3
    assert all(0 < number < 2**53 for number in ids)
    assert all(runtime.event_loop() is loop for runtime in runtimes)
    for runtime in runtimes:
        await runtime.shutdown()


async def test_a_detached_runtime_is_new_and_reads_the_environment(environment: str) -> None:
    one, two = DistributedRuntime.detached(), DistributedRuntime.detached()
    assert one.settings.discovery_backend == environment
    assert one.settings.drain_grace_s == 0
    assert one.endpoint(PATH).connection_id() != two.endpoint(PATH).connection_id()
    assert one.event_loop() is asyncio.get_running_loop()


def test_an_adapter_where_the_event_loop_stands_is_told() -> None:
    with pytest.raises(ConfigError, match=r"^event_loop='mem': expected an event loop.*discovery=\.\.\."):
        DistributedRuntime("mem", "mem")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [PATH, f"dyn://{PATH}"])
async def test_an_endpoint_is_found_by_its_path(path: str) -> None:
    endpoint = make_runtime().endpoint(path)
    assert str(endpoint) == PATH
    assert endpoint.id == make_runtime().namespace("demo").component("backend").endpoint("generate").id


@pytest.mark.parametrize("path", ["a.b", "a.b.c.d", "", "dyn://", "a/b/c"])
async def test_a_path_without_three_parts_is_a_value_error_that_shows_it_and_the_form(path: str) -> None:
    with pytest.raises(ValueError, match=r"namespace\.component\.endpoint") as raised:
        make_runtime().endpoint(path)
    assert isinstance(raised.value, ConfigError)
    assert repr(path) in str(raised.value)


@pytest.mark.parametrize("path, part", [("a..c", "component name ''"), ("a.b.c\n", r"endpoint name 'c\n'")])
async def test_a_part_that_is_no_name_is_shown(path: str, part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_runtime().endpoint(path)
    assert part in str(raised.value)


async def test_the_namespace_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_NAMESPACE", "llama-70b")
    endpoint = make_runtime().namespace().component("backend").endpoint("generate")
    assert str(endpoint) == "llama-70b.backend.generate"


# Serving.


async def test_serve_endpoint_serves_until_the_shutdown(environment: str) -> None:
    runtime = DistributedRuntime.detached()
    endpoint = runtime.endpoint(PATH)
    serving = asyncio.ensure_future(endpoint.serve_endpoint(generate))
    client = await endpoint.client()
    assert await bounded(client.wait_for_instances()) == [endpoint.connection_id()]
    stream = await client.generate("hello there", annotated=False)
    assert await bounded(collect(stream)) == ["hello", "there"]
    runtime.shutdown()
    runtime.shutdown()
    await bounded(serving)


@pytest.mark.parametrize("labels", [[("model", "llama")], {"model": "llama"}])
async def test_dynamos_arguments_of_serve_endpoint_are_taken(environment: str, labels: Any) -> None:
    runtime = DistributedRuntime.detached()
    endpoint = runtime.endpoint(PATH)
    serving = asyncio.ensure_future(
        endpoint.serve_endpoint(
            generate, graceful_shutdown=True, metrics_labels=labels, health_check_payload={"prompt": "x"}
        )
    )
    client = await endpoint.client()
    await bounded(client.wait_for_instances())
    (instance,) = client.instances()
    assert instance.metadata["labels"] == {"model": "llama"}
    await runtime.shutdown()
    await bounded(serving)


async def test_an_instance_is_read_as_dynamos_users_do(environment: str) -> None:
    async with DistributedRuntime.detached() as runtime:
        endpoint = runtime.endpoint(PATH)
        async with endpoint.serve(generate):
            client = await endpoint.client()
            (number,) = await bounded(client.wait_for_instances())
            (instance,) = client.instances()
            assert str(instance) == f"demo/backend/generate/{number}"
            assert (instance.namespace, instance.component, instance.endpoint) == (
                "demo",
                "backend",
                "generate",
            )
            assert instance.instance_id == number == endpoint.connection_id()
            assert instance.transport.kind == "mem"
            assert instance.transport.address.startswith("mem://")
            assert instance.device_type is None


async def test_a_bidirectional_endpoint_streams_both_ways(environment: str) -> None:
    async def shout(requests: PyAsyncRequestStream[str], context: Context) -> AsyncIterator[str]:
        async for word in requests:
            yield word.upper()
        yield f"done {context.id()}"

    async with DistributedRuntime.detached() as runtime:
        endpoint = runtime.endpoint(PATH)
        serving = asyncio.ensure_future(endpoint.serve_bidirectional_endpoint(shout))
        client = await endpoint.client()
        await bounded(client.wait_for_instances())
        async with client.duplex("a", context=Context("r1")) as call:
            assert await bounded(anext(call)) == "A"
            await call.send("b")
            assert await bounded(anext(call)) == "B"
            call.end_input()
            assert await bounded(collect(call)) == ["done r1"]
        await runtime.shutdown()
        await bounded(serving)


async def test_a_worker_sleeps_and_wakes(environment: str) -> None:
    async with DistributedRuntime.detached() as runtime:
        endpoint = runtime.endpoint(PATH)
        async with endpoint.serve(generate):
            client = await endpoint.client()
            await bounded(client.wait_for_instances())
            await endpoint.unregister_endpoint_instance()
            await until(lambda: client.instance_ids() == [])
            await endpoint.register_endpoint_instance()
            await until(lambda: client.instance_ids() == [endpoint.connection_id()])


class RouterMode:
    """Looks like a member of Dynamo's enum."""

    name = "RoundRobin"


@pytest.mark.parametrize("mode", [None, RouterMode(), "random", "PowerOfTwo", "least-loaded"])
async def test_a_client_takes_a_router_mode_in_any_spelling(environment: str, mode: Any) -> None:
    async with DistributedRuntime.detached() as runtime:
        async with runtime.endpoint(PATH).serve(generate):
            client = await runtime.endpoint(PATH).client(router_mode=mode)
            await bounded(client.wait_for_instances())
            assert await bounded(collect(await client.generate("one", annotated=False))) == ["one"]


async def test_the_first_generations_words_ask_one_worker_by_its_name(environment: str) -> None:
    async def name_of(request: Any) -> AsyncIterator[str]:
        yield request

    async with make_runtime(environment) as one, make_runtime(environment) as two:
        first = one.namespace("demo").component("backend").endpoint("generate")
        second = two.namespace("demo").component("backend").endpoint("generate")
        async with first.serve(name_of, name="worker-1") as wanted, second.serve(name_of, name="worker-2"):
            client = await two.endpoint(PATH).client(strategy="direct", endpoint_id="worker-1")
            await client.wait_for_instances(2, timeout_s=20)
            for _ in range(4):
                async with client.stream("hello") as stream:
                    assert [item async for item in stream] == ["hello"]
                    assert stream.instance == wanted


async def test_an_unknown_router_mode_is_refused_by_name(environment: str) -> None:
    async with DistributedRuntime.detached() as runtime:
        with pytest.raises(ConfigError, match="telepathy"):
            await runtime.endpoint(PATH).client(router_mode="telepathy")


async def test_a_handler_may_yield_the_envelope_itself(environment: str) -> None:
    async def annotated(request: Any) -> AsyncIterator[Any]:
        yield {"_dynamo_annotated": True, "data": {"n": 1}, "id": "7", "event": "token", "comment": ["c"]}
        yield {"n": 2}

    async with DistributedRuntime.detached() as runtime:
        async with runtime.endpoint(PATH).serve(annotated):
            client = await runtime.endpoint(PATH).client()
            await bounded(client.wait_for_instances())
            first, second = await bounded(collect(await client.generate(None)))
    assert (first.data(), first.id(), first.event(), first.comments()) == ({"n": 1}, "7", "token", ["c"])
    assert (second.data(), second.is_error()) == ({"n": 2}, False)


# The unary adapters.


async def test_unary_programs_run(environment: str) -> None:
    async def answer(request: Any, *, context: Context) -> Any:
        return [request, context.id()]

    async with DistributedRuntime.detached() as runtime:
        endpoint = runtime.endpoint(PATH)
        serving = asyncio.ensure_future(serve_unary_endpoint(endpoint, answer))
        client = await endpoint.client()
        await bounded(client.wait_for_instances())
        assert await bounded(UnaryClient(client).complete("x", context=Context("r"))) == ["x", "r"]
        await runtime.shutdown()
        await bounded(serving)


@pytest.mark.parametrize("items, says", [(0, "returned no response"), (2, "returned multiple responses")])
async def test_unary_clients_insist_on_one_answer(environment: str, items: int, says: str) -> None:
    async def some(request: Any) -> AsyncIterator[int]:
        for number in range(items):
            yield number

    async with DistributedRuntime.detached() as runtime:
        async with runtime.endpoint(PATH).serve(some):
            client = await runtime.endpoint(PATH).client()
            await bounded(client.wait_for_instances())
            with pytest.raises(RuntimeError, match=says):
                await bounded(UnaryClient(client).complete(None))


# Decorators.


async def test_a_worker_function_gets_the_runtime_before_its_arguments(environment: str) -> None:
    runtimes: list[DistributedRuntime] = []

    @dynamo_worker()
    async def worker(runtime: DistributedRuntime, first: int, *, second: str) -> tuple[int, str]:
        """Its own words."""
        runtimes.append(runtime)
        assert runtime.event_loop() is asyncio.get_running_loop()
        return first, second

    assert worker.__doc__ == "Its own words."
    assert await bounded(worker(1, second="two")) == (1, "two")
    (runtime,) = runtimes
    assert runtime.health().detail == "closed"


async def test_how_a_worker_function_is_written_is_told(environment: str) -> None:
    def worker(runtime: DistributedRuntime) -> int:
        return 1

    with pytest.raises(ConfigError, match=r"^write @dynamo_worker\(\) above .*worker, with its parentheses"):
        dynamo_worker(worker)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^@dynamo_worker takes a coroutine: 'async def' .*worker"):
        await bounded(dynamo_worker()(worker)())  # type: ignore[arg-type]


async def test_a_worker_functions_error_is_its_callers(environment: str) -> None:
    @dynamo_worker()
    async def worker(runtime: DistributedRuntime) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await bounded(worker())


async def test_a_cancelled_worker_function_cleans_up(environment: str) -> None:
    events: list[str] = []

    @dynamo_worker()
    async def worker(runtime: DistributedRuntime) -> None:
        async with runtime.endpoint(PATH).serve(generate):
            events.append("serving")
            try:
                await asyncio.Event().wait()
            finally:
                events.append("cleaned up")

    task = asyncio.ensure_future(worker())
    await until(lambda: events)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bounded(task)
    assert events == ["serving", "cleaned up"]


async def test_enable_nats_of_a_worker_is_deprecated(environment: str) -> None:
    @dynamo_worker(enable_nats=False)
    async def worker(runtime: DistributedRuntime) -> str:
        return "ran"

    with pytest.warns(DeprecationWarning, match="enable_nats"):
        assert await bounded(worker()) == "ran"


class Prompt(pydantic.BaseModel):
    text: str
    tokens: int = 5


class Token(pydantic.BaseModel):
    text: str


@dataclasses.dataclass
class Sampling:
    temperature: float = 1.0
    stop: list[str] = dataclasses.field(default_factory=list)


@attrs.frozen
class Order:
    text: str
    sampling: Sampling
    kind: Literal["chat", "complete"] = "chat"
    seed: int | None = None
    bias: dict[str, float] = attrs.field(factory=dict)
    span: tuple[int, int] = (0, 0)


async def typed_call(model: Any, request: Any) -> Any:
    """What a handler of that model says that it was given."""

    @dynamo_endpoint(model, Token)
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield repr(request)

    async with make_runtime() as runtime, runtime.endpoint(PATH).serve(handler):
        client: Client = await runtime.endpoint(PATH).client()
        await bounded(client.wait_for_instances())
        return await bounded(client.call(request))


@pytest.mark.parametrize(
    "model, request_, built",
    [
        (Prompt, {"text": "a"}, Prompt(text="a")),
        (Prompt, json.dumps({"text": "a", "tokens": 7}), Prompt(text="a", tokens=7)),
        (Sampling, {"temperature": 1, "stop": ["x"]}, Sampling(1.0, ["x"])),
        (Sampling, "{}", Sampling()),
        (
            Order,
            {"text": "a", "sampling": {"stop": []}, "seed": 3, "bias": {"b": 1}, "span": [1, 2]},
            Order("a", Sampling(), "chat", 3, {"b": 1.0}, (1, 2)),
        ),
        (Order, {"text": "a", "sampling": {}, "kind": "complete"}, Order("a", Sampling(), "complete")),
        (str, "text", "text"),
        (int, 5, 5),
        (float, 5, 5.0),
        (dict, {"a": 1}, {"a": 1}),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (list[Sampling], [{"temperature": 0.5}], [Sampling(0.5)]),
        (set, [1, 2], {1, 2}),
        (bytes, b"raw", b"raw"),
        (Any, [1, {"x": None}], [1, {"x": None}]),
        (int | str, "seven", "seven"),
        (None, None, None),
    ],
)
async def test_a_typed_handler_gets_its_type(model: Any, request_: Any, built: Any) -> None:
    assert await typed_call(model, request_) == repr(built)


@pytest.mark.parametrize(
    "model, request_, says",
    [
        (Prompt, {"tokens": 5}, "text"),
        (Prompt, "not json", "Expecting value"),
        (Prompt, 5, "Prompt"),
        (Sampling, {"temprature": 1}, "unknown field 'temprature'; did you mean 'temperature'"),
        (Order, {"text": "a"}, "sampling"),
        (
            Order,
            {"text": "a", "sampling": {"temperature": "hot"}},
            "sampling.temperature: expected float, got str",
        ),
        (Order, {"text": "a", "sampling": {}, "kind": "shout"}, "kind: expected one of 'chat', 'complete'"),
        (Order, {"text": "a", "sampling": {}, "span": [1]}, "span: expected array of length 2, got 1"),
        (str, 5, "expected str, got int 5"),
        (int, True, "expected int, got bool"),
        (list[int], {"a": 1}, "expected array, got object"),
        (list[int], [1, "x"], r"\[1\]: expected int, got str"),
    ],
)
async def test_a_request_of_another_shape_is_an_invalid_request(model: Any, request_: Any, says: str) -> None:
    with pytest.raises(BadPayloadError, match=f"(?s)Invalid request: .*{says}") as raised:
        await typed_call(model, request_)
    assert raised.value.remote
    assert isinstance(raised.value, ValueError)


async def test_a_typed_method_and_its_context_work_too() -> None:
    class Engine:
        @dynamo_endpoint(Prompt, Token)
        async def generate(self, request: Prompt, context: Context) -> AsyncIterator[Any]:
            yield Token(text=f"{request.text} for {context.id()}")

        @dynamo_endpoint(Prompt, Token)
        async def count(self, request: Prompt) -> int:
            return request.tokens

    async with make_runtime() as runtime:
        engine = Engine()
        async with (
            runtime.endpoint(PATH).serve(engine.generate),
            runtime.endpoint("a.b.c").serve(engine.count),
        ):
            client, counter = await runtime.endpoint(PATH).client(), await runtime.endpoint("a.b.c").client()
            await bounded(client.wait_for_instances())
            answer = await bounded(client.call({"text": "x"}, context=Context("r")))
            assert answer == {"text": "x for r"}
            assert await bounded(counter.call({"text": "x"})) == 5


# Programs of Dynamo's style.


async def test_a_relay_passes_requests_on_and_its_cancellation_with_them(environment: str) -> None:
    cancelled = asyncio.Event()

    async def engine(request: Any) -> AsyncIterator[Any]:
        try:
            for number in range(request):
                yield number
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    backend, middle, frontend = (DistributedRuntime.detached() for _ in range(3))
    backend_client = await middle.endpoint("demo.engine.generate").client()

    async def relay(request: Any, context: Context) -> AsyncIterator[Any]:
        async for item in await backend_client.generate(request, annotated=False, context=context):
            yield {"relayed": item}

    serving = [
        asyncio.ensure_future(backend.endpoint("demo.engine.generate").serve_endpoint(engine)),
        asyncio.ensure_future(middle.endpoint("demo.middle.generate").serve_endpoint(relay)),
    ]
    client = await frontend.endpoint("demo.middle.generate").client()
    await bounded(client.wait_for_instances())
    await bounded(backend_client.wait_for_instances())
    async with client.stream(2) as items:
        assert [await bounded(anext(items)) for _ in range(2)] == [{"relayed": 0}, {"relayed": 1}]
    await bounded(cancelled.wait())
    for runtime in (frontend, middle, backend):
        await bounded(runtime.shutdown())
    await bounded(asyncio.gather(*serving))


async def test_server_and_client_live_on_one_runtime(environment: str) -> None:
    @dynamo_worker()
    async def program(runtime: DistributedRuntime) -> list[Any]:
        endpoint = runtime.namespace("demo").component("backend").endpoint("generate")
        asyncio.get_running_loop().create_task(endpoint.serve_endpoint(generate))
        client = await endpoint.client()
        await client.wait_for_instances()
        return await collect(await client.round_robin("all in one", annotated=False))

    assert await bounded(program()) == ["all", "in", "one"]
