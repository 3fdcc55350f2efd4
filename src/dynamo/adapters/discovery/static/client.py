"""The Discovery port over a declaration: one snapshot for ever."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dynamo.adapters.discovery.clients import OpenClient
from dynamo.adapters.discovery.static.claims import Claims
from dynamo.adapters.discovery.static.declaration import Declaration, normal
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Capability, Identity, Lease, Liveness, Watch
from dynamo.core.watching import ConflatingWatch

CAPABILITY = Capability(
    scheme="static",
    liveness=Liveness.NONE,
    ttl_s=math.inf,
    dynamic=False,
    cross_process=True,
    cross_host=True,
)


class StaticLease(Lease):
    """Holds nothing; ``put`` checks that what is served is what was declared."""

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration

    async def put(self, instance: Instance) -> None:
        declaration, endpoint_id = self._declaration, instance.endpoint_id
        declared = declaration.of(endpoint_id)
        served = [_spelled(address) for address in instance.addresses]
        ids = {declared[address] for address in served if address in declared}
        if not ids:
            raise ConfigError(
                f"{endpoint_id} is served at {', '.join(served) or 'no address'}, but {declaration.source} "
                f"declares it at {', '.join(declared)}; declare it here too, or choose with DYN_TCP_RPC_PORT"
            )
        if instance.instance_id not in ids:
            raise ConfigError(
                f"{endpoint_id} at {served[0]} is declared as instance {min(ids)} in {declaration.source}, "
                f"not as {instance.instance_id}"
            )

    async def remove(self, endpoint_id: EndpointId) -> None:
        """It stays declared."""

    async def lost(self) -> str:
        reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await reason


def _spelled(address: str) -> str:
    try:
        return normal(address)
    except ConfigError:
        return address


class StaticDiscovery(OpenClient):
    """One runtime's view of what was declared."""

    def __init__(self, declaration: Declaration, settings: Settings) -> None:
        super().__init__(CAPABILITY, "static discovery")
        self._declaration = declaration
        self._claims = Claims(declaration, settings)

    async def identity(self, endpoint_id: EndpointId) -> Identity | None:
        """The next address declared for the endpoint that is ours and free. Raises ConfigError.

        For who serves to ask, and to ask again if it cannot be bound after all.
        """
        self.check_open()
        return await self._claims.next(endpoint_id)

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        self.check_open()
        watch = ConflatingWatch()
        watch.reset(tuple(i for i in self._declaration.instances if scope.covers(i.endpoint_id)))
        yield watch

    @asynccontextmanager
    async def lease(self, *, instance_id: int, incarnation: int) -> AsyncIterator[Lease]:
        self.check_open()
        yield StaticLease(self._declaration)

    async def check(self) -> Health:
        count = len(self._declaration.instances)
        return Health(status=Status.UP, detail=f"{count} instances declared in {self._declaration.source}")

    def close(self) -> None:
        """Leave the addresses that were taken on to others."""
        super().close()
        self._claims.release()
