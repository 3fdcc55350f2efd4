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
import re
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import httpx
import psutil
from scale import ENDPOINT, SIDE_BY_SIDE, TESTS, arguments, cpu_percent, instance, observe, show

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.model import Instance
from dynamo.core.ports.discovery import Lease

if TYPE_CHECKING:
    from control_plane import ControlPlane
    from kubernetes_namespace import Namespace, Pod

OUTPUT = Path("build/bench/kubernetes.json")
REQUESTS = re.compile(
    r'apiserver_request_total\{.*resource="(?:dynamoworkermetadatas|endpointslices)".*\} (?P<count>\S+)'
)


class Workers:
    """One client of the API server a pod, each with a record."""

    def __init__(self, namespace: Namespace, stack: AsyncExitStack) -> None:
        self._namespace, self._stack = namespace, stack
        self._turn = asyncio.Semaphore(SIDE_BY_SIDE)
        self.leases: list[tuple[Lease, Instance]] = []

    async def pods(self, count: int) -> list[Pod]:
        """As many, ready."""

        async def one(number: int) -> Pod:
            async with self._turn:
                return await self._namespace.kubelet.start(f"worker-{number}")

        return await asyncio.gather(*(one(number) for number in range(count)))

    async def register(self, pods: list[Pod], kubeconfig: Path) -> float:
        """How long it takes, in seconds."""
        began = time.monotonic()

        async def one(number: int, pod: Pod) -> None:
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


def requests(plane: ControlPlane) -> float:
    """How many requests for our two kinds the API server has answered; a watch counts when it ends."""
    text = httpx.get(f"{plane.url}/metrics", verify=plane.tls, headers=plane.headers(), timeout=10).text
    return sum(float(found["count"]) for found in REQUESTS.finditer(text))


async def measure(plane: ControlPlane, options: argparse.Namespace) -> dict[str, float]:
    from kubernetes_namespace import fresh_namespace

    apiserver = psutil.Process(plane.apiserver.pid)
    counters = {
        "idle_requests_per_s": lambda: requests(plane),
        "owners_idle_cpu_percent": cpu_percent(psutil.Process()),
        "apiserver_idle_cpu_percent": cpu_percent(apiserver),
    }
    async with fresh_namespace(plane) as namespace, AsyncExitStack() as stack:
        await namespace.service()
        workers, kubeconfig = Workers(namespace, stack), plane.kubeconfig(namespace=namespace.name)
        pods = await workers.pods(options.instances)
        while len(await namespace.ready_pods()) < options.instances:
            await asyncio.sleep(0.1)
        url, env = f"kubernetes://{namespace.name}", {"KUBECONFIG": str(kubeconfig)}
        return {
            "registered_s": await workers.register(pods, kubeconfig),
            **await observe(url, workers.leases, counters, options, env),
            "apiserver_rss_mib": apiserver.memory_info().rss / 2**20,
        }


def main() -> None:
    options = arguments(__doc__, instances=500, changes=300, idle_s=330.0).parse_args()
    sys.path.append(str(TESTS))
    from control_plane import CRD, ControlPlane

    with ControlPlane(CRD) as plane:
        figures = asyncio.run(measure(plane, options))
    show(figures, OUTPUT, instances=options.instances)


if __name__ == "__main__":
    main()
