"""Names over NATS: who gets one that several processes want, and who is told that it is taken."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from dynamo.adapters.request_plane.nats import open_nats
from dynamo.adapters.request_plane.nats.carrier import Carrier
from dynamo.core.config import Settings
from dynamo.core.errors import ConflictError
from integration.nats_calls import answer, nats, outcome, start
from nats_server import NatsServer, shared

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("count", [2, 5])
async def test_of_those_who_want_one_name_at_once_one_gets_it(count: int) -> None:
    settings = Settings.from_env({}, nats_server=shared().url)
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        planes = [await stack.enter_async_context(open_nats("nats://", settings)) for _ in range(count)]
        for number in range(20):
            incarnations = random.sample(range(1, 1000), count)
            async with AsyncExitStack() as serving:
                outcomes = await asyncio.gather(
                    *(
                        serving.enter_async_context(
                            plane.serve(
                                answer,
                                instance_id=1,
                                incarnation=incarnation,
                                address=f"nats:///round-{number}",
                            )
                        )
                        for plane, incarnation in zip(planes, incarnations, strict=True)
                    ),
                    return_exceptions=True,
                )
            failed = [one for one in outcomes if isinstance(one, BaseException)]
            assert [type(one) for one in failed] == [ConflictError] * (count - 1)


async def test_a_name_that_is_served_is_not_given_away() -> None:
    settings = Settings.from_env({}, nats_server=shared().url)
    async with (
        asyncio.timeout(10),
        open_nats("nats://", settings) as first,
        open_nats("nats://", settings) as second,
    ):
        async with first.serve(answer, instance_id=1, incarnation=9, address="nats:///mine"):
            with pytest.raises(ConflictError, match=r"nats:///mine is served by another process"):
                async with second.serve(answer, instance_id=1, incarnation=1, address="nats:///mine"):
                    pass
            assert await outcome(start(second, "nats:///mine")) is None
        async with second.serve(answer, instance_id=1, incarnation=1, address="nats:///mine"):
            assert await outcome(start(first, "nats:///mine")) is None


async def test_a_holder_that_does_not_answer_keeps_its_name() -> None:
    settings = Settings.from_env({}, nats_server=shared().url, connect_timeout_s=0.3)
    frozen = await Carrier.open(shared().url, settings, {})
    try:
        await frozen.subscribe_to("dyn.*.*.*.held", "", lambda *_: None)
        await frozen.heard(settings)
        async with asyncio.timeout(5), open_nats("nats://", settings) as plane:
            with pytest.raises(ConflictError, match=r"did not answer within 0.3 s.*connect_timeout_s"):
                async with plane.serve(answer, instance_id=1, incarnation=1, address="nats:///held"):
                    pass
    finally:
        await frozen.leave()


async def test_names_are_claimed_across_the_servers_of_a_cluster() -> None:
    async with asyncio.timeout(20):
        with NatsServer.cluster(2) as (one, other):
            async with (
                open_nats("nats://", nats(one)) as first,
                open_nats("nats://", nats(other)) as second,
                AsyncExitStack() as serving,
            ):
                outcomes = await asyncio.gather(
                    *(
                        serving.enter_async_context(
                            plane.serve(answer, instance_id=1, incarnation=number, address="nats:///seat")
                        )
                        for number, plane in enumerate((first, second), 1)
                    ),
                    return_exceptions=True,
                )
                assert [type(one) for one in outcomes].count(ConflictError) == 1
