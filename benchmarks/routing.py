"""What a pick and a change cost, with 1 to 5,000 instances in the routing table.

    python benchmarks/routing.py [--seconds 0.4] [--rounds 5]

A pick is that of a call with 64 others in flight: the strategy's choice, and the count of calls up and
down. A change goes the way it does from any discovery adapter: through the watch's buffer into the table, the
metrics told. Prints nanoseconds, what each costs with the most instances as a multiple of that with 10, and
writes build/bench/routing.json.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import cycle
from pathlib import Path
from random import sample
from typing import Any

import attrs
from processes import setting, write_json
from report import number, show

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.membership import Membership
from dynamo.core.model import EndpointId, Instance, Phase
from dynamo.core.routing import Direct, Strategy, strategy_of
from dynamo.core.watching import ConflatingWatch

COUNTS = (1, 10, 100, 1_000, 5_000)
ENDPOINT = EndpointId.parse("bench.worker.generate")
STRATEGIES = ("round_robin", "random", "power_of_two", "least_loaded")
IN_FLIGHT = 64
LIMIT = 2.0  # times what it costs with 10 instances
BATCH = 256  # runs between two looks at the clock
OUTPUT = Path("build/bench/routing.json")
Operation = Callable[[int], Awaitable[None]]  # do it so many times


def instance(number: int, incarnation: int = 1) -> Instance:
    address = f"tcp://10.0.{number // 250}.{number % 250}:7000"
    return Instance(
        endpoint_id=ENDPOINT,
        instance_id=number,
        incarnation=incarnation,
        addresses=(address,),
        name=f"worker-{number}",
    )


class Table:
    """A routing table of ``count`` instances, and the operations on it."""

    def __init__(self, membership: Membership, count: int) -> None:
        self.membership, self.peers, self.count = membership, membership.peers, count
        self.watch = ConflatingWatch()
        self.watch.reset(tuple(map(instance, range(count))))
        self._numbers = cycle(sample(range(count), count))
        self._incarnation = 1

    async def settle(self) -> None:
        self.membership.apply(await self.watch.receive())

    def operations(self) -> dict[str, Operation]:
        return {
            **{f"pick {name}": self._picking(name) for name in STRATEGIES},
            "pick direct": self._direct,
            "pick direct by name": self._direct_by_name,
            "pick again, without one": self._again,
            "aside and back": self._aside,
            "change: phase": self._phase,
            "change: restarted": self._restarted,
            "change: left and came": self._left,
        }

    def _picking(self, name: str) -> Operation:
        strategy = strategy_of(name)

        async def pick(times: int) -> None:
            self._load(strategy, times)

        return pick

    def _load(self, strategy: Strategy, times: int) -> None:
        peers = self.peers
        flying = deque[Any](strategy.pick(peers) for _ in range(IN_FLIGHT))
        peer: Any
        for peer in flying:
            peers.begin(peer)
        for _ in range(times):
            peer = strategy.pick(peers)
            peers.begin(peer)
            flying.append(peer)
            peers.finish(flying.popleft())
        for peer in flying:
            peers.finish(peer)

    async def _direct(self, times: int) -> None:
        peers, numbers = self.peers, self._numbers
        for _ in range(times):
            peer: Any = Direct(next(numbers)).pick(peers)
            peers.begin(peer)
            peers.finish(peer)

    async def _direct_by_name(self, times: int) -> None:
        peers, numbers = self.peers, self._numbers
        for _ in range(times):
            peer: Any = Direct(f"worker-{next(numbers)}").pick(peers)
            peers.begin(peer)
            peers.finish(peer)

    async def _again(self, times: int) -> None:
        peers, numbers, strategy = self.peers, self._numbers, strategy_of("round_robin")
        for _ in range(times):
            peers.pick_without((peers.by_id[next(numbers)],), strategy)

    async def _aside(self, times: int) -> None:
        peers, numbers = self.peers, self._numbers
        for _ in range(times):
            peer = peers.by_id[next(numbers)]
            peers.set_aside(peer)
            peers.restore(peer)

    async def _phase(self, times: int) -> None:
        membership, watch, numbers = self.membership, self.watch, self._numbers
        for _ in range(0, times, 2):
            there = self.peers.by_id[next(numbers)].instance
            for phase in (Phase.DRAINING, Phase.READY):
                watch.put(attrs.evolve(there, phase=phase))
                membership.apply(await watch.receive())

    async def _restarted(self, times: int) -> None:
        membership, watch, numbers = self.membership, self.watch, self._numbers
        for _ in range(0, times, 2):
            self._incarnation += 1
            watch.put(instance(next(numbers), self._incarnation))
            membership.apply(await watch.receive())  # removed
            membership.apply(await watch.receive())  # put

    async def _left(self, times: int) -> None:
        membership, watch, numbers = self.membership, self.watch, self._numbers
        for _ in range(0, times, 2):
            leaving = self.peers.by_id[next(numbers)].instance
            watch.remove(ENDPOINT, leaving.instance_id)
            membership.apply(await watch.receive())
            watch.put(leaving)
            membership.apply(await watch.receive())


async def once(operation: Operation, seconds: float) -> float:
    """Nanoseconds of one."""
    clock, done = time.perf_counter_ns, 0
    began = clock()
    until = began + int(seconds * 1e9)
    while True:
        await operation(BATCH)
        done += BATCH
        if (now := clock()) >= until:
            return (now - began) / done


async def measure(seconds: float, rounds: int) -> list[dict[str, Any]]:
    settings = Settings.from_env({})
    async with (
        registry.discovery.open("mem", settings) as discovery,
        registry.telemetry.open("prometheus", settings) as seen,
    ):
        tables = [Table(Membership(ENDPOINT, discovery, seen), count) for count in COUNTS]
        for table in tables:
            await table.settle()
        operations = [table.operations() for table in tables]
        rows: list[dict[str, Any]] = []
        for name in operations[0]:
            taken: list[list[float]] = [[] for _ in tables]
            for _ in range(rounds):
                for mine, of_table in zip(taken, operations, strict=True):
                    mine.append(await once(of_table[name], seconds / len(tables)))
            rows += [
                {
                    "shape": f"{count} instances",
                    "system": name,
                    "metric": "ns",
                    "value": statistics.median(ns),
                }
                for count, ns in zip(COUNTS, taken, strict=True)
            ]
        return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each operation: nanoseconds by number of instances, and how they grow."""
    few, many = COUNTS[1], COUNTS[-1]
    lines = [["nanoseconds", *(f"{count:,}" for count in COUNTS), f"{many:,} / {few}", ""]]
    values = {(row["system"], row["shape"]): row["value"] for row in rows}
    for name in dict.fromkeys(row["system"] for row in rows):
        found = [values[name, f"{count} instances"] for count in COUNTS]
        growth = found[-1] / found[1]
        lines.append([name, *map(number, found), f"{growth:.2f}", "ok" if growth <= LIMIT else "above"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the routing table.")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each operation and round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in setting().items()))
    rows = asyncio.run(measure(options.seconds, options.rounds))
    show(table(rows))
    write_json(OUTPUT, rows)


if __name__ == "__main__":
    main()
