"""Discovery through Kubernetes: each worker owns a custom resource, visible while its pod is ready.

``kubernetes://`` looks where the pod is; ``kubernetes://namespace?takeover_s=10`` elsewhere. The way to the
API server is the pod's service account, or the file that ``KUBECONFIG`` names. ``POD_NAME`` and ``POD_UID``
come from the downward API; only who serves needs them.

=============  ==========================================================
capability
=============  ==========================================================
liveness       external: the object is its pod's garbage, and hidden while the pod is not ready
dynamic        yes
cross_process  yes
cross_host     yes
=============  ==========================================================

=============================================================  ==================
what the server, or the way there, says                        error
=============================================================  ==================
a kubeconfig, a pod's identity or a certificate is wrong       ConfigError
no CustomResourceDefinition, no namespace, a record refused    ConfigError
credentials refused, or a rule of the Role is missing          AuthError
another live process has our object                            ConflictError
anything else: away, busy, no answer in time                   UnavailableError
=============================================================  ==================

What of ``kubernetes`` is trusted: reading kubeconfigs, credentials, TLS and single requests. Its watch is
not: see ``feed``. Who is alive is not its business but the kubelet's: see ``join`` and ``leasing``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from dynamo.adapters.discovery.kubernetes import configuration, way
from dynamo.adapters.discovery.kubernetes.access import Access
from dynamo.adapters.discovery.kubernetes.client import CAPABILITY, KubernetesDiscovery
from dynamo.adapters.discovery.kubernetes.configuration import KubernetesConfig
from dynamo.adapters.discovery.kubernetes.errors import RECORDS, SLICES
from dynamo.core.config import Settings

__all__ = ["CAPABILITY", "KubernetesDiscovery", "open_kubernetes"]


def open_kubernetes(url: str, settings: Settings) -> AbstractAsyncContextManager[KubernetesDiscovery]:
    """``kubernetes://``, with a namespace or without. Raises ConfigError; entering also UnavailableError and
    AuthError.
    """
    return _open(configuration.read(url, settings), settings)


@asynccontextmanager
async def _open(config: KubernetesConfig, settings: Settings) -> AsyncIterator[KubernetesDiscovery]:
    access = Access(config, await way.find(config))
    try:
        for resource in (RECORDS, SLICES):
            await access.probe(resource)
        discovery = KubernetesDiscovery(access, settings)
        try:
            yield discovery
        finally:
            await discovery.aclose()  # noqa: ASYNC102 - bounded inside
    finally:
        await access.close()  # noqa: ASYNC102 - it waits for nobody
