"""What being watched costs: the telemetry of each request, and scrapes of ``/metrics`` under full load.

    python benchmarks/scrape.py [--loop asyncio|uvloop] [--rounds 12] [--seconds 2] [--endpoints 8]

One process calls, one works; each has two runtimes, one with telemetry and one without, and this program
scrapes. Rounds of all ways take turns, in an order drawn for each round, and a way is compared with another
one of its own round only, so that a machine that is busy with other things changes the figures little. Prints
two tables and writes build/bench/scrape.json.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from processes import (
    LOOPS,
    default_loop,
    environment,
    free_port,
    loop_factory,
    process,
    python,
    setting,
    until_told,
    write_json,
)
from workload import TIMEOUT_S, cpu_s, generate

from dynamo.runtime import Client, DistributedRuntime

OUTPUT = Path("build/bench/scrape.json")
CALLERS = 64
REQUEST = {"items": 1, "pause": None}
SCRAPES = 100  # of an idle worker
WARM_UP_S = 0.5
TARGET = 0.02  # of requests/s, at a scrape a second: Prometheus' default is one in 15 s or a minute
PATHS = {True: "bench.observed.generate", False: "bench.unobserved.generate"}

# Whether both sides have telemetry, and scrapes a second.
WAYS = {
    "no telemetry": (False, 0),
    "telemetry": (True, 0),
    "1 scrape/s": (True, 1),
    "10 scrapes/s": (True, 10),
}
COMPARED = (("telemetry", "no telemetry"), ("1 scrape/s", "telemetry"), ("10 scrapes/s", "telemetry"))


async def work(port: int, endpoints: int) -> None:
    """``endpoints`` in all are shown at ``port``; calls come to the first."""
    async with AsyncExitStack() as stack:
        for observed, path in PATHS.items():
            options: dict[str, Any] = {"system_port": port} if observed else {"telemetry": "none"}
            runtime = await stack.enter_async_context(DistributedRuntime(**options))
            more = [f"bench.observed.idle-{number}" for number in range(1, endpoints)] if observed else []
            for served in (path, *more):
                await stack.enter_async_context(runtime.endpoint(served).serve(generate))
        await until_told()


async def load(client: Client, worker_pid: int, seconds: float) -> dict[str, float]:
    """Callers that each begin the next call when the last has ended."""
    took: list[float] = []
    clock, before = time.perf_counter, (cpu_s(worker_pid), time.process_time())
    until = (began := clock()) + seconds

    async def caller() -> None:
        while (asked := clock()) < until:
            await client.call(REQUEST, timeout_s=TIMEOUT_S)
            took.append(clock() - asked)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    spent, count = clock() - began, len(took)
    worker_s, caller_s = cpu_s(worker_pid) - before[0], time.process_time() - before[1]
    took.sort()
    return {
        "requests/s": count / spent,
        "p50 ms": took[count // 2] * 1e3,
        "p99 ms": took[count * 99 // 100] * 1e3,
        "worker us": worker_s / count * 1e6,
        "caller us": caller_s / count * 1e6,
    }


async def call(worker_pid: int) -> None:
    """Answer each line of JSON, ``[observed, seconds]``, with what a load of so long came to."""
    async with AsyncExitStack() as stack:
        clients = {}
        for observed, path in PATHS.items():
            telemetry = "prometheus" if observed else "none"
            runtime = await stack.enter_async_context(DistributedRuntime(telemetry=telemetry))
            clients[observed] = await runtime.endpoint(path).client()
            await clients[observed].call(REQUEST, timeout_s=TIMEOUT_S)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            observed, seconds = json.loads(line)
            print(json.dumps(await load(clients[observed], worker_pid, seconds)), flush=True)


class Scraper:
    """Scrapes on a connection that it keeps, as Prometheus does."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self.page_bytes, self.took_ms = 0, list[float]()

    def scrape(self) -> None:
        began = time.perf_counter()
        self._connection.request("GET", "/metrics")
        answer = self._connection.getresponse()
        self.page_bytes = len(answer.read())
        if answer.status != 200:
            raise RuntimeError(f"/metrics answered {answer.status}")
        self.took_ms.append((time.perf_counter() - began) * 1e3)

    @contextmanager
    def scraping(self, per_second: int) -> Iterator[None]:
        """For the block, beside it."""
        ended = threading.Event()

        def go_on() -> None:
            pause = random.random() / per_second  # or a round might always be too short for one
            while not ended.wait(pause):
                self.scrape()
                pause = 1 / per_second

        thread = threading.Thread(target=go_on)
        if per_second:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if per_second:
                thread.join()

    def cost_ms(self, worker_pid: int) -> float:
        """The worker's CPU time for a scrape, while it does nothing else."""
        self.scrape()
        began = cpu_s(worker_pid)
        for _ in range(SCRAPES):
            self.scrape()
        return (cpu_s(worker_pid) - began) / SCRAPES * 1e3


