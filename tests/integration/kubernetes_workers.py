"""Workers and callers on a real control plane, at the port: each worker has a pod of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from attrs import frozen

from dynamo.adapters.discovery.kubernetes import KubernetesDiscovery, open_kubernetes
from dynamo.core.config import Settings
from dynamo.core.model import Instance
from dynamo.core.ports.discovery import Lease
from dynamo.testing.discovery import ENDPOINT, Follower, following
from kubernetes_namespace import Namespace, Pod

RECORDS = "nvidia.com/v1alpha1/dynamoworkermetadatas"


@frozen
class Worker:
    client: KubernetesDiscovery
    lease: Lease
    instance: Instance
    """What it has registered."""


def settings(namespace: Namespace, pod: Pod | None = None, **options: Any) -> Settings:
    """Of a process of that pod, or of one that only calls."""
    kubeconfig = str(namespace.plane.kubeconfig(namespace=namespace.name))
    environment = {} if pod is None else pod.environment
    return Settings.from_env(environment, **{"kubeconfig": kubeconfig, **options})


@asynccontextmanager
async def worker(
    namespace: Namespace, pod: Pod, incarnation: int = 1, port: int = 5000, **options: Any
) -> AsyncIterator[Worker]:
    """One that has registered its endpoint."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            open_kubernetes("kubernetes://?takeover_s=1", settings(namespace, pod, **options))
        )
        identity = await client.identity(ENDPOINT)
        assert identity is not None
        instance = Instance(
            endpoint_id=ENDPOINT,
            instance_id=identity.instance_id,
            incarnation=incarnation,
            addresses=(f"tcp://{pod.ip}:{port}",),
        )
        lease = await stack.enter_async_context(
            client.lease(instance_id=identity.instance_id, incarnation=incarnation)
        )
        await lease.put(instance)
        yield Worker(client, lease, instance)


@asynccontextmanager
async def caller(namespace: Namespace) -> AsyncIterator[Follower]:
    """One that follows the contract's scope, from its first snapshot on."""
    async with open_kubernetes("kubernetes://", settings(namespace)) as client, following(client) as follower:
        yield follower


async def records(namespace: Namespace) -> dict[str, Any]:
    """All objects of the namespace, by name."""
    found = (await namespace.call("GET", RECORDS))["items"]
    return {record["metadata"]["name"]: record for record in found}
