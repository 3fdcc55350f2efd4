"""A namespace of a Kubernetes control plane for one deployment: each worker is the one process of a pod."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import control_plane
from kubernetes_namespace import Namespace, fresh_namespace


class Cluster:
    """``settings`` are those of who only calls; ``seat`` adds the pod of one who serves, which is ready."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        kubeconfig = namespace.plane.kubeconfig(namespace=namespace.name)
        self.settings: dict[str, Any] = {"discovery_backend": "kubernetes", "kubeconfig": str(kubeconfig)}
        self._pods = 0

    async def seat(self) -> dict[str, Any]:
        """Others dial the worker on this host, where its pod's address leads nowhere."""
        self._pods += 1
        pod = await self._namespace.kubelet.start(f"worker-{self._pods}")
        return {"pod_name": pod.name, "pod_uid": pod.uid, "tcp_host": "127.0.0.1"}


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    """In the control plane that all tests of this process share."""
    async with fresh_namespace(control_plane.shared()) as namespace:
        await namespace.service()
        yield Cluster(namespace)