def verdict(shares: list[float]) -> str:
    low, median, high = quartiles(shares)
    if (high - low) / 2 > 2 * TARGET:
        return "cannot be told, as the rounds differ too much: is the machine busy?"
    return "met" if median < TARGET else "MISSED"


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def shown(shares: list[float]) -> str:
    low, median, high = quartiles(shares)
    return f"{median:7.2%} ({low:6.1%} to {high:6.1%})"


def measure(loop: str, rounds: int, seconds: float, endpoints: int) -> dict[str, Any]:
    port, pipe = free_port(), subprocess.PIPE
    program = [*python("scrape.py"), "--loop", loop, "--endpoints", str(endpoints)]
    with process([*program, "--work", str(port)]) as worker:
        with process([*program, "--call", str(worker.pid)], stdin=pipe, stdout=pipe) as caller:
            answers = caller.stdout
            assert answers is not None
            if answers.readline() != "ready\n":
                raise RuntimeError("the caller ended; see what it said")

            def ask(observed: bool, seconds: float) -> dict[str, float]:
                print(json.dumps([observed, seconds]), file=caller.stdin, flush=True)
                result: dict[str, float] = json.loads(answers.readline())
                return result

            for observed in PATHS:
                ask(observed, min(seconds, WARM_UP_S))
            scraper = Scraper(port)
            found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way in random.sample(list(WAYS), len(WAYS)):
                    observed, per_second = WAYS[way]
                    with scraper.scraping(per_second):
                        found[way].append(ask(observed, seconds))
            under_load_ms = statistics.median(scraper.took_ms) if scraper.took_ms else None
            cost_ms = scraper.cost_ms(worker.pid)
    return {
        "ways": found,
        "scrape": {
            "page_bytes": scraper.page_bytes,
            "worker_cpu_ms": cost_ms,
            "under_load_ms": under_load_ms,
        },
    }


def show(result: dict[str, Any]) -> None:
    found: dict[str, list[dict[str, float]]] = result["ways"]
    names = ("requests/s", "p50 ms", "p99 ms", "worker us", "caller us")
    print(f"{'medians':14}" + "".join(f"{name:>12}" for name in names) + "   (us: CPU of a request)")
    for way, rows in found.items():
        medians = (statistics.median(row[name] for row in rows) for name in names)
        print(f"{way:14}" + "".join(f"{value:12,.2f}" for value in medians))
    print("\ncost, as a share of what the same round had: median (quartiles)")
    for way, other in COMPARED:
        pairs = list(zip(found[way], found[other], strict=True))
        less = [1 - mine["requests/s"] / its["requests/s"] for mine, its in pairs]
        more = [mine["worker us"] / its["worker us"] - 1 for mine, its in pairs]
        print(f"{way:13} beside {other:13} requests/s {shown(less)}   worker's CPU {shown(more)}")
        if way == "1 scrape/s":
            print(f"{'':13} wanted: < {TARGET:.0%} of requests/s: {verdict(less)}")
    scrape = result["scrape"]
    cost_ms: float = scrape["worker_cpu_ms"]
    print(
        f"\na scrape: {scrape['page_bytes']:,} bytes, {cost_ms:.2f} ms of the worker's CPU (one a second is "
        f"{cost_ms / 1e3:.2%} of a core, ten {cost_ms / 1e2:.2%})"
    )
    if scrape["under_load_ms"] is not None:
        print(f"under load it is answered in {scrape['under_load_ms']:.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what telemetry and scrapes cost.")
    parser.add_argument("--loop", choices=LOOPS, default=default_loop())
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way in a round")
    parser.add_argument("--endpoints", type=int, default=8, help="that the page shows")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--call", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
        if options.work is not None:
            runner.run(work(options.work, options.endpoints))
            return
        if options.call is not None:
            runner.run(call(options.call))
            return
    about = setting(loop=options.loop, seconds=options.seconds, endpoints=options.endpoints)
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    first, second = (f"tcp://127.0.0.1:{free_port()}" for _ in PATHS)
    declared = [f"{PATHS[True]}={first}", f"{PATHS[False]}={second}"]
    declared += [f"bench.observed.idle-{number}={first}" for number in range(1, options.endpoints)]
    with (
        tempfile.TemporaryDirectory(prefix="dyn-bench-") as folder,
        environment(
            {
                "DYN_DISCOVERY_BACKEND": "static",
                "DYN_STATIC_INSTANCES": ";".join(declared),
                "DYN_REQUEST_PLANE": "tcp",
                "DYN_DRAIN_GRACE_S": "0",
                "TMPDIR": folder,
            }
        ),
    ):
        result = measure(options.loop, options.rounds, options.seconds, options.endpoints)
    show(result)
    write_json(OUTPUT, {**about, **result})


if __name__ == "__main__":
    main()
