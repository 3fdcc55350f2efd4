"""Discovery through etcd: registrations under a lease, watched by every client.

``etcd://`` takes ``ETCD_ENDPOINTS``; ``etcd://user:password@h1:2379,h2:2379`` names the members itself. The
URL's options are ``ttl_s`` (``ETCD_LEASE_TTL``) and ``tls=1`` (for members named in the URL). Leases
are renewed on a thread of ours, so that an engine that blocks its loop keeps its own, up to
``DYN_LOOP_STALL_S``.

=============  ==========================================================
capability
=============  ==========================================================
liveness       ttl: ``ETCD_LEASE_TTL``, whole seconds; etcd's own minimum is 2 s at its default timing, and it
               looks for dead leases every half second
dynamic        yes
cross_process  yes
cross_host     yes
=============  ==========================================================

========================================================  ==================
what etcd or gRPC says                                    error
========================================================  ==================
wrong scheme, certificate, CA (at the start)              ConfigError
user, password or role is wrong                           AuthError
no such lease                                             LeaseLostError
anything else: away, no leader, quota, no answer in time  UnavailableError
========================================================  ==================

What of etcd3aio is trusted: its messages and stubs. Channels, failover, deadlines, tokens, renewal, the watch
and its resync are ours: see ``cluster``, ``leasing`` and ``feed``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from dynamo.adapters.discovery.etcd import configuration
from dynamo.adapters.discovery.etcd.client import EtcdDiscovery, capability
from dynamo.adapters.discovery.etcd.cluster import Cluster
from dynamo.adapters.discovery.etcd.configuration import EtcdConfig
from dynamo.adapters.discovery.etcd.thread import Tasks
from dynamo.core.config import Settings

__all__ = ["EtcdDiscovery", "capability", "open_etcd"]


def open_etcd(url: str, settings: Settings) -> AbstractAsyncContextManager[EtcdDiscovery]:
    """``etcd://``, with members and options or without. Raises ConfigError; entering also UnavailableError
    and AuthError.
    """
    return _open(configuration.read(url, settings))


@asynccontextmanager
async def _open(config: EtcdConfig) -> AsyncIterator[EtcdDiscovery]:
    tls = configuration.tls_files(config)
    tasks, cluster = Tasks(f"the client of {config.where}"), Cluster(config, tls)
    try:
        await tasks.run(cluster.connect())
        discovery = EtcdDiscovery(tasks, cluster)
        discovery.start()
        try:
            yield discovery
        finally:
            discovery.close()
    finally:
        await tasks.close(cluster.close)  # noqa: ASYNC102 - shielded and bounded inside
