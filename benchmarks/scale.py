"""Many instances registered, and a process that watches them all: what `etcd_scale.py` and
`kubernetes_scale.py` share.

Run as a program it is the watcher: `scale.py URL INSTANCES` takes a line for each of its three phases, and
answers each with a line of JSON: the first snapshot, a time in which nothing changes, changes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import psutil
from processes import Program, process, python, setting, write_json

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Lease, Put, Snapshot

TESTS = Path(__file__).parents[1] / "tests"  # have the servers
ENDPOINT = EndpointId(namespace="bench", component="worker", name="generate")
SIDE_BY_SIDE = 50  # registrations under way at once
SETTLE_S = 2.0  # between registering and what is called idle, at most
PAUSE_S = 0.02  # between changes
BOUND_S = 60.0  # for what the watcher says, beyond the time that a phase takes


def instance(number: int) -> Instance:
    return Instance(
        endpoint_id=ENDPOINT,
        instance_id=number,
        incarnation=number,
        addresses=(f"unix://boot/worker-{number}", f"tcp://10.0.{number // 250}.{number % 250}:7000"),
        metadata={"device": "cuda", "model": "meta-llama/Llama-3.1-8B-Instruct"},
    )


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def watch(url: str, instances: int) -> None:
    own = psutil.Process()

    async def asked() -> Any:
        return json.loads(await asyncio.to_thread(sys.stdin.readline))

    def say(**figures: Any) -> None:
        print(json.dumps(figures), flush=True)

    await asked()
    async with registry.discovery.open(url, Settings.from_env()) as discovery:
        began = time.monotonic()
        async with discovery.watch(Scope.of(ENDPOINT)) as watching:
            while not isinstance(change := await watching.receive(), Snapshot):
                pass
            assert len(change.instances) == instances, len(change.instances)
            say(snapshot_s=time.monotonic() - began)

            idle_s = (await asked())["idle_s"]
            began, used_s = time.monotonic(), cpu_s(own)
            await asyncio.sleep(idle_s)
            share = (cpu_s(own) - used_s) / (time.monotonic() - began)
            say(watcher_idle_cpu_percent=100 * share, watcher_rss_mib=own.memory_info().rss / 2**20)

            await asked()
            delays, left = list[float](), 1
            while left:  # two changes of one instance may come as one
                change = await watching.receive()
                if isinstance(change, Put):  # one clock for all processes of a host
                    delays.append(time.monotonic() - change.instance.metadata["at"])
                    left = change.instance.metadata["left"]
            say(delays=delays)


async def observe(
    url: str,
    registered: Sequence[tuple[Lease, Instance]],
    counters: Mapping[str, Callable[[], float]],
    options: argparse.Namespace,
    env: Mapping[str, str] = {},
) -> dict[str, float]:
    """What a watcher sees and costs, and how much each counter grows a second while nothing changes."""

    async def counted() -> dict[str, float]:
        return await asyncio.to_thread(lambda: {name: count() for name, count in counters.items()})

    async def ask(bound_s: float = BOUND_S, **what: Any) -> dict[str, Any]:
        return await asyncio.to_thread(watcher.run, what, bound_s)

    async def change() -> None:
        for left in reversed(range(options.changes)):
            lease, mine = random.choice(registered)
            metadata = {**mine.metadata, "at": time.monotonic(), "left": left}
            await lease.put(attrs.evolve(mine, metadata=metadata))
            await asyncio.sleep(PAUSE_S)

    command, pipe = [*python("scale.py"), url, str(len(registered))], subprocess.PIPE
    with process(command, env, stdin=pipe, stdout=pipe) as started:
        watcher = Program(url, started, None)
        seen = await ask()
        await asyncio.sleep(min(SETTLE_S, options.idle))
        before = await counted()
        idle = await ask(options.idle + BOUND_S, idle_s=options.idle)
        after = await counted()
        changing = options.changes * PAUSE_S + BOUND_S
        noted, _ = await asyncio.gather(ask(changing), asyncio.wait_for(change(), changing))
    return {
        **seen,
        "changes_seen": len(noted["delays"]),
        "change_p50_ms": 1e3 * quantile(noted["delays"], 0.5),
        "change_p99_ms": 1e3 * quantile(noted["delays"], 0.99),
        **idle,
        **{name: (after[name] - before[name]) / options.idle for name in counters},
    }


def cpu_percent(process: psutil.Process) -> Callable[[], float]:
    """The counter for it."""
    return lambda: 100 * cpu_s(process)


def arguments(
    description: str | None, *, instances: int, changes: int, idle_s: float
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=instances)
    parser.add_argument("--changes", type=int, default=changes)
    parser.add_argument("--idle", type=float, default=idle_s, help="seconds in which nothing changes")
    return parser


def show(figures: Mapping[str, float], output: Path, **about: Any) -> None:
    for name, value in figures.items():
        print(f"{name:28}{value:10.2f}")
    write_json(output, {"setting": setting(**about), **figures})


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1], int(sys.argv[2])))
