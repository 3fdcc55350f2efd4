"""What is bounded, measured: unread streams, a stream of a gigabyte, small items beside large ones.

    python benchmarks/limits.py [--loop asyncio|uvloop] [--transport mem|tcp|unix|tls] [--rounds 64]

Prints three tables and writes build/bench/limits.json. One process calls, one works; mem is one process. The
TLS rows need `trustme`, of the test group, for their certificates. Delays want a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from processes import (
    LOOPS,
    default_loop,
    environment,
    loop_factory,
    process,
    python,
    setting,
    until_told,
    where,
    write_json,
)

from dynamo.runtime import Client, DistributedRuntime

TRANSPORTS = ("mem", "tcp", "unix", "tls")
ENDPOINTS = ("bench.limits.give", "bench.limits.count", "bench.limits.tick")
OUTPUT = Path("build/bench/limits.json")
KIB, MIB, GIB = 2**10, 2**20, 2**30
WINDOW, ITEM_COST = 256 * KIB, 64  # DYN_WINDOW_BYTES by default, and what an item costs beside its length
TICK_S = 0.001  # between small items
IDLE_S = 1.0  # of small items with nothing beside them
SETTLED_S = 0.3  # a producer that moved nothing for so long is held up
LOOK_S = 0.005  # between two looks at resident memory
BOUND_S = 120.0  # of each measurement


class Worker:
    """The handlers, and how many items the first of them has made."""

    def __init__(self) -> None:
        self.made = 0

    async def give(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        """``count`` items of ``size`` bytes, raw from one buffer or each encoded anew."""
        self.made = 0
        block = bytes(request["size"])
        for number in range(request["count"]):
            self.made += 1
            yield memoryview(block) if request["raw"] else {"number": number, "data": block}

    async def count(self, request: Any) -> int:
        return self.made

    async def tick(self, request: Any) -> AsyncIterator[dict[str, Any]]:
        """Small items that carry the time at which they were made (the clock is the host's)."""
        while True:
            yield {"made_at": time.perf_counter(), "token_ids": [1], "text": " word"}
            await asyncio.sleep(TICK_S)

    @asynccontextmanager
    async def serving(self, runtime: DistributedRuntime) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for path, handler in zip(ENDPOINTS, (self.give, self.count, self.tick), strict=True):
                await stack.enter_async_context(runtime.endpoint(path).serve(handler))
            yield


class Caller:
    """The clients of one worker, and what of the two can be measured."""

    def __init__(self, give: Client, count: Client, tick: Client, worker_pid: int) -> None:
        self.give, self.count, self.tick = give, count, tick
        self.processes = {"caller": psutil.Process(), "worker": psutil.Process(worker_pid)}

    @classmethod
    @asynccontextmanager
    async def of(cls, runtime: DistributedRuntime, worker_pid: int) -> AsyncIterator[Caller]:
        give, count, tick = [await runtime.endpoint(path).client() for path in ENDPOINTS]
        for client in (give, count, tick):
            await client.wait_for_instances(timeout_s=BOUND_S)
        caller = cls(give, count, tick, worker_pid)
        await caller.count.call(None, timeout_s=BOUND_S)  # a static instance is there before its process is
        yield caller

    async def overrun(self, size: int) -> int:
        """Bytes that the producer of an unread stream made before it stopped, with what its items cost."""
        request = {"size": size, "count": 8 * WINDOW // size + 8, "raw": True}
        async with self.give.stream(request, buffers=True):
            made, before = -1, -2
            while made != before:
                await asyncio.sleep(SETTLED_S)
                made, before = await self.count.call(None), made
        return made * (size + ITEM_COST)

    async def growth(self, size: int, raw: bool) -> tuple[float, dict[str, float]]:
        """MiB/s of 1 GiB, and by how many MiB each side grew meanwhile, at most."""
        request = {"size": size, "count": 4, "raw": raw}
        await self._read(request)
        start = self._resident()
        most = dict(start)
        began = time.perf_counter()
        reading = asyncio.create_task(self._read(request | {"count": GIB // size}))
        while not (await asyncio.wait({reading}, timeout=LOOK_S))[0]:
            most = {name: max(most[name], bytes_) for name, bytes_ in self._resident().items()}
        took = time.perf_counter() - began
        if (read := reading.result()) != GIB:
            raise RuntimeError(f"{read} bytes came, not {GIB}")
        return GIB / MIB / took, {name: (most[name] - start[name]) / MIB for name in most}

    def _resident(self) -> dict[str, int]:
        return {name: process.memory_info().rss for name, process in self.processes.items()}

    async def _read(self, request: dict[str, Any]) -> int:
        read = 0
        async with self.give.stream(request, buffers=True) as items:
            async for item in items:
                read += len(item) if request["raw"] else len(item["data"])
        return read

    async def delays(self, rounds: int) -> tuple[list[float], list[float]]:
        """Milliseconds that small items travelled: alone, and beside ``rounds`` items of 16 MiB."""
        delays: list[float] = []
        note = delays.append

        async def read_small() -> None:
            async with self.tick.stream(None) as items:
                async for item in items:
                    note((time.perf_counter() - item["made_at"]) * 1000)

        reading = asyncio.create_task(read_small())
        await asyncio.sleep(IDLE_S)
        alone = sorted(delays)
        delays.clear()
        await self._read({"size": 16 * MIB, "count": rounds, "raw": True})
        beside = sorted(delays)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return alone, beside


def certificates(folder: Path) -> dict[str, str]:
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "worker.pem")
    return {
        "DYN_TCP_TLS_CERT_PATH": str(folder / "worker.pem"),
        "DYN_TCP_TLS_KEY_PATH": str(folder / "worker.pem"),
        "DYN_TCP_TLS_CA_CERT_PATH": str(folder / "ca.pem"),
    }


async def work() -> None:
    async with DistributedRuntime() as runtime, Worker().serving(runtime):
        await until_told()


@asynccontextmanager
async def deployed(transport: str, loop: str) -> AsyncIterator[Caller]:
    async with AsyncExitStack() as stack:
        if transport == "mem":
            runtime = await stack.enter_async_context(DistributedRuntime())
            await stack.enter_async_context(Worker().serving(runtime))
            pid = os.getpid()
        else:
            pid = stack.enter_context(process([*python("limits.py"), "--loop", loop, "--worker"])).pid
            runtime = await stack.enter_async_context(DistributedRuntime())
        yield await stack.enter_async_context(Caller.of(runtime, pid))


async def measure(transport: str, loop: str, rounds: int) -> list[dict[str, Any]]:
    """The rows of one transport, printed as they come."""
    rows: list[dict[str, Any]] = []

    def add(kind: str, shown: str, **values: Any) -> None:
        rows.append({"kind": kind, "transport": transport, **values})
        print(f"{transport:9} {shown}", flush=True)

    async with asyncio.timeout(BOUND_S), deployed(transport, loop) as caller:
        for size in (100, 100 * KIB, MIB):
            overrun, bound = await caller.overrun(size), WINDOW + size + ITEM_COST
            shown = f"unread stream, items of {size:9,}: {overrun:9,} bytes ahead, bound {bound:9,}"
            add("overrun", shown, item_bytes=size, overrun_bytes=overrun, bound_bytes=bound)
        if transport == "mem":
            return rows
        for size, raw in ((64 * KIB, False), (64 * KIB, True), (MIB, True), (16 * MIB, True)):
            speed, grown = await caller.growth(size, raw)
            kind = "raw" if raw else "encoded"
            shown = (
                f"1 GiB, {kind:7} items of {size // KIB:6,} KiB: {speed:6,.0f} MiB/s, resident growth "
                f"worker {grown['worker']:5.1f} MiB, caller {grown['caller']:5.1f} MiB"
            )
            add("gigabyte", shown, item_bytes=size, raw=raw, mib_per_s=speed, grown_mib=grown)
        for beside, delays in zip(("nothing", "16 MiB items"), await caller.delays(rounds), strict=True):
            count = len(delays)
            p50, p99, most = delays[count // 2], delays[count * 99 // 100], delays[-1]
            shown = (
                f"small items beside {beside:12}: {count:5,} items, "
                f"p50 {p50:6.2f} ms, p99 {p99:6.2f} ms, max {most:6.2f} ms"
            )
            add("delay", shown, beside=beside, items=count, p50_ms=p50, p99_ms=p99, max_ms=most)
    return rows


def run(transport: str, loop: str, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="dyn-bench-") as name:
        folder = Path(name)
        secured = certificates(folder) if transport == "tls" else {}
        with (
            environment({**where(transport, folder, ENDPOINTS), **secured}),
            asyncio.Runner(loop_factory=loop_factory(loop)) as runner,
        ):
            return runner.run(measure(transport, loop, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the bounds of memory and delay.")
    parser.add_argument("--loop", choices=LOOPS, default=default_loop())
    parser.add_argument("--transport", choices=TRANSPORTS, help="one of them only")
    parser.add_argument("--rounds", type=int, default=64, help="items of 16 MiB beside small ones")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
            runner.run(work())
        return
    about = setting(loop=options.loop)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows: list[dict[str, Any]] = []
    for transport in (options.transport,) if options.transport else TRANSPORTS:
        if transport == "tls" and not find_spec("trustme"):
            print("tls       left out: no trustme")
            continue
        rows += run(transport, options.loop, options.rounds)
    write_json(OUTPUT, {**about, "rows": rows})


if __name__ == "__main__":
    main()
