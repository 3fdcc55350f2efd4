"""Power over a real etcd server, for the contract on ``etcd``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from dynamo.adapters.discovery.etcd import EtcdDiscovery, open_etcd
from dynamo.adapters.discovery.etcd.keys import key_of
from dynamo.core.config import Settings
from dynamo.core.model import EndpointId, Instance
from dynamo.testing.discovery import DiscoveryHarness
from dynamo.testing.discovery_owner import OwnerProcess
from dynamo.testing.proxy import FaultProxy
from etcd_server import EtcdServer, shared

TTL_S = 1
SETTINGS = Settings.from_env({}, etcd_lease_ttl=TTL_S, connect_timeout_s=1.0)


class EtcdHarness(DiscoveryHarness):
    """Clients come through a proxy, which an outage closes; the harness itself goes there directly."""

    def __init__(self, server: EtcdServer, proxy: FaultProxy) -> None:
        self.server, self.proxy = server, proxy
        self.owners: list[OwnerProcess] = []

    def client(self) -> AbstractAsyncContextManager[EtcdDiscovery]:
        return open_etcd(f"etcd://{self.proxy.address}", SETTINGS)

    async def leftovers(self) -> list[str]:
        keys = [kv.key.decode() for kv in self.server.range().kvs]
        return keys + [f"lease {lease:x}" for lease in self.server.leases()]

    async def outage(self, on: bool) -> None:
        if on:
            self.proxy.refuse()
            self.proxy.reset()
        else:
            self.proxy.heal()

    async def expire(self) -> None:
        self.server.revoke_all()

    async def delete(self, instance: Instance) -> None:
        self.server.delete(key_of(instance.endpoint_id, instance.instance_id))

    async def corrupt(self, endpoint_id: EndpointId) -> None:
        prefix = key_of(endpoint_id, 0).decode()[:-1]
        self.server.put(f"{prefix}bad", b'{"namespace": ')
        self.server.put(f"{prefix}bad2", b"\xff\xfe")
        self.server.put(f"{prefix}not-hex", b"{}")
        self.server.put("/services/notes", b"not ours")

    async def owner(self, instance: Instance) -> Callable[[], Awaitable[None]]:
        url = f"etcd://{self.server.hostport}?ttl_s={TTL_S}"
        owner = await OwnerProcess.start(url, instance)
        self.owners.append(owner)
        return owner.kill


@asynccontextmanager
async def etcd_harness(server: EtcdServer | None = None) -> AsyncIterator[EtcdHarness]:
    """On ``server``, or on the one that all tests of this process share."""
    server = server or shared()
    server.empty()
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        harness = EtcdHarness(server, proxy)
        try:
            yield harness
        finally:
            for owner in harness.owners:
                await owner.kill()
