"""Power over a real control plane, for the contract on ``kubernetes``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import control_plane
from dynamo.adapters.discovery.kubernetes import KubernetesDiscovery, open_kubernetes
from dynamo.core.config import Settings
from dynamo.core.model import EndpointId, Instance
from dynamo.testing.discovery import DiscoveryHarness
from dynamo.testing.proxy import FaultProxy
from kubernetes_namespace import Namespace, Pod, fresh_namespace

RIVAL_S = 1.0
RECORDS = "nvidia.com/v1alpha1/dynamoworkermetadatas"


class KubernetesHarness(DiscoveryHarness):
    """All clients are processes of one pod, which is ready; they come through a proxy, which an outage
    closes. The harness itself goes there directly.
    """

    def __init__(self, namespace: Namespace, pod: Pod, proxy: FaultProxy, settings: Settings) -> None:
        self.namespace, self.pod, self.proxy, self.settings = namespace, pod, proxy, settings

    def client(self) -> AbstractAsyncContextManager[KubernetesDiscovery]:
        return open_kubernetes(f"kubernetes://?takeover_s={RIVAL_S}", self.settings)

    async def leftovers(self) -> list[str]:
        return [record["metadata"]["name"] for record in (await self.namespace.call("GET", RECORDS))["items"]]

    async def outage(self, on: bool) -> None:
        if on:
            self.proxy.refuse()
            self.proxy.reset()
        else:
            self.proxy.heal()

    async def delete(self, instance: Instance) -> None:
        await self.namespace.call("DELETE", f"{RECORDS}/{self.pod.name}-{instance.instance_id:x}")

    async def corrupt(self, endpoint_id: EndpointId) -> None:
        """What the CRD lets pass."""
        path = f"{endpoint_id.namespace}/{endpoint_id.component}/{endpoint_id.name}"
        record = {
            "namespace": endpoint_id.namespace,
            "component": endpoint_id.component,
            "endpoint": endpoint_id.name,
            "instance_id": 7,
            "incarnation": "7",
            "addresses": ["tcp://127.0.0.1:7"],
            "phase": "ready",
        }
        bad = ({path: {**record, "metadata": "text"}}, {path: {**record, "name": 7}}, {"a/b/c": record})
        for number, endpoints in enumerate(bad):
            await self.namespace.call(
                "POST",
                RECORDS,
                {
                    "apiVersion": "nvidia.com/v1alpha1",
                    "kind": "DynamoWorkerMetadata",
                    "metadata": {"name": f"bad-{number}", "ownerReferences": [owned_by(self.pod)]},
                    "spec": {"data": {"incarnation": "7", "endpoints": endpoints}},
                },
            )


def owned_by(pod: Pod) -> dict[str, str]:
    """The ownerReference to a pod."""
    return {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}


@asynccontextmanager
async def kubernetes_harness() -> AsyncIterator[KubernetesHarness]:
    """In a namespace of its own, of the control plane that all tests of this process share."""
    plane = control_plane.shared()
    async with (
        fresh_namespace(plane) as namespace,
        FaultProxy("127.0.0.1", plane.apiserver.port) as proxy,
    ):
        await namespace.service()
        pod = await namespace.kubelet.start("worker-0")
        while not await namespace.ready_pods():
            pass
        settings = Settings.from_env(
            pod.environment,
            kubeconfig=str(plane.kubeconfig(namespace=namespace.name, server=f"https://{proxy.address}")),
            connect_timeout_s=1.0,
        )
        yield KubernetesHarness(namespace, pod, proxy, settings)
