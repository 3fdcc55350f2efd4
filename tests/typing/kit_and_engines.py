"""How the types of the kit and the engines look to users; checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, assert_type

from dynamo.core.context import Context
from dynamo.core.ports.discovery import Discovery
from dynamo.core.ports.request_plane import RequestPlane
from dynamo.engines.echo import EchoEngine, EchoItem
from dynamo.testing.discovery.harness import DiscoveryHarness
from dynamo.testing.leaks import no_leaks
from dynamo.testing.proxy import FaultProxy
from dynamo.testing.request_plane.rig import RequestPlaneHarness


class Plane(RequestPlaneHarness):
    def open_plane(self, **settings: Any) -> AbstractAsyncContextManager[RequestPlane]: ...  # type: ignore[empty-body]


class Backend(DiscoveryHarness):
    def client(self) -> AbstractAsyncContextManager[Discovery]: ...  # type: ignore[empty-body]

    async def leftovers(self) -> list[str]:
        return []


def a_harness_is_what_it_must_bring() -> None:
    Plane()
    Backend()


async def a_proxy_is_entered_as_itself() -> None:
    async with no_leaks(patience_s=1.0), FaultProxy("localhost", 4222, buffer_bytes=1024) as proxy:
        assert_type(proxy, FaultProxy)
        assert_type(proxy.address, str)
        assert_type(proxy.bytes_to_target, int)
        proxy.delay(0.1)
        proxy.throttle(1e6)
        proxy.heal()


async def the_echo_engine_is_a_handler() -> None:
    engine = EchoEngine(delay_s=0.1, fail_after=3)
    items = engine.generate({"prompt": "a b"}, Context())
    assert_type(items, AsyncIterator[EchoItem])
    async for item in items:
        assert_type(item["text"], str)
        assert_type(item.get("finish_reason"), str | None)
    engine.generate({"prompt": "a b", "max_tokens": None}, Context())
    engine.generate({"text": "a b"}, Context())  # type: ignore[typeddict-item]  # pyright: ignore[reportArgumentType]
    engine.delay_s = 1.0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
