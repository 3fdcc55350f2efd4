"""What callers and workers do with each other, on every pair of discovery and request plane."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo.core.errors import (
    CallCancelledError,
    DeadlineError,
    NoInstancesError,
    OverloadedError,
    RemoteError,
    Retry,
)
from dynamo.runtime import Context
from matrix.deployment import BOUND_S, Deployment, Pair, deployed, pairs

pytestmark = pytest.mark.anyio

VALUES: tuple[Any, ...] = (
    None,
    True,
    -(2**63),
    2**64 - 1,
    1.5,
    "wörd",
    b"\x00\xff",
    [],
    {"a": [1, {"b": None}]},
    "x" * 70_000,
)


@pytest.fixture(scope="module", params=pairs())
def pair(request: pytest.FixtureRequest) -> Pair:
    value: Pair = request.param
    return value


@pytest.fixture(scope="module")
async def deployment(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """One for all tests of the pair: each finds it as the calls before left it, so they leave nothing."""
    async with deployed(pair, tmp_path_factory.mktemp(str(pair)), "one", "two", seats=2) as deployment:
        yield deployment


async def test_a_call_brings_one_answer_and_calls_go_round(deployment: Deployment) -> None:
    client = await deployment.client("echo")
    await client.wait_for_instances(2, timeout_s=BOUND_S)
    for value in VALUES:
        assert (await client.call(value))["request"] == value
    answers = await asyncio.gather(*(client.call(number, timeout_s=BOUND_S) for number in range(200)))
    assert [answer["request"] for answer in answers] == list(range(200))
    assert set(Counter(answer["worker"] for answer in answers)) == {"one", "two"}
    assert len({answer["id"] for answer in answers}) == 200


async def test_metadata_deadline_and_id_arrive(deployment: Deployment) -> None:
    client = await deployment.client("echo")
    context = Context("my-request", {"tenant": "a"}, timeout_s=BOUND_S)
    answer = await client.call(1, metadata={"colour": "blue"}, context=context)
    assert answer["id"] == "my-request"
    assert answer["metadata"] == {"tenant": "a", "colour": "blue"}
    assert 0 < answer["timeout_s"] <= BOUND_S
    assert (await client.call(1))["timeout_s"] is None


async def test_one_instance_can_be_asked_for(deployment: Deployment) -> None:
    client = await deployment.client("echo")
    await client.wait_for_instances(2, timeout_s=BOUND_S)
    owners: list[str] = []
    for instance in client.instance_ids():
        found = {(await client.call(1, instance=instance))["worker"] for _ in range(5)}
        assert len(found) == 1
        owners += found
    assert sorted(owners) == ["one", "two"]


async def test_a_stream_arrives_whole_and_in_order(deployment: Deployment) -> None:
    client = await deployment.client("count")
    async with client.stream({"items": 1000, "bytes": 300}) as items:
        numbers = [item["number"] async for item in items]
    assert numbers == list(range(1000))
    async with client.stream({"items": 3, "bytes": 2**20}) as items:  # each larger than the window
        assert [len(item["filling"]) async for item in items] == [2**20] * 3
    async with client.stream({"items": 0}) as items:
        assert [item async for item in items] == []


async def test_streams_side_by_side_do_not_mix(deployment: Deployment) -> None:
    client = await deployment.client("count")

    async def read(items: int) -> None:
        async with client.stream({"items": items, "pause_s": 0}, timeout_s=BOUND_S) as stream:
            assert [item["number"] async for item in stream] == list(range(items))

    await asyncio.gather(*(read(items) for items in range(40)))


async def test_a_stream_in_dynamos_spelling(deployment: Deployment) -> None:
    client = await deployment.client("count")
    annotated = [item.data()["number"] async for item in await client.generate({"items": 3})]
    plain = [item["number"] async for item in await client.round_robin({"items": 3}, annotated=False)]
    assert annotated == plain == [0, 1, 2]


async def test_a_duplex_call_answers_while_it_listens(deployment: Deployment) -> None:
    client = await deployment.client("total")
    async with client.duplex() as sums:
        total = 0
        for number in range(50):
            await sums.send(number)
            total += number
            assert (await anext(sums))["total"] == total
        sums.end_input()
        assert (await anext(sums))["last"]
        assert [item async for item in sums] == []

    async def numbers() -> AsyncIterator[int]:
        for number in range(500):
            yield number

    async with client.duplex(inputs=numbers()) as sums:
        items = [item async for item in sums]
    assert items[-1]["total"] == sum(range(500))
    assert len(items) == 501


WAYS_TO_LEAVE: dict[str, type[BaseException | None]] = {  # and what comes out of the block
    "break": type(None),
    "aclose": type(None),
    "exception": ZeroDivisionError,
    "kill": CallCancelledError,
    "cancellation": asyncio.CancelledError,
    "deadline": DeadlineError,
}


async def left_early(deployment: Deployment, leave: str, request: str) -> BaseException | None:
    """Begin ``linger``, leave it in this way while it runs, and return what came out of the block."""
    client = await deployment.client("linger")
    context = Context(request, timeout_s=0.5 if leave == "deadline" else None)
    running = asyncio.Event()

    async def read() -> None:
        async with client.stream(None, context=context) as items:
            await anext(items)
            running.set()
            match leave:
                case "break":
                    return
                case "aclose":
                    await items.aclose()
                    assert [item async for item in items] == []
                    return
                case "exception":
                    raise ZeroDivisionError
                case "kill":
                    context.kill()
            await anext(items)

    reading = asyncio.create_task(read())
    await running.wait()
    if leave == "cancellation":
        reading.cancel()
    return (await asyncio.gather(reading, return_exceptions=True))[0]


async def how_it_ended(deployment: Deployment, request: str) -> str:
    """What the worker that ran the ``linger`` call saw; the other never heard of it, and does not answer."""
    client = await deployment.client("ended")
    asked = [
        asyncio.create_task(client.call(request, instance=instance, timeout_s=BOUND_S))
        for instance in client.instance_ids()
    ]
    try:
        return str(await next(asyncio.as_completed(asked)))
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize("leave", WAYS_TO_LEAVE)
async def test_leaving_a_stream_cancels_its_handler(deployment: Deployment, leave: str) -> None:
    outcome = await left_early(deployment, leave, f"left by {leave}")
    assert type(outcome) is WAYS_TO_LEAVE[leave]
    assert await how_it_ended(deployment, f"left by {leave}") == "cancelled"


async def test_a_handler_that_is_asked_to_stop_says_its_last_word(deployment: Deployment) -> None:
    client = await deployment.client("linger")
    context = Context("asked")
    async with client.stream(None, context=context) as items:
        assert await anext(items) in ("one", "two")
        context.stop_generating()
        assert [item async for item in items] == ["asked to stop"]
    assert await how_it_ended(deployment, "asked") == "stopped"


async def test_cancelling_a_call_cancels_what_it_called(deployment: Deployment) -> None:
    client = await deployment.client("relay")
    async with client.stream(None, context=Context("passed on")) as items:
        await anext(items)
    assert await how_it_ended(deployment, "passed on") == "cancelled"


async def test_an_error_of_ours_arrives_as_itself_and_another_as_remote(deployment: Deployment) -> None:
    client = await deployment.client("fail")
    for items in (0, 3):
        with pytest.raises(OverloadedError, match="engine behind") as ours:
            async with client.stream({"items": items, "ours": True}) as stream:
                assert [await anext(stream) for _ in range(items)] == list(range(items))
                await anext(stream)
        assert ours.value.remote
        assert ours.value.retry is Retry.NEVER
        with pytest.raises(RemoteError, match="no such adapter") as foreign:
            async with client.stream({"items": items, "ours": False}) as stream:
                async for _ in stream:
                    pass
        assert foreign.value.type_name == "KeyError"
    assert (await (await deployment.client("echo")).call(1))["request"] == 1


async def test_a_deadline_holds_where_nobody_serves(deployment: Deployment) -> None:
    client = await deployment.runtime.endpoint("matrix.worker.ecko").client()
    began = time.monotonic()
    with pytest.raises((DeadlineError, NoInstancesError), match=r"matrix\.worker\.ecko"):
        await client.call(1, timeout_s=0.3)
    assert time.monotonic() - began < 5.0


async def test_a_slow_reader_loses_nothing(deployment: Deployment) -> None:
    client = await deployment.client("count")
    got: list[Any] = []
    async with client.stream({"items": 100, "bytes": 20_000}) as items:
        async for item in items:
            got.append(item["number"])
            if item["number"] % 10 == 0:
                await asyncio.sleep(0.02)
    assert got == list(range(100))
