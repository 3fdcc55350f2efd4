"""Services in one process over the memory adapters: calls through ``depends``, contexts, start and end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import attrs
import pytest

from dynamo.runtime import (
    BadPayloadError,
    CallCancelledError,
    ConfigError,
    Context,
    DeadlineError,
    DistributedRuntime,
    NoInstancesError,
    RemoteError,
    ServiceGraph,
    api,
    configured,
    current_context,
    depends,
    endpoint,
    on_shutdown,
    on_start,
    serve_services,
    service,
    service_client,
    using,
)

pytestmark = pytest.mark.anyio

BOUND_S = 10.0

happened: list[str] = []
calls: list[Any] = []
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Gate:
    """What a test and a handler wait for; made anew for each test."""

    def __init__(self) -> None:
        self.entered, self.left, self.open = asyncio.Event(), asyncio.Event(), asyncio.Event()


gate: Gate


@pytest.fixture(autouse=True)
def fresh() -> None:
    global gate
    happened.clear()
    calls.clear()
    gate = Gate()


async def within(waiting: Any) -> Any:
    return await asyncio.wait_for(waiting, BOUND_S)


def make_runtime(**options: Any) -> DistributedRuntime:
    options = {
        "discovery": f"mem://{uuid.uuid4().hex}",
        "request_plane": "mem",
        "drain_grace_s": 0.0,
        **options,
    }
    return DistributedRuntime(**options)


@attrs.define
class Usage:
    words: int
    longest: str | None = None


@attrs.frozen
class Options:
    suffix: str = "!"


@service(namespace="demo")
class Backend:
    @on_start
    async def load(self) -> None:
        happened.append("backend starts")

    @on_shutdown
    async def unload(self) -> None:
        happened.append("backend ends")

    @endpoint(idempotent=True)
    async def generate(self, prompt: str, max_tokens: int = 16) -> AsyncIterator[str]:
        calls.append(prompt)
        for word in prompt.split()[:max_tokens]:
            yield word

    @endpoint
    async def usage(self, prompt: str) -> Usage:
        return Usage(len(prompt.split()), max(prompt.split(), key=len, default=None))

    @endpoint
    async def seen(self) -> dict[str, Any]:
        context = current_context()
        assert context is not None
        return {
            "id": context.id(),
            "metadata": dict(context.metadata),
            "timeout_s": context.timeout_s,
            "tenant": tenant.get(),
        }

    @endpoint(max_inflight=1, queue=0)
    async def forever(self) -> AsyncIterator[int]:
        gate.entered.set()
        try:
            yield 1
            await gate.open.wait()
            yield 2
        finally:
            gate.left.set()

    @endpoint
    async def wrong(self) -> int:
        return "text"  # type: ignore[return-value]

    @endpoint
    async def wrong_items(self) -> AsyncIterator[int]:
        yield 1
        yield "text"  # type: ignore[misc]

    @endpoint
    async def fails(self) -> int:
        raise KeyError("missing")


@service(namespace="demo")
class Middle:
    backend = depends(Backend)
    options = configured(Options)

    def __init__(self, model: str = "small") -> None:
        self.model = model

    @on_start
    async def load(self) -> None:
        usage = await self.backend.usage("warm up")
        happened.append(f"middle starts after {usage.words} words of its backend")

    @on_shutdown
    async def unload(self) -> None:
        happened.append("middle ends")

    @api
    async def generate(self, prompt: str) -> AsyncIterator[str]:
        async for word in self.backend.generate(prompt):
            yield word.upper() + self.options.suffix

    @endpoint
    async def usage(self, prompt: str) -> Usage:
        return await self.backend.usage(prompt)

    @endpoint
    async def seen(self, context: Context) -> dict[str, Any]:
        context.metadata["via"] = self.model
        tenant.set("somebody")
        return {"own": context.id(), **await self.backend.seen()}

    @endpoint
    async def seen_later(self) -> dict[str, Any]:
        return await using(self.backend, context=None).seen()

    @endpoint
    async def forever(self) -> AsyncIterator[int]:
        async for number in self.backend.forever():
            yield number

    @endpoint
    async def first_of_forever(self) -> int:
        async for number in self.backend.forever():
            return number
        return 0


async def test_calls_go_through_two_services_with_their_types() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Middle, Backend) as served:
        assert isinstance(served[Middle], Middle)
        middle = await service_client(runtime, Middle)
        assert [word async for word in middle.generate("a bb c")] == ["A!", "BB!", "C!"]
        assert await middle.usage("a bb c") == Usage(3, "bb")
        assert repr(served[Middle].backend) == "<client of demo.Backend>"


async def test_services_start_before_they_are_served_and_end_after_they_have_drained() -> None:
    async with make_runtime() as runtime:
        backend = await service_client(runtime, Backend)
        async with serve_services(runtime, Middle, Backend):
            assert happened == ["backend starts", "middle starts after 2 words of its backend"]
            items = aiter(backend.forever())
            assert await anext(items) == 1
            assert not gate.left.is_set()
            asyncio.get_running_loop().call_soon(gate.open.set)
        assert [item async for item in items] == [2]
        assert happened[2:] == ["middle ends", "backend ends"]
        assert runtime.serving == ()


async def test_a_start_that_fails_ends_what_had_started_and_registers_nothing() -> None:
    @service(namespace="demo")
    class Broken:
        backend = depends(Backend)

        @on_start
        async def load(self) -> None:
            raise OSError("no such model")

        @on_shutdown
        async def unload(self) -> None:
            happened.append("never")

        @endpoint
        async def ask(self) -> int:
            return 1

    async with make_runtime() as runtime:
        with pytest.raises(OSError, match="no such model"):
            async with serve_services(runtime, Backend, Broken):
                pytest.fail("it must not get here")
        assert happened == ["backend starts", "backend ends"]
        assert runtime.serving == ()


async def test_the_runtime_comes_first_and_services_after_it() -> None:
    with pytest.raises(ConfigError, match=r"takes the runtime first, then services, not <class .*Backend"):
        async with serve_services(Backend):  # type: ignore[arg-type]
            pass
    async with make_runtime() as runtime:
        with pytest.raises(ConfigError, match="was given no service"):
            async with serve_services(runtime):
                pass


async def test_a_hook_that_fails_at_the_end_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    @service(namespace="demo")
    class Clumsy:
        @on_shutdown
        async def first(self) -> None:
            raise ValueError("clumsy")

        @on_shutdown
        async def second(self) -> None:
            happened.append("second")

    async with make_runtime() as runtime, serve_services(runtime, Clumsy):
        pass
    assert happened == ["second"]
    assert "Clumsy.first failed while the service shut down" in caplog.text


@pytest.mark.parametrize(
    "payload, says",
    [
        ({"prompt": 5}, "Backend.generate: prompt: expected str, got int"),
        ({"prompt": "p", "max_token": 1}, "unknown key 'max_token'; did you mean 'max_tokens'"),
        ("p", "takes an object with prompt, max_tokens, got str"),
    ],
)
async def test_a_wrong_payload_is_refused_before_the_method_runs_and_never_retried(
    payload: Any, says: str
) -> None:
    async with make_runtime() as runtime, serve_services(runtime, Backend):
        client = await runtime.endpoint("demo.Backend.generate").client()
        stream = client.stream(payload)
        with pytest.raises(BadPayloadError, match=says) as raised:
            await anext(stream)
        assert (raised.value.remote, stream.attempts) == (True, 1)
        assert calls == []


async def test_untyped_callers_send_objects_or_the_bare_value() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Backend):
        client = await runtime.endpoint("demo.Backend.usage").client()
        assert await client.call("a bb") == {"words": 2, "longest": "bb"}
        assert await client.call({"prompt": "a bb"}) == {"words": 2, "longest": "bb"}


async def test_the_context_of_a_request_goes_along_with_nested_calls() -> None:
    async with (
        make_runtime() as runtime,
        serve_services(runtime, Middle, Backend, config={"Middle": {"model": "m"}}),
    ):
        middle = await service_client(runtime, Middle)
        seen = await using(middle, timeout_s=5.0, metadata={"user": "u"}).seen()  # type: ignore[call-arg]
        assert seen["own"] == seen["id"]
        assert seen["metadata"] == {"user": "u", "via": "m"}
        assert 0 < seen["timeout_s"] <= 5.0
        later = await using(middle, timeout_s=5.0, metadata={"user": "u"}).seen_later()
        assert later["metadata"] == {}
        assert later["timeout_s"] is None
        assert current_context() is None


async def test_a_request_has_context_variables_of_its_own() -> None:
    """Those of ``serve``: neither the caller's, which memory would bring along, nor another request's."""
    async with make_runtime() as runtime, serve_services(runtime, Middle, Backend):
        middle, backend = await service_client(runtime, Middle), await service_client(runtime, Backend)
        tenant.set("the caller's")
        assert (await middle.seen(Context()))["tenant"] == "nobody"
        assert (await backend.seen())["tenant"] == "nobody"
        assert tenant.get() == "the caller's"


async def test_leaving_a_stream_early_cancels_the_whole_chain() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Middle, Backend):
        middle = await service_client(runtime, Middle)
        async with aclosing(aiter(middle.forever())) as items:  # type: ignore[type-var]
            assert await anext(items) == 1
            assert not gate.left.is_set()
        await within(gate.left.wait())


async def test_leaving_a_loop_cancels_the_worker() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Middle, Backend):
        middle = await service_client(runtime, Middle)
        assert await middle.first_of_forever() == 1
        await within(gate.left.wait())


async def test_killing_the_context_of_a_call_cancels_what_is_nested_in_it() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Middle, Backend):
        middle, context = await service_client(runtime, Middle), Context()
        items = aiter(using(middle, context=context).forever())
        assert await anext(items) == 1
        context.kill()
        await within(gate.left.wait())
        with pytest.raises(CallCancelledError):
            await anext(items)


async def test_a_deadline_reaches_the_end_of_the_chain() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Middle, Backend):
        middle = await service_client(runtime, Middle)
        with pytest.raises(DeadlineError):
            async for number in using(middle, timeout_s=0.2).forever():
                assert number == 1
        await within(gate.left.wait())


async def test_options_of_calls_pick_the_instance_and_bound_the_wait() -> None:
    async with make_runtime(instance_wait_s=0.2) as runtime, serve_services(runtime, Backend):
        backend = await service_client(runtime, Backend)
        here = using(backend, instance=runtime.connection_id(), priority=1, idle_timeout_s=5.0)
        assert await here.usage("a") == Usage(1, "a")
        with pytest.raises(NoInstancesError):
            await using(here, instance=12345).usage("a")
        plain = Backend()
        assert using(plain, timeout_s=1.0) is plain


async def test_an_item_of_another_type_is_told_to_the_caller() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Backend):
        backend = await service_client(runtime, Backend)
        with pytest.raises(
            BadPayloadError, match=r"an item from Backend.wrong is not .*: expected int, got str"
        ):
            await backend.wrong()
        received = []
        with pytest.raises(BadPayloadError, match=r"an item from Backend.wrong_items"):
            async for item in backend.wrong_items():
                received.append(item)
        assert received == [1]


async def test_what_a_method_raises_arrives_and_wrong_calls_are_type_errors() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Backend):
        backend = await service_client(runtime, Backend)
        with pytest.raises(RemoteError, match="KeyError: 'missing'"):
            await backend.fails()
        with pytest.raises(TypeError, match=r"Backend.usage: missing a required argument: 'prompt'"):
            await backend.usage()  # type: ignore[call-arg]
        with pytest.raises(AttributeError, match=r"demo.Backend.usag is no endpoint.* did you mean 'usage'"):
            backend.usag  # type: ignore[attr-defined] # noqa: B018


async def test_a_bound_on_calls_holds() -> None:
    async with make_runtime(instance_wait_s=0.1) as runtime, serve_services(runtime, Backend):
        backend = await service_client(runtime, Backend)
        async with aclosing(aiter(backend.forever())) as items:  # type: ignore[type-var]
            assert await anext(items) == 1
            with pytest.raises(
                DeadlineError, match=r"Backend.forever runs 1 calls \(max_inflight\) and 0 wait"
            ):
                await anext(aiter(using(backend, timeout_s=0.3).forever()))


async def test_a_route_converts_calls_and_links_nested_calls_to_its_context() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Middle, Backend) as served:
        (route,) = served.routes
        assert (route.path, route.endpoint) == ("/generate", "demo.Middle.generate")
        context = Context(metadata={"user": "u"})

        async def request() -> list[str]:
            return [item async for item in route.call({"prompt": "a b"}, context)]

        assert await asyncio.create_task(request()) == ["A!", "B!"]
        with pytest.raises(BadPayloadError, match="prompt: expected str, got int"):
            route.call({"prompt": 5}, context)


async def test_the_configured_namespace_is_where_it_is_served_and_called() -> None:
    graph = ServiceGraph.of(Middle, config={"Common": {"namespace": "blue"}, "Middle": {"suffix": "?"}})
    async with make_runtime() as runtime, serve_services(runtime, Middle, Backend, graph=graph):
        assert {path.namespace for path in runtime.serving} == {"blue"}
        middle = await service_client(runtime, Middle, graph=graph)
        assert [word async for word in middle.generate("a")] == ["A?"]


async def test_one_service_of_a_graph_is_served_alone() -> None:
    graph = ServiceGraph.of(Middle, config={"Middle": {"model": "m"}})
    async with make_runtime() as runtime, serve_services(runtime, Backend, graph=graph):
        assert {path.component for path in runtime.serving} == {"Backend"}


async def test_a_service_without_a_namespace_is_in_that_of_the_runtime() -> None:
    @service
    class Lone:
        @endpoint
        async def ask(self) -> int:
            return 1

    async with make_runtime(namespace="green") as runtime, serve_services(runtime, Lone):
        assert [str(path) for path in runtime.serving] == ["green.Lone.ask"]


async def test_the_end_of_the_runtime_is_told() -> None:
    async with make_runtime() as runtime, serve_services(runtime, Backend) as served:
        waiting = asyncio.create_task(served.until_shutdown())
        await asyncio.sleep(0)
        assert not waiting.done()
        runtime.shutdown()
        await within(waiting)
    assert happened == ["backend starts", "backend ends"]


async def test_serving_nothing_or_no_service_is_a_mistake() -> None:
    async with make_runtime() as runtime:
        with pytest.raises(ConfigError, match="given no service"):
            async with serve_services(runtime):
                pass
        with pytest.raises(ConfigError, match="Options is not a service"):
            async with serve_services(runtime, Options):
                pass
