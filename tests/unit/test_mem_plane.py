"""How the memory plane hands over: items of several ticks together, within a bound; all else at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dynamo.adapters.request_plane.mem import plane as mem_plane
from dynamo.runtime import DistributedRuntime

pytestmark = pytest.mark.anyio

ITEMS = 50


async def count(request: int) -> AsyncIterator[int]:
    for index in range(request):
        yield index
        await asyncio.sleep(0)


async def wakes(runtime: DistributedRuntime) -> int:
    """In how many ticks items of ITEMS ticks were read."""
    endpoint = runtime.endpoint("unit.mem.count")
    async with endpoint.serve(count):
        client = await endpoint.client()
        await client.wait_for_instances()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        clock = asyncio.create_task(tick())
        read_in: list[int] = []
        received: list[int] = []
        async with client.stream(ITEMS) as items:
            async for item in items:
                received.append(item)
                read_in.append(ticks)
        clock.cancel()
        assert received == list(range(ITEMS))
        return len(set(read_in))


@pytest.fixture
async def runtime() -> AsyncIterator[DistributedRuntime]:
    async with DistributedRuntime(discovery="mem", request_plane="mem") as runtime:
        yield runtime


async def test_items_of_several_ticks_go_together(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mem_plane, "perf_counter", lambda: 0.0)  # the bound is never reached
    assert await wakes(runtime) <= 3


async def test_they_are_not_held_for_longer_than_the_bound(
    runtime: DistributedRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += mem_plane.HOLD_S
        return now

    monkeypatch.setattr(mem_plane, "perf_counter", clock)
    assert await wakes(runtime) > ITEMS / 2
