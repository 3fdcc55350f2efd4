"""The whole contract of the port, in one class: what is ours is the power over the backend."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import sqlite_discovery

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.model import EndpointId, Instance
from dynamo.core.ports.discovery import Discovery
from dynamo.testing.discovery import DiscoveryContract, DiscoveryHarness, Power
from dynamo.testing.discovery_owner import OwnerProcess


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class SqliteHarness(DiscoveryHarness):
    def __init__(self, folder: Path) -> None:
        self.path, self.url = folder / "discovery.db", f"sqlite://{folder}/discovery.db"
        self.owners: list[OwnerProcess] = []

    def client(self) -> AbstractAsyncContextManager[Discovery]:
        return registry.discovery.open(self.url, Settings())

    async def leftovers(self) -> list[str]:
        return [str(row) for row in self._sql("SELECT * FROM rows")]

    async def outage(self, on: bool) -> None:
        here, away = self.path, self.path.with_name("away")
        here.rename(away) if on else away.rename(here)

    async def expire(self) -> None:
        self._sql("DELETE FROM rows")

    async def delete(self, instance: Instance) -> None:
        key = instance.instance_id, str(instance.endpoint_id)
        self._sql("DELETE FROM rows WHERE id = ? AND endpoint = ?", *key)

    async def corrupt(self, endpoint_id: EndpointId) -> None:
        self._sql("INSERT INTO rows VALUES (1000, '', 'bad', 1e18)")
        self._sql("INSERT INTO rows VALUES (1000, ?, 'bad', '{')", str(endpoint_id))

    async def owner(self, instance: Instance) -> Callable[[], Awaitable[None]]:
        self.owners.append(await OwnerProcess.start(self.url, instance))
        return self.owners[-1].kill

    def _sql(self, statement: str, *values: object) -> list[object]:
        db = sqlite3.connect(self.path, 2, isolation_level=None)
        try:
            return db.execute(statement, values).fetchall()
        finally:
            db.close()


class TestSqliteDiscovery(DiscoveryContract):
    capability = sqlite_discovery.CAPABILITY
    powers = ~Power.NONE

    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[SqliteHarness]:
        harness = SqliteHarness(tmp_path)
        yield harness
        for owner in harness.owners:
            await owner.kill()
