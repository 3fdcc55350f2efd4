"""A trace goes through plain handlers and services, streamed and unary, over real connections: one trace, a
span for each request, each the child of the one that asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from dynamo.runtime import Context, depends, endpoint, serve_services, service, service_client, using
from unit.deployments import PATH, bounded, make_runtime

pytestmark = pytest.mark.anyio

TRACE, ROOT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{ROOT}-01", "tracestate": "vendor=1"}


class Span(NamedTuple):
    trace: str | None
    parent: str | None
    own: str | None
    state: str | None

    @classmethod
    def of(cls, context: Context) -> Span:
        state = context.trace_headers().get("tracestate")
        return cls(context.trace_id, context.parent_span_id, context.span_id, state)


spans: dict[str, Span] = {}


@pytest.fixture(autouse=True)
def no_spans() -> None:
    spans.clear()


@service(namespace="trace", name="Backend")
class Backend:
    @endpoint
    async def words(self, text: str, context: Context) -> AsyncIterator[str]:
        spans["streamed"] = Span.of(context)
        for word in text.split():
            yield word

    @endpoint
    async def length(self, text: str, context: Context) -> int:
        spans["unary"] = Span.of(context)
        return len(text)


@service(namespace="trace", name="Middle")
class Middle:
    backend: Any = depends(Backend)

    @endpoint
    async def generate(self, text: str, context: Context) -> AsyncIterator[str]:
        spans["middle"] = Span.of(context)
        yield str(await self.backend.length(text))
        async for word in self.backend.words(text):
            yield word


async def ask(metadata: dict[str, str]) -> list[Any]:
    """Through a plain handler, which asks Middle, which asks Backend twice."""
    async with make_runtime(request_plane="tcp") as runtime, serve_services(runtime, Backend, Middle):
        middle: Any = await service_client(runtime, Middle)

        async def gateway(text: str, context: Context) -> AsyncIterator[str]:
            spans["gateway"] = Span.of(context)
            async for word in using(middle, context=context).generate(text):
                yield word

        async with runtime.endpoint(PATH).serve(gateway):
            client = await runtime.endpoint(PATH).client()
            await bounded(client.wait_for_instances())
            async with client.stream("a b", metadata=metadata) as items:
                return [item async for item in items]


async def test_one_trace_with_a_span_for_each_request() -> None:
    assert await ask(TRACEPARENT) == ["3", "a", "b"]
    assert spans.keys() == {"gateway", "middle", "streamed", "unary"}
    assert {(span.trace, span.state) for span in spans.values()} == {(TRACE, "vendor=1")}
    assert spans["gateway"].parent == ROOT
    assert spans["middle"].parent == spans["gateway"].own
    assert spans["streamed"].parent == spans["unary"].parent == spans["middle"].own
    assert len({ROOT, *(span.own for span in spans.values())}) == 5


async def test_without_a_trace_none_is_made_up() -> None:
    assert await ask({}) == ["3", "a", "b"]
    assert set(spans.values()) == {Span(None, None, None, None)}
