"""Workers come, leave and die while they are called, on every pair where they can."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dynamo.core.errors import Retry, StreamBrokenError
from dynamo.runtime import Client
from matrix.deployment import BOUND_S, Deployment, Pair, deployed, pairs

pytestmark = pytest.mark.anyio


async def asked(client: Client, count: int = 30) -> set[str]:
    """Who answers, by many calls."""
    answers = await asyncio.gather(*(client.call(number, timeout_s=BOUND_S) for number in range(count)))
    return {answer["worker"] for answer in answers}


async def running_at(deployment: Deployment, name: str) -> tuple[Any, Any]:
    """A stream that ``name`` answers, and its first item."""
    client = await deployment.client("count")
    while True:
        stream = client.stream({"items": 30, "pause_s": 0.05}, timeout_s=BOUND_S)
        item = await anext(stream)
        if item["worker"] == name:
            return stream, item
        await stream.aclose()


@pytest.mark.parametrize("pair", pairs())
async def test_a_draining_worker_finishes_and_turns_nobody_away(pair: Pair, tmp_path: Path) -> None:
    async with deployed(pair, tmp_path, "stays", "leaves") as deployment:
        client = await deployment.client("echo")
        stream, item = await running_at(deployment, "leaves")
        leaver = deployment.workers[1]
        leaver.drain()
        rest = asyncio.create_task(_numbers(stream))
        left = asyncio.create_task(leaver.gone())
        while not left.done():
            answer = await client.call(1, timeout_s=BOUND_S)
            assert answer["request"] == 1
        await left
        assert [item["number"], *await rest] == list(range(30))
        assert await asked(client) == {"stays"}


async def _numbers(stream: Any) -> list[int]:
    return [item["number"] async for item in stream]


@pytest.mark.parametrize("pair", pairs(lambda pair: pair.dynamic))
async def test_scaling_up_and_down_is_followed(pair: Pair, tmp_path: Path) -> None:
    async with deployed(pair, tmp_path, "one") as deployment:
        client = await deployment.client("echo")
        assert await asked(client) == {"one"}
        newcomers = await deployment.start("two", "three")
        await client.wait_for_instances(3, timeout_s=BOUND_S)
        assert await asked(client) == {"one", "two", "three"}
        assert {instance.name for instance in client.instances()} == {"one", "two", "three"}
        assert (await client.call(1, instance="two"))["worker"] == "two"
        found = await client.wait_for_instance_by_runtime_data("zone", "three", timeout_s=BOUND_S)
        assert (await client.call(1, instance=found))["worker"] == "three"
        for newcomer in newcomers:
            newcomer.drain()
        for newcomer in newcomers:
            await newcomer.gone()
        async with asyncio.timeout(BOUND_S):
            while len(client.instances()) != 1:
                await asyncio.sleep(0.01)
        assert await asked(client) == {"one"}


@pytest.mark.parametrize("pair", pairs(lambda pair: pair.dynamic))
async def test_a_call_waits_for_the_first_worker(pair: Pair, tmp_path: Path) -> None:
    async with deployed(pair, tmp_path) as deployment:
        client = await deployment.runtime.endpoint("matrix.worker.echo").client()
        waiting = asyncio.create_task(client.call(1, timeout_s=BOUND_S))
        await deployment.start("late")
        assert (await waiting)["worker"] == "late"


@pytest.mark.parametrize("pair", pairs(lambda pair: pair.separate))
async def test_after_kill_9_idempotent_calls_go_on_elsewhere(pair: Pair, tmp_path: Path) -> None:
    # Over NATS a caller with nothing to say learns of a death by its next keep-alive alone.
    quick: dict[str, Any] = {} if pair.ports else {"keepalive_s": 2.0}
    async with deployed(pair, tmp_path, "stays", "dies", **quick) as deployment:
        client = await deployment.client("echo")
        stream, _ = await running_at(deployment, "dies")
        request = {"pause_s": 0.3}
        retried = [
            asyncio.create_task(client.call(request, idempotent=True, timeout_s=BOUND_S)) for _ in range(20)
        ]
        once = [asyncio.create_task(client.call(request, timeout_s=BOUND_S)) for _ in range(20)]
        await anext(stream)  # the calls have arrived meanwhile
        deployment.workers[1].kill()  # type: ignore[attr-defined]
        answers = await asyncio.gather(*retried)
        assert {answer["worker"] for answer in answers} == {"stays"}
        outcomes = await asyncio.gather(*once, return_exceptions=True)
        broken = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert broken
        assert len(broken) < len(once)
        for error in broken:
            assert isinstance(error, StreamBrokenError)
            assert error.retry is Retry.UNKNOWN
        with pytest.raises(StreamBrokenError) as cut:
            await _numbers(stream)
        assert cut.value.received >= 2
        assert await asked(client) == {"stays"}


@pytest.mark.parametrize("pair", pairs(lambda pair: pair.separate))
async def test_a_successor_of_a_killed_worker_is_called_again(pair: Pair, tmp_path: Path) -> None:
    async with deployed(pair, tmp_path, "stays", "dies") as deployment:
        client = await deployment.client("echo")
        deployment.workers[1].kill()  # type: ignore[attr-defined]
        await deployment.workers[1].gone()
        assert await asked(client) == {"stays"}
        await deployment.start("succeeds")
        async with asyncio.timeout(BOUND_S):
            while await asked(client) != {"stays", "succeeds"}:
                await asyncio.sleep(0.05)
