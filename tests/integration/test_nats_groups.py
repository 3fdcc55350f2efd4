"""Queue groups over NATS: one address, many workers, and NATS chooses who takes a session."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo.adapters.request_plane.nats import NatsRequestPlane, open_nats
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, DrainingError, Retry, UnavailableError
from dynamo.core.ports.request_plane import IncomingCall, Request, Server
from dynamo.runtime import Client
from integration.nats_calls import outcome, start
from matrix.deployment import BOUND_S, Pair, deployed, pairs
from matrix.worker import COMPONENT
from nats_server import shared

pytestmark = pytest.mark.anyio

GROUP = "nats:///a.b.*"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Worker:
    """Answers each call with items that hold its number, as many as its first item says."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0
        self.server: Server

    def accept(self, call: IncomingCall) -> None:
        self.calls += 1
        if call.request.request_id != "waits":
            for _ in range(3):
                call.send(bytes([self.number]))
            call.send(bytes([self.number]), end=True)


@asynccontextmanager
async def group(count: int, **settings: Any) -> AsyncIterator[tuple[NatsRequestPlane, list[Worker]]]:
    """A caller, and so many workers at one address."""
    chosen = Settings.from_env({}, nats_server=shared().url, **settings)
    workers = [Worker(number) for number in range(1, count + 1)]
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        caller = await stack.enter_async_context(open_nats("nats://", chosen))
        for worker in workers:
            plane = await stack.enter_async_context(open_nats("nats://", chosen))
            worker.server = await stack.enter_async_context(
                plane.serve(worker.accept, instance_id=7, incarnation=worker.number, address=GROUP)
            )
        yield caller, workers


async def answered_by(caller: NatsRequestPlane, address: str = GROUP) -> int:
    """Who answered a call, all of it."""
    call = caller.call(address, Request(endpoint="a.b.c", request_id="r", payload=b"\x01"), instance_id=7)
    found: list[int] = []
    while not call.ended:
        if (item := call.receive_nowait()) is None:
            await call.wait()
        else:
            found += bytes(item)
    if call.error is not None:
        raise call.error
    assert len(found) == 4
    assert len(set(found)) == 1
    return found[0]


@pytest.mark.parametrize("token", [None, "a shared secret"])
async def test_calls_reach_all_workers_of_one_address_and_each_is_whole(token: str | None) -> None:
    async with group(3, auth_token=token) as (caller, workers):
        assert {worker.server.addresses for worker in workers} == {(GROUP,)}
        found: Counter[int] = Counter()
        while len(found) < 3:
            found.update(await asyncio.gather(*(answered_by(caller) for _ in range(30))))


async def test_what_is_larger_than_a_message_goes_to_one_worker() -> None:
    inputs: list[bytes] = []

    def accept(call: IncomingCall) -> None:
        inputs.append(bytes(call.request.payload or b""))
        call.send(b"\x01", end=True)

    chosen = Settings.from_env({}, nats_server=shared().url)
    async with asyncio.timeout(20), AsyncExitStack() as stack:
        caller, *planes = [await stack.enter_async_context(open_nats("nats://", chosen)) for _ in range(3)]
        for number, plane in enumerate(planes, 1):
            await stack.enter_async_context(
                plane.serve(accept, instance_id=7, incarnation=number, address="nats:///a.b.c")
            )
        large = bytes(range(256)) * 16 * 1024
        request = Request(endpoint="a.b.c", request_id="r", payload=memoryview(large))
        assert await outcome(caller.call("nats:///a.b.c", request)) is None
        assert inputs == [large]


async def test_a_worker_that_drains_is_chosen_no_more_and_finishes() -> None:
    async with group(2) as (caller, (leaves, stays)):
        while True:  # until one waits for its end there
            waiting = start(caller, GROUP, "waits")
            await answered_by(caller)
            if leaves.server.calls:
                break
        leaves.server.drain()
        found = await asyncio.gather(*(answered_by(caller) for _ in range(50)), return_exceptions=True)
        # Those of the tick in which it was told may still have gone there.
        assert {one for one in found if isinstance(one, int)} <= {leaves.number, stays.number}
        assert not [
            one for one in found if isinstance(one, BaseException) and not isinstance(one, DrainingError)
        ]
        taken = leaves.calls
        assert {await answered_by(caller) for _ in range(50)} == {stays.number}
        assert leaves.calls == taken
        assert leaves.server.calls
        waiting.kill()


async def test_nobody_in_the_group_is_told_at_once() -> None:
    async with group(0) as (caller, _), asyncio.timeout(2):
        error = await outcome(start(caller, GROUP))
        assert isinstance(error, UnavailableError)
        assert error.retry is Retry.SAFE
        assert "no responders" in str(error)
        assert not (await caller.check(GROUP)).ok


async def test_a_group_is_checked_and_called_for_its_own_endpoints_only() -> None:
    async with group(1) as (caller, _):
        assert (await caller.check(GROUP)).ok
        with pytest.raises(ConfigError, match=r"nats:///other\.b\.\* is not an address of a\.b\.c"):
            start(caller, "nats:///other.b.*")
        for bad in ("nats:///a.b", "nats:///a.*.c", "nats:///a.b.c.d", "nats:///a.b.**"):
            with pytest.raises(ConfigError, match="expected nats:///name"):
                start(caller, bad)


@pytest.mark.slow
@pytest.mark.parametrize("pair", pairs(lambda pair: str(pair) == "static-nats"))
async def test_one_declared_address_is_many_workers_that_come_and_go(pair: Pair, tmp_path: Path) -> None:
    async def asked(client: Client) -> set[str]:
        answers = await asyncio.gather(*(client.call(n, timeout_s=BOUND_S) for n in range(30)))
        return {answer["worker"] for answer in answers}

    async def until_asked(client: Client, expected: set[str]) -> None:
        async with asyncio.timeout(BOUND_S):
            while await asked(client) != expected:
                pass

    async with deployed(pair, tmp_path, "one", "two", addresses=[f"nats:///{COMPONENT}.*"]) as deployment:
        client = await deployment.client("echo")
        await until_asked(client, {"one", "two"})
        leaver = deployment.workers[0]
        leaver.drain()
        left = asyncio.create_task(leaver.gone())
        while not left.done():
            await client.call(1, timeout_s=BOUND_S)  # none is turned away meanwhile
        await left
        assert await asked(client) == {"two"}
        await deployment.start("three")
        await until_asked(client, {"two", "three"})
