"""Runtimes for tests: on mem adapters of their own, and with no grace to wait for."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from dynamo.adapters.discovery.mem import MemStore, _stores
from dynamo.core.codec import encode
from dynamo.core.ports.request_plane import OutgoingCall, Request
from dynamo.runtime import Client, DistributedRuntime

T = TypeVar("T")

BOUND_S = 5.0  # of everything that a test waits for
PATH = "demo.backend.generate"


def fresh() -> str:
    """A mem URL that no other test shares."""
    return f"mem://test-{uuid.uuid4().hex}"


def make_runtime(url: str | None = None, **options: Any) -> DistributedRuntime:
    url = url or fresh()
    return DistributedRuntime(**{"discovery": url, "request_plane": url, "drain_grace_s": 0.0, **options})


def store(runtime: DistributedRuntime) -> MemStore:
    """The backend of an open runtime on mem, with an operator's powers."""
    name = runtime.settings.discovery_backend.partition("://")[2].partition("?")[0]
    return _stores[name]


@asynccontextmanager
async def serving(
    handler: Callable[..., Any],
    *,
    runtime: DistributedRuntime | None = None,
    path: str = PATH,
    **options: Any,
) -> AsyncIterator[Client]:
    """A client of a handler that is served for the block."""
    async with runtime or make_runtime() as runtime:
        async with runtime.endpoint(path).serve(handler, **options):
            client = await runtime.endpoint(path).client()
            await bounded(client.wait_for_instances())
            yield client


async def bounded(awaitable: Awaitable[T], bound_s: float = BOUND_S) -> T:
    async with asyncio.timeout(bound_s):
        return await awaitable


async def until(condition: Callable[[], object], bound_s: float = BOUND_S) -> None:
    """Wait for a condition that no event tells of, within the bound."""
    async with asyncio.timeout(bound_s):
        while not condition():
            await asyncio.sleep(0.001)


def start_call(client: Client, request: Any, *, endpoint: str = PATH, **options: Any) -> OutgoingCall:
    """A bare call to the client's one instance, past its retries."""
    (instance,) = client._membership.instances()
    plane = client._out._dial(instance.addresses[0])
    assert plane is not None
    opening = Request(endpoint=endpoint, request_id="bare", payload=encode(request), **options)
    return plane.call(instance.addresses[0], opening, instance_id=instance.instance_id)


async def one_attempt(client: Client, request: Any, **options: Any) -> OutgoingCall:
    """A bare call that has come to its first item or its end."""
    call = start_call(client, request, **options)
    await bounded(call.wait())
    return call
