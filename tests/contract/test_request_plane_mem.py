"""The memory request plane keeps the contract, faults of its links and server included."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

import pytest

from dynamo.adapters.request_plane.mem import MemRequestPlane, MemServer, open_mem
from dynamo.core.config import Settings
from dynamo.core.errors import (
    ClosedError,
    ConfigError,
    OverloadedError,
    Retry,
    StreamBrokenError,
    UnavailableError,
)
from dynamo.core.ports.request_plane import IncomingCall, Request, Server
from dynamo.testing.request_plane import Link, RequestPlaneContract, RequestPlaneHarness
from dynamo.testing.request_plane.rig import (
    LIMITS,
    Worker,
    forever,
    packed,
    put,
    raw,
    set_up,
    shown,
    take,
    take_all,
    until,
)

pytestmark = pytest.mark.anyio

T = TypeVar("T")


class MemLink(Link):
    def __init__(self, server: MemServer) -> None:
        self.server, self.address = server, server.addresses[0]

    def fault(self, kind: str) -> None:
        {"cut": self.server.break_links, "abort": self.server.abort}[kind]()


class MemHarness(RequestPlaneHarness):
    def open_plane(self, **settings: Any) -> AbstractAsyncContextManager[MemRequestPlane]:
        return open_mem("mem://", Settings(**settings))

    def link(self, server: Server) -> AbstractAsyncContextManager[Link]:
        assert isinstance(server, MemServer)
        return nullcontext(MemLink(server))


class TestMemRequestPlane(RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture
    def harness(self) -> MemHarness:
        return MemHarness()


async def echo(call: IncomingCall) -> None:
    while not call.ended:
        if (item := call.receive_nowait()) is None:
            await call.wait()
        else:
            await put(call, item)


async def test_nothing_of_the_peer_runs_inside_send() -> None:
    def accept(call: IncomingCall) -> None:
        accepted.append(call)

    accepted: list[IncomingCall] = []
    async with open_mem("mem://", Settings()) as plane:
        async with plane.serve(accept, instance_id=1, incarnation=1) as server:
            call = plane.call(server.addresses[0], Request(endpoint="a.b.c", request_id="r", end=False))
            call.send(packed(10), end=True)
            assert accepted == []
            await until(lambda: accepted != [])
            accepted[0].send(packed(10), end=True)
            assert call.receive_nowait() is None
            assert len(await take_all(call)) == 1


async def test_what_a_buffer_held_arrives_even_if_it_is_released_or_sliced() -> None:
    whole = bytes(range(256))
    views = [
        memoryview(bytearray(whole)),
        memoryview(whole),
        memoryview(whole)[::2],
        memoryview(whole).cast("I"),
    ]
    sent = [view.tobytes() for view in views]
    async with set_up(MemHarness(), echo) as rig:
        call = rig.call(None, end=False)
        for view in views:
            call.send(view)
            view.release()
        call.end()
        items = await take_all(call)
        assert [bytes(item) for item in items] == sent
        assert [len(item) for item in items] == [256, 256, 128, 256]


def serve_in_a_thread(address: str, ready: threading.Event, done: threading.Event) -> None:
    async def serve() -> None:
        worker = Worker(echo)
        async with (
            open_mem("mem://", Settings(**LIMITS)) as plane,
            plane.serve(worker.accept, instance_id=1, incarnation=1, address=address),
        ):
            ready.set()
            await asyncio.to_thread(done.wait, 10)
            await worker.close()

    asyncio.run(serve())


async def test_runtimes_on_two_threads_call_each_other() -> None:
    async def talk(number: int) -> None:
        sent = [packed(100 + number, seed) for seed in range(50)] + [raw(5 * LIMITS["window_bytes"], number)]
        call = plane.call(address, Request(endpoint="a.b.c", request_id=str(number), end=False))
        items = asyncio.ensure_future(take_all(call))
        for item in sent:
            await put(call, item)
        call.end()
        assert shown(*await items) == shown(*sent)
        assert call.error is None

    address, ready, done = "mem://other-thread", threading.Event(), threading.Event()
    async with asyncio.timeout(20), open_mem("mem://", Settings(**LIMITS)) as plane:
        thread = asyncio.create_task(asyncio.to_thread(serve_in_a_thread, address, ready, done))
        assert await asyncio.to_thread(ready.wait, 10)
        await asyncio.gather(*map(talk, range(20)))
        killed = plane.call(address, Request(endpoint="a.b.c", request_id="killed", end=False))
        killed.kill()
        open_until_the_end = plane.call(address, Request(endpoint="a.b.c", request_id="open", end=False))
        open_until_the_end.send(packed(1))
        await take(open_until_the_end)
        done.set()
        await thread
        assert await take_all(open_until_the_end) == []
        assert type(open_until_the_end.error) is StreamBrokenError
        late = plane.call(address, Request(endpoint="a.b.c", request_id="late"))
        await late.wait()
        assert type(late.error) is UnavailableError


async def test_a_server_whose_loop_was_closed_is_nobody() -> None:
    other = asyncio.new_event_loop()

    def on_the_other_loop(work: Coroutine[Any, Any, T]) -> T:
        return other.run_until_complete(work)

    async def serve() -> tuple[Any, MemServer]:
        plane = MemRequestPlane("", Settings(), other)
        serving = plane.serve(lambda call: None, instance_id=1, incarnation=1)
        return serving, await serving.__aenter__()

    serving, server = await asyncio.to_thread(on_the_other_loop, serve())
    async with open_mem("mem://", Settings()) as plane:
        on_its_way = plane.call(server.addresses[0], Request(endpoint="a.b.c", request_id="r"))
        other.close()
        late = plane.call(server.addresses[0], Request(endpoint="a.b.c", request_id="late"))
        await take_all(on_its_way)
        await take_all(late)
    assert type(on_its_way.error) is StreamBrokenError
    assert type(late.error) is UnavailableError
    await serving.__aexit__(None, None, None)


async def test_a_plane_belongs_to_its_loop_and_its_block() -> None:
    async def call() -> None:
        plane.call("mem://anywhere", Request(endpoint="a.b.c", request_id="r"))

    async with open_mem("mem://", Settings()) as plane:
        with pytest.raises(ClosedError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, call())
    with pytest.raises(ClosedError, match="was left"):
        await call()
    with pytest.raises(ClosedError, match="was left"):
        async with plane.serve(lambda call: None, instance_id=1, incarnation=1):
            pass


async def test_addresses_carry_the_name_of_the_plane() -> None:
    async with open_mem("mem://demo", Settings()) as plane:
        async with (
            plane.serve(lambda call: None, instance_id=1, incarnation=1) as one,
            plane.serve(lambda call: None, instance_id=2, incarnation=2) as two,
        ):
            assert one.addresses[0].startswith("mem://demo-")
            assert one.addresses != two.addresses


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "mem://", "mem://a/b", "mem://a?b=1"])
async def test_what_is_no_mem_address_cannot_be_served(address: str) -> None:
    async with open_mem("mem://", Settings()) as plane:
        with pytest.raises(ConfigError, match="expected mem://<name>"):
            async with plane.serve(lambda call: None, instance_id=1, incarnation=1, address=address):
                pass


async def test_an_unknown_option_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="unknown option 'size'"):
        async with open_mem("mem://?size=1", Settings()):
            pass


async def test_a_request_larger_than_what_is_left_is_refused_as_overloaded() -> None:
    async def hold(call: IncomingCall) -> None:
        await call.wait()
        await forever()

    limits = LIMITS | {"receive_budget_bytes": 5 * LIMITS["window_bytes"]}
    large = raw(4 * LIMITS["window_bytes"])
    async with set_up(MemHarness(), hold, worker=limits) as rig:
        holder = rig.call(None, end=False)
        holder.send(large)
        await until(lambda: len(rig.worker.calls) == 1)
        assert isinstance(rig.server, MemServer)
        budget = rig.server.plane.budget
        await until(lambda: budget.used > 0)  # the item may come, and nobody takes it
        refused = rig.call(large)
        await take_all(refused)
        assert type(refused.error) is OverloadedError
        assert refused.error.retry is Retry.SAFE
        holder.kill()
        await until(lambda: rig.server.calls == 0)
        assert budget.used == 0
        taken = rig.call(large)
        await until(lambda: len(rig.worker.calls) == 2)
        taken.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_sees_no_server() -> None:
    program = """
import asyncio, os
from dynamo.adapters.request_plane.mem import open_mem, plane
from dynamo.core.config import Settings

async def main():
    async with open_mem("mem://", Settings()) as opened:
        async with opened.serve(lambda call: None, instance_id=1, incarnation=1):
            assert len(plane._servers) == 1
            if (child := os.fork()) == 0:
                os._exit(len(plane._servers))
            raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 0
