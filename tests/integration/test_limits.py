"""Memory and patience have bounds: unread streams, a stream of a gigabyte, small items beside large ones.

The bound of an unread stream is one window and one item, whatever the carrier: credit is given back when the
application takes an item, not when the kernel does, so what kernels buffer is part of the window, and adds
nothing. A caller's own iterable is one item further: the one that waits in the caller's hand to be sent.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from dynamo.runtime import Client, DistributedRuntime, RequestStream
from integration import certificates
from integration.refusals import free_port
from unit.deployments import PATH, bounded, fresh, until

pytestmark = pytest.mark.anyio

KIB, MIB, GIB = 2**10, 2**20, 2**30
WINDOW = 256 * KIB  # DYN_WINDOW_BYTES by default
ITEM_COST = 64  # of credit, beside its length
SETTLED_S = 0.2  # a producer that moved nothing for so long is held up
PLANES = pytest.mark.parametrize("plane", ["mem", "tcp", "unix", "tls"])


@asynccontextmanager
async def meeting(plane: str, folder: Path, handler: Any) -> AsyncIterator[Client]:
    """A client of a handler over that plane, with the default windows."""
    discovery, given = fresh(), {}
    if plane == "tls":
        certificates.issue(folder)
        given = certificates.options(folder, "cert=worker ca=ours client_ca=ours client=worker")
    elif plane == "tcp":  # a static instance has no Unix socket
        discovery, given = "static", {"static_instances": f"{PATH}=tcp://127.0.0.1:{free_port()}"}
    options: dict[str, Any] = {
        "discovery": discovery,
        "request_plane": discovery if plane == "mem" else "tcp",
        "tcp_host": "127.0.0.1",
        "drain_grace_s": 0.0,
        **given,
    }
    async with DistributedRuntime(**options) as worker:
        async with worker.endpoint(PATH).serve(handler), DistributedRuntime(**options) as caller:
            client = await caller.endpoint(PATH).client()
            await bounded(client.wait_for_instances())
            scheme = client.instances()[0].addresses[0].partition("://")[0]
            assert scheme == {"tls": "tcps"}.get(plane, plane)
            yield client


async def settled(value: Callable[[], int]) -> int:
    """The value, once it is not 0 and stayed the same for a while: nothing tells that a producer waits."""
    async with asyncio.timeout(20):
        while True:
            before = value()
            await asyncio.sleep(SETTLED_S)
            if value() == before > 0:
                return before


@PLANES
@pytest.mark.parametrize("size", [100, 100 * KIB, MIB], ids=["100B", "100KiB", "1MiB"])
@pytest.mark.parametrize("direction", ["response", "input"])
async def test_an_unread_stream_stops_its_producer_within_a_window_and_an_item(
    plane: str, size: int, direction: str, tmp_path: Path
) -> None:
    made, release = 0, asyncio.Event()
    count = 4 * WINDOW // size + 4

    async def items() -> AsyncIterator[bytes]:
        nonlocal made
        for number in range(count):
            made += 1
            yield number.to_bytes(4, "little") + bytes(size - 4)

    async def give(request: Any) -> AsyncIterator[bytes]:
        async for item in items():
            yield item

    async def take(request: RequestStream[bytes]) -> AsyncIterator[bytes]:
        await release.wait()
        async for item in request:
            yield item[:4]

    expected = [number.to_bytes(4, "little") for number in range(count)]
    bound = WINDOW + size + ITEM_COST

    def check(taken: int) -> None:
        held = taken + (direction == "input")  # the one in hand was not sent
        overrun = (made - held) * (size + ITEM_COST)
        print(f"\n{plane}, {direction}, items of {size}: {overrun} bytes ahead of the reader, bound {bound}")
        assert overrun <= bound
        assert overrun >= min(WINDOW // 4, bound // 4), "it stopped long before it had to"

    if direction == "response":
        async with meeting(plane, tmp_path, give) as client, client.stream(None) as stream:
            await settled(lambda: made)
            check(0)
            seen = [item[:4] for item in [await anext(stream) for _ in range(3)]]
            await settled(lambda: made)
            check(3)
            seen += [item[:4] async for item in stream]
    else:
        async with meeting(plane, tmp_path, take) as client:
            async with client.duplex(inputs=items()) as stream:
                await settled(lambda: made)
                check(0)
                release.set()
                seen = [item async for item in stream]
    assert seen == expected


# A gigabyte


GROWTH = 64 * MIB


class Watched:
    """A process of the stream, and the most that it ever held beyond what it held when it was ready."""

    def __init__(self, stack: ExitStack, environ: dict[str, str], *arguments: object) -> None:
        command = [sys.executable, "-m", "integration.gigabyte", *map(str, arguments)]
        self.process = stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environ
            )
        )
        stack.callback(self.process.kill)
        self.inside = psutil.Process(self.process.pid)
        assert self.told() == "ready"
        self.ready = self.most = self.inside.memory_info().rss

    def told(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def look(self) -> None:
        self.most = max(self.most, self.inside.memory_info().rss)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(10) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "size,raw",
    [(64 * KIB, False), (64 * KIB, True), (MIB, True), (16 * MIB, True)],
    ids=["64KiB-maps", "64KiB-raw", "1MiB-raw", "16MiB-raw"],
)
def test_a_gigabyte_moves_in_64_mib_on_both_sides(size: int, raw: bool, tmp_path: Path) -> None:
    environ = {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_DISCOVERY_BACKEND": "static",
        "DYN_STATIC_INSTANCES": f"demo.backend.give=tcp://127.0.0.1:{free_port()}",
    }
    with ExitStack() as stack:
        worker = Watched(stack, environ, "worker")
        caller = Watched(stack, environ, "caller", size, GIB // size, "raw" if raw else "maps")
        worker.ready = worker.most = worker.inside.memory_info().rss  # it has made the buffer that it sends
        began = time.monotonic()
        caller.tell()
        arrived = stack.enter_context(ThreadPoolExecutor(1)).submit(caller.told)
        while not arrived.done():
            wait([arrived], timeout=0.005)
            worker.look()
            caller.look()
        took = time.monotonic() - began
        assert int(arrived.result()) == GIB
        for side in (caller, worker):
            side.end()
    grown = {"worker": worker.most - worker.ready, "caller": caller.most - caller.ready}
    shown = ", ".join(f"{name} {grew / MIB:.1f} MiB" for name, grew in grown.items())
    print(f"\n1 GiB in items of {size // KIB} KiB: {GIB / MIB / took:.0f} MiB/s, resident growth: {shown}")
    assert max(grown.values()) < GROWTH


# Small items beside large ones


@pytest.mark.parametrize("plane", ["tcp", "unix", "tls"])
async def test_small_items_arrive_while_a_large_one_travels(plane: str, tmp_path: Path) -> None:
    """On one connection. Were they held until it is through, none would arrive in between."""
    large, rounds = memoryview(bytes(16 * MIB)), 5

    async def handler(request: Any) -> AsyncIterator[Any]:
        if request == "large":
            yield large
        else:
            for number in itertools.count():
                yield number
                await asyncio.sleep(0)

    async with meeting(plane, tmp_path, handler) as client:
        arrived = 0

        async def read_small() -> None:
            nonlocal arrived
            async with client.stream("small") as items:
                async for item in items:
                    assert item == arrived
                    arrived += 1

        reading = asyncio.create_task(read_small())
        await until(lambda: arrived > 0)
        between = []
        for _ in range(rounds):
            before = arrived
            item = await bounded(client.call("large", buffers=True), 20)
            assert len(item) == len(large)
            between.append(arrived - before)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    print(f"\n{plane}: small items that arrived while 16 MiB travelled: {between}")
    fragments = len(large) // (256 * KIB)
    assert min(between) >= fragments // 4
