"""What a large deployment costs in Kubernetes: the records of 500 ready pods in one namespace, one watcher.

    python benchmarks/kubernetes_scale.py [--instances 500] [--changes 300] [--idle 330]

Starts a control plane of its own (which Go builds, the first time). All workers are clients in one process,
so that its CPU is that of as many workers together; the watcher is a process of its own. An idle time of
more than 300 s has every watch renewed once. Prints a table and writes build/bench/kubernetes.json. Delays
want a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import httpx
import psutil
from etcd_scale import ENDPOINT, PAUSE_S, SIDE_BY_SIDE, instance, quantile
from processes import setting, write_json

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.model import Instance
from dynamo.core.ports.discovery import Lease

OUTPUT = Path("build/bench/kubernetes.json")
WATCHER = Path(__file__).with_name("etcd_scale.py")
REQUESTS = re.compile(
    r'apiserver_request_total\{.*resource="(?:dynamoworkermetadatas|endpointslices)".*\} (?P<count>\S+)'
)


class Workers:
    """One client of the API server a pod, each with a record."""

    def __init__(self, namespace: Any, stack: AsyncExitStack) -> None:
        self._namespace, self._stack = namespace, stack
        self._turn = asyncio.Semaphore(SIDE_BY_SIDE)
        self.leases: list[tuple[Lease, Instance]] = []

    async def pods(self, count: int) -> list[Any]:
        """As many, ready."""

        async def one(number: int) -> Any:
            async with self._turn:
                return await self._namespace.kubelet.start(f"worker-{number}")

        return await asyncio.gather(*(one(number) for number in range(count)))

    async def register(self, pods: list[Any], kubeconfig: Path) -> float:
        """How long it takes, in seconds."""
        began = time.monotonic()

        async def one(number: int, pod: Any) -> None:
            async with self._turn:
                variables = {**pod.environment, "KUBECONFIG": str(kubeconfig), "DYN_CONNECT_TIMEOUT_S": "60"}
                settings = Settings.from_env(variables)
                opening = registry.discovery.open("kubernetes", settings)
                discovery = await self._stack.enter_async_context(opening)
                identity = await discovery.identity(ENDPOINT)
                assert identity is not None
                mine = attrs.evolve(instance(number + 1), instance_id=identity.instance_id)
                lease = discovery.lease(instance_id=mine.instance_id, incarnation=mine.incarnation)
                self.leases.append((await self._stack.enter_async_context(lease), mine))
                await self.leases[-1][0].put(mine)

        async with asyncio.TaskGroup() as group:
            for number, pod in enumerate(pods):
                group.create_task(one(number, pod))
        return time.monotonic() - began


def requests(plane: Any) -> float:
    """How many requests for our two kinds the API server has answered; a watch counts when it ends."""
    text = httpx.get(f"{plane.url}/metrics", verify=plane.tls, headers=plane.headers(), timeout=10).text
    return sum(float(found["count"]) for found in REQUESTS.finditer(text))


async def measure(plane: Any, options: argparse.Namespace) -> dict[str, float]:
    from kubernetes_namespace import fresh_namespace

    own, apiserver = psutil.Process(), psutil.Process(plane.apiserver.pid)
    async with fresh_namespace(plane) as namespace, AsyncExitStack() as stack:
        await namespace.service()
        workers, kubeconfig = Workers(namespace, stack), plane.kubeconfig(namespace=namespace.name)
        pods = await workers.pods(options.instances)
        while len(await namespace.ready_pods()) < options.instances:
            await asyncio.sleep(0.1)
        registered_s = await workers.register(pods, kubeconfig)
        watcher = await asyncio.create_subprocess_exec(
            *(sys.executable, WATCHER, "--watch", f"kubernetes://{namespace.name}"),
            *("--instances", str(options.instances), "--changes", str(options.changes)),
            *("--idle", str(options.idle)),
            env={**os.environ, "KUBECONFIG": str(kubeconfig)}, limit=2**24,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        seen = json.loads(await watcher.stdout.readline())
        await asyncio.sleep(2)
        before = [sum(process.cpu_times()[:2]) for process in (own, apiserver)]
        asked = await asyncio.to_thread(requests, plane)
        watcher.stdin.write(b"\n")
        idle = json.loads(await watcher.stdout.readline())
        asked = await asyncio.to_thread(requests, plane) - asked
        used = [
            sum(process.cpu_times()[:2]) - cpu for process, cpu in zip((own, apiserver), before, strict=True)
        ]
        for _ in range(options.changes):
            lease, mine = random.choice(workers.leases)
            await lease.put(attrs.evolve(mine, metadata={**mine.metadata, "at": time.monotonic()}))
            await asyncio.sleep(PAUSE_S)
        delays = json.loads(await watcher.stdout.readline())["delays"]
        await watcher.wait()
        return {
            "registered_s": registered_s,
            **seen,
            "change_p50_ms": 1e3 * quantile(delays, 0.5),
            "change_p99_ms": 1e3 * quantile(delays, 0.99),
            "idle_requests_per_s": asked / options.idle,
            "watcher_idle_cpu_percent": idle["cpu_percent"],
            "watcher_rss_mib": idle["rss_mib"],
            "owners_idle_cpu_percent": 100 * used[0] / options.idle,
            "apiserver_idle_cpu_percent": 100 * used[1] / options.idle,
            "apiserver_rss_mib": apiserver.memory_info().rss / 2**20,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, default=500)
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--idle", type=float, default=330.0, help="seconds in which nothing changes")
    options = parser.parse_args()
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from control_plane import CRD, ControlPlane

    with ControlPlane(CRD) as plane:
        figures = asyncio.run(measure(plane, options))
    for name, value in figures.items():
        print(f"{name:28}{value:10.2f}")
    write_json(OUTPUT, {"setting": setting(instances=options.instances), **figures})


if __name__ == "__main__":
    main()
