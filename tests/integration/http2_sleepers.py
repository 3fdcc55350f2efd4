"""Many calls over one HTTP/2 connection whose readers sleep, in a process of its own: prints what that takes.

The worker and its callers are both in it. ``made`` are bytes of items, ``grown`` is resident memory.
"""

from __future__ import annotations

import asyncio
import gc
import json
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import hpack
import psutil

from dynamo.adapters.request_plane.http2 import Http2RequestPlane
from dynamo.adapters.request_plane.http2.frames import PREFACE
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall, Request
from integration.http2_worker import BOUND_S, calling, working
from unit.http2.attacks import DATA, END_HEADERS, END_STREAM, HEADERS, REQUEST, SETTINGS, WINDOW_UPDATE, frame

STREAMS = 1000
ITEMS = 20  # that a call has for those who read
ITEM_BYTES = 1024
MUCH = 64 * 1024  # items: more than any window holds


class Producers:
    """A call of priority 1 brings much; all others a little, and as much again after ``more``.

    ``made`` is how many items each brought.
    """

    def __init__(self) -> None:
        self.made: dict[str, int] = {}
        self.more = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, call: IncomingCall) -> None:
        task = asyncio.create_task(self._produce(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        call.on_cancel = lambda kill: task.cancel()

    async def _produce(self, call: IncomingCall) -> None:
        key = call.request.request_id
        for number in range(MUCH if call.request.priority else 2 * ITEMS):
            if number == ITEMS and not call.request.priority:
                await self.more.wait()
            self.made[key] = number + 1
            if not call.send(b"\xc5\x03\xfd" + bytes(1021)):
                await call.writable()
        call.end()

    async def stand_still(self) -> None:
        """Wait until nobody makes anything any more."""
        before = -1
        while (now := sum(self.made.values())) != before:
            before = now
            for _ in range(20):
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)  # for what the system carries


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def call(plane: Http2RequestPlane, address: str, key: str, *, much: bool) -> OutgoingCall:
    request = Request(endpoint="a.b.c", request_id=key, payload=b"\xc0", end=True, priority=int(much))
    return plane.call(address, request)


async def take(call: OutgoingCall, count: int) -> int:
    taken = 0
    while taken < count and not call.ended:
        while taken < count and call.receive_nowait() is not None:
            taken += 1
        if taken < count:
            await call.wait()
    if call.ended and call.error is not None:
        raise call.error
    return taken


async def all_take(calls: list[OutgoingCall], count: int) -> None:
    assert await asyncio.gather(*(take(call, count) for call in calls)) == [count] * len(calls)


@asynccontextmanager
async def both(**settings: Any) -> AsyncIterator[tuple[Producers, Http2RequestPlane, str]]:
    """Producers at an address, and who calls them; a few calls were there, for what is made once."""
    producers = Producers()
    async with asyncio.timeout(BOUND_S), working(accept=producers.accept, **settings) as worker:
        async with calling(**settings) as plane:
            producers.more.set()
            calls = [call(plane, worker.address, "warm", much=False) for _ in range(10)]
            await all_take(calls, 2 * ITEMS)
            producers.more.clear()
            producers.made.clear()
            yield producers, plane, worker.address
            assert plane.budget.used == 0


async def one() -> dict[str, int]:
    """One reader of many sleeps."""
    async with both() as (producers, plane, address):
        before = resident()
        sleeper = call(plane, address, "sleeper", much=True)
        readers = [call(plane, address, str(number), much=False) for number in range(STREAMS - 1)]
        await all_take(readers, ITEMS)
        await producers.stand_still()
        made, grown = producers.made["sleeper"], resident() - before
        producers.more.set()
        await all_take(readers, ITEMS)  # as fast as they can
        for reader in readers:
            await reader.wait()
            assert reader.ended
        assert producers.made["sleeper"] == made
        assert await take(sleeper, 3 * made) == 3 * made, "it wakes"
        sleeper.kill()
        return {"streams": STREAMS, "made": made * ITEM_BYTES, "grown": grown}


async def all_of_them(window: int = 32 * 1024) -> dict[str, int]:
    """Everybody sleeps, and a last one does not."""
    async with both(window_bytes=window) as (producers, plane, address):
        before = resident()
        sleepers = [call(plane, address, str(number), much=True) for number in range(STREAMS)]
        await producers.stand_still()
        assert len(producers.made) == STREAMS
        made, grown = sum(producers.made.values()) * ITEM_BYTES, resident() - before
        awake = call(plane, address, "awake", much=False)
        await all_take([awake], ITEMS)
        for one in [awake, *sleepers]:
            one.kill()
        return {"streams": STREAMS, "made": made, "grown": grown, "window": window}


async def outsider(count: int = 200, window: int = 128 * 1024) -> dict[str, int]:
    """Somebody grants windows of 2 GiB and reads nothing: what the worker keeps by itself is the bound."""
    producers = Producers()
    async with asyncio.timeout(BOUND_S), working(accept=producers.accept, window_bytes=window) as worker:
        host, _, port = worker.address.partition("://")[2].rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        encoder = hpack.Encoder()
        writer.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31 - 1)))
        writer.write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1 - 65_535)))
        before = resident()
        for number in range(count):
            fields = [*REQUEST, ("dynamo-priority", "1"), ("x-request-id", str(number))]
            writer.write(frame(HEADERS, END_HEADERS, 2 * number + 1, encoder.encode(fields)))
            writer.write(frame(DATA, END_STREAM, 2 * number + 1, b"{}"))
        while len(producers.made) < count:
            await asyncio.sleep(0)
        await producers.stand_still()
        made, grown = sum(producers.made.values()) * ITEM_BYTES, resident() - before
        writer.transport.abort()
        return {"streams": count, "made": made, "grown": grown, "window": window}


if __name__ == "__main__":
    scenarios = {"one": one, "all": all_of_them, "outsider": outsider}
    print(json.dumps(asyncio.run(scenarios[sys.argv[1]]())))
