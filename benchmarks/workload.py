"""What every system is asked: the handlers, the loads on them, and how the driver asks for a load.

Only the standard library, so that the same file runs beside any system, in any environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

TIMEOUT_S = 60.0  # the deadline of every call
TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
Close = Callable[[], Awaitable[None]]


# The handlers.


async def generate(request: dict[str, Any], context: Any = None) -> AsyncIterator[dict[str, Any]]:
    """``items`` items; after each it sleeps for ``pause`` seconds, or with None never waits.

    With ``alone`` so many of these run here at once, for nobody, and then one item says that they have."""
    pause = request["pause"]
    if alone := request.get("alone"):
        each = {"items": request["items"], "pause": pause}
        await spread(alone, pause, lambda: exhaust(generate(each)))
        yield {}
        return
    for index in range(request["items"]):
        yield {"token_ids": [index], "text": " word"}
        if pause is not None:
            await asyncio.sleep(pause)


async def exhaust(items: AsyncIterator[Any]) -> None:
    async for _ in items:
        pass


async def spread(count: int, period: float, begin: Callable[[], Awaitable[Any]]) -> list[Any]:
    """``count`` of these, begun evenly over ``period`` seconds, as those of independent callers are."""

    async def one(index: int) -> Any:
        await asyncio.sleep(index / count * period)
        return await begin()

    return await asyncio.gather(*map(one, range(count)))


async def block(request: dict[str, Any], context: Any = None) -> AsyncIterator[bytes]:
    """One item of ``bytes`` bytes."""
    yield bytes_of(request["bytes"])


async def weigh(request: bytes, context: Any = None) -> AsyncIterator[int]:
    """How long the request is."""
    yield len(request)


async def linger(request: Any, context: Any = None) -> AsyncIterator[int]:
    """One item, then nothing until the caller leaves."""
    yield 0
    await asyncio.get_running_loop().create_future()


def bytes_of(size: int, _made: dict[int, bytes] = {}) -> bytes:  # noqa: B006 - kept on purpose
    """Always the same object for one size: making it is not measured."""
    if size not in _made:
        _made[size] = bytes(size)
    return _made[size]


# The loads. Each returns metric -> value.


class Calls:
    """How a system is called. What it cannot do it leaves out, and is left out of that shape."""

    async def ask(self, request: dict[str, Any]) -> int:
        """Call ``generate``, read its answer, count the items."""
        raise NotImplementedError

    async def fetch(self, size: int) -> int:
        """Call ``block``; the length of what came, without a copy where the system can."""
        raise NotImplementedError

    async def give(self, size: int) -> int:
        """Call ``weigh``; the length of what arrived there."""
        raise NotImplementedError

    async def leave(self) -> None:
        """Call ``linger``, read one item, leave."""
        raise NotImplementedError

    async def hold(self) -> Close:
        """Call ``linger``, read one item, and stay."""
        raise NotImplementedError

    async def echo(self, count: int) -> int:
        """Send ``count`` items, one after the other, and count those that come back meanwhile."""
        raise NotImplementedError

    async def anew(self) -> None:
        """Connect as a new client does, call ``generate`` for one item, and close."""
        raise NotImplementedError


def cpu_s(pid: int) -> float:
    """CPU time of a process, all threads; on Linux by its CPU clock (clock_getcpuclockid(3)): nanoseconds."""
    return time.process_time() if pid == os.getpid() else time.clock_gettime((~pid << 3) | 2)


class Cpu:
    """CPU time of both sides since it was made."""

    def __init__(self, server_pid: int) -> None:
        self._pids = {"client": os.getpid(), "server": server_pid}
        if server_pid == os.getpid():
            self._pids = {"both": server_pid}
        self._began = {side: cpu_s(pid) for side, pid in self._pids.items()}

    def per(self, what: str, count: int) -> dict[str, float]:
        """Microseconds of each side for one of ``count``."""
        spent = {side: cpu_s(pid) - self._began[side] for side, pid in self._pids.items()}
        return {f"{side} us/{what}": seconds / count * 1e6 for side, seconds in spent.items()}


async def repeat(
    ask: Callable[[], Awaitable[Any]], callers: int, seconds: float, server_pid: int | None = None
) -> dict[str, float]:
    """Calls a second of ``callers`` that each begin the next one when the last has ended."""
    took: list[float] = []
    clock = time.perf_counter
    cpu = Cpu(server_pid or os.getpid())
    began = clock()
    until = began + seconds

    async def caller() -> None:
        now = clock()
        while not took or now < until:
            asked = now
            await ask()
            now = clock()
            took.append(now - asked)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
    spent, count = clock() - began, len(took)
    took.sort()
    return {
        **cpu.per("request", count),
        "requests/s": count / spent,
        "p50 ms": took[count // 2] * 1e3,
        "p99 ms": took[count * 99 // 100] * 1e3,
    }


async def streams(
    calls: Calls, server_pid: int, callers: int, items: int, pause: float | None, seconds: float
) -> dict[str, float]:
    request = {"items": items, "pause": pause}
    ask = calls.ask

    async def checked() -> None:
        if (received := await ask(request)) != items:
            raise RuntimeError(f"{received} items came, not {items}")

    result = await repeat(checked, callers, seconds, server_pid)
    return {**result, "items/s": result["requests/s"] * items}


async def paced(
    calls: Calls, server_pid: int, streams: int, pause: float, seconds: float
) -> dict[str, float]:
    """CPU of each side for an item of ``streams`` that each wait between items.

    ``control`` is what the same handlers take in the same process with no transport, which the server's
    figure is without."""
    items = max(1, round(seconds / pause))
    request, count = {"items": items, "pause": pause}, streams * items
    cpu = Cpu(server_pid)
    await calls.ask({**request, "alone": streams})
    alone = cpu.per("item", count)
    cpu, began = Cpu(server_pid), time.perf_counter()
    received = await spread(streams, pause, lambda: calls.ask(request))
    took, used = time.perf_counter() - began, cpu.per("item", count)
    if sum(received) != count:
        raise RuntimeError(f"{sum(received)} items came, not {count}")
    side = "both us/item" if "both us/item" in used else "server us/item"
    used[side] -= alone[side]
    return {**used, "control us/item": alone[side], "items/s": count / took}


async def payload(calls: Calls, server_pid: int, size: int, up: bool, seconds: float) -> dict[str, float]:
    move = calls.give if up else calls.fetch

    async def checked() -> None:
        if (received := await move(size)) != size:
            raise RuntimeError(f"{received} bytes came, not {size}")

    result = await repeat(checked, 1, seconds, server_pid)
    return {**result, "MB/s": result["requests/s"] * size / 1e6}


async def echo(calls: Calls, server_pid: int, callers: int, items: int, seconds: float) -> dict[str, float]:
    async def checked() -> None:
        if (received := await calls.echo(items)) != items:
            raise RuntimeError(f"{received} items came back, not {items}")

    result = await repeat(checked, callers, seconds, server_pid)
    return {**result, "items/s": result["requests/s"] * items}


async def storm(calls: Calls, server_pid: int, callers: int, seconds: float) -> dict[str, float]:
    return await repeat(calls.leave, callers, seconds, server_pid)


async def connect(calls: Calls, server_pid: int, most: int, seconds: float) -> dict[str, float]:
    """New clients one after the other, ``most`` at most: some systems hold on to what a client took."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until and len(took) < most:
        await calls.anew()
        took.append(time.perf_counter() - began)
    took.sort()
    return {"connect ms": took[len(took) // 2] * 1e3}


def resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def idle(calls: Calls, server_pid: int, streams: int) -> dict[str, float]:
    """Resident memory of both sides while ``streams`` are open and nothing moves."""
    pids = {os.getpid(), server_pid}
    before = sum(map(resident, pids))
    open_: list[Close] = []
    for start in range(0, streams, 100):
        open_ += await asyncio.gather(*(calls.hold() for _ in range(start, min(streams, start + 100))))
    after = sum(map(resident, pids))
    for close in open_:
        await close()
    return {"resident MiB": after / 2**20, "KiB/stream": (after - before) / 2**10 / streams}


LOADS: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {
    "streams": streams,
    "paced": paced,
    "payload": payload,
    "echo": echo,
    "storm": storm,
    "connect": connect,
    "idle": idle,
}


async def obey(calls: Calls, server_pid: int) -> None:
    """Run the loads that the driver asks for, a line of JSON each, until it closes standard input.

    Answers go to the descriptor that standard output was, out of reach of what a system prints.
    """
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        print(json.dumps({"ready": True}), file=answers, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            options = json.loads(line)
            load = LOADS[options.pop("load")]
            answer: dict[str, Any]
            try:
                answer = {"metrics": await load(calls, server_pid or os.getpid(), **options)}
            except Exception as failure:
                error = failure
                while isinstance(error, ExceptionGroup):
                    error = error.exceptions[0]
                if isinstance(error, NotImplementedError):
                    answer = {"metrics": {}}
                else:
                    answer = {"failed": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)
