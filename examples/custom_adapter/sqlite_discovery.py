"""Discovery through one SQLite file, for the processes of one host: ``sqlite:///var/run/deployment.db``.

Each lease and each registration is a row; everybody looks at the table every ``LOOK_S``. Leases end by the
host's monotonic clock, which its processes share. An engine that blocks its loop for longer than ``TTL_S``
is taken for dead: the adapters that come with the library renew from a thread.

=============  ================================================================
capability
=============  ================================================================
liveness       ttl: rows of a lease that is not renewed are removed by whoever looks next
cross_process  yes
cross_host     no: file locks and the clock belong to one host
=============  ================================================================

Errors: whatever SQLite raises is an UnavailableError; ConfigError for a URL without a path.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, suppress
from urllib.parse import unquote, urlsplit

from dynamo.core.codec import decode_instance, encode_instance
from dynamo.core.config import Settings
from dynamo.core.errors import BadPayloadError, ConfigError, ConflictError, LeaseLostError, UnavailableError
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Capability, Discovery, Identity, Lease, Liveness, Watch
from dynamo.core.registry import url_options
from dynamo.core.watching import ConflatingWatch

TTL_S = 1.0
LOOK_S = TTL_S / 10
CAPABILITY = Capability(
    scheme="sqlite", liveness=Liveness.TTL, ttl_s=TTL_S, dynamic=True, cross_process=True, cross_host=False
)

# A lease is a row without an endpoint, whose content is the time of its end; a registration's is its record.
TABLE = "CREATE TABLE IF NOT EXISTS rows (id, endpoint, owner, content, UNIQUE (id, endpoint))"
BURY = "DELETE FROM rows WHERE id IN (SELECT id FROM rows WHERE endpoint = '' AND content < ?)"
TAKE = "INSERT INTO rows VALUES (?1, '', ?2, ?3) ON CONFLICT DO UPDATE SET content = ?3 WHERE owner = ?2"
RENEW = "UPDATE rows SET content = ?3 WHERE id = ?1 AND owner = ?2 AND endpoint = ''"
PUT = "REPLACE INTO rows VALUES (?1, ?3, ?2, ?4)"
PUT_BACK = "INSERT OR IGNORE INTO rows VALUES (?1, ?3, ?2, ?4)"


class SqliteLease(Lease):
    """The owner of its rows is the incarnation: a restarted process under an old id is somebody else."""

    def __init__(self, store: "SqliteDiscovery", instance_id: int, incarnation: int) -> None:
        self._store, self._mine = store, (instance_id, f"{incarnation:x}")
        self._wanted: dict[str, bytes] = {}
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ends = 0.0

    async def put(self, instance: Instance) -> None:
        endpoint, record = str(instance.endpoint_id), encode_instance(instance)
        if self._lost.done():
            raise LeaseLostError(self._lost.result())
        with self._store.database() as db:
            db.execute(PUT, (*self._mine, endpoint, record))
        self._wanted[endpoint] = record

    async def remove(self, endpoint_id: EndpointId) -> None:
        self._wanted.pop(str(endpoint_id), None)
        with self._store.database() as db:
            db.execute("DELETE FROM rows WHERE id = ? AND endpoint = ?", (self._mine[0], str(endpoint_id)))

    async def lost(self) -> str:
        return await asyncio.shield(self._lost)

    def take(self) -> bool:
        """False while another owner holds our id."""
        self._ends = time.monotonic() + TTL_S
        with self._store.database() as db:
            return db.execute(TAKE, (*self._mine, self._ends)).rowcount > 0

    async def keep(self) -> None:
        """Renew, and put back what somebody deleted by hand, until the lease is lost."""
        while not self._lost.done():
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            try:
                with self._store.database() as db:
                    if not db.execute(RENEW, (*self._mine, now + TTL_S)).rowcount:
                        self._lost.set_result("the lease is gone from the database")
                        continue
                    db.executemany(PUT_BACK, [(*self._mine, *wanted) for wanted in self._wanted.items()])
                self._ends = now + TTL_S
            except UnavailableError as error:  # our own clock says when that has lasted too long
                if now > self._ends:
                    self._lost.set_result(f"unrenewed for {TTL_S} s: {error}")

    def end(self) -> None:
        with suppress(UnavailableError), self._store.database() as db:
            db.execute("DELETE FROM rows WHERE id = ? AND owner = ?", self._mine)


class SqliteDiscovery(Discovery):
    def __init__(self, path: str) -> None:
        self._path, self._uri = path, f"file:{path}?mode=rw"

    @property
    def capability(self) -> Capability:
        return CAPABILITY

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """One transaction, in which the leases that ended are gone."""
        try:
            with closing(sqlite3.connect(self._uri, 2, uri=True, isolation_level=None)) as db:
                db.executescript(f"PRAGMA synchronous = OFF; BEGIN IMMEDIATE; {TABLE}")
                db.execute(BURY, (time.monotonic(),))
                yield db
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise UnavailableError(f"cannot use {self._path}: {error}") from error

    async def identity(self, endpoint_id: EndpointId) -> Identity | None:
        return None  # the runtime draws a random id

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        watch = ConflatingWatch()
        looking = asyncio.create_task(self._look(watch, scope))
        try:
            yield watch
        finally:
            looking.cancel()
            await asyncio.wait({looking})

    async def _look(self, watch: ConflatingWatch, scope: Scope) -> None:
        while True:
            try:
                with self.database() as db:
                    rows = db.execute("SELECT content FROM rows WHERE endpoint != ''").fetchall()
                watch.replace(tuple(one for (row,) in rows for one in _read(row, scope)))
            except UnavailableError as error:
                watch.stale(str(error))
            await asyncio.sleep(LOOK_S)

    @asynccontextmanager
    async def lease(self, *, instance_id: int, incarnation: int) -> AsyncIterator[Lease]:
        lease = SqliteLease(self, instance_id, incarnation)
        gives_up = time.monotonic() + TTL_S
        while not lease.take():
            if time.monotonic() > gives_up:
                raise ConflictError(f"{instance_id:x} is held by another process in {self._path}")
            await asyncio.sleep(LOOK_S)
        keeping = asyncio.create_task(lease.keep())
        try:
            yield lease
        finally:
            lease.end()
            keeping.cancel()
            await asyncio.wait({keeping})

    async def check(self) -> Health:
        with suppress(UnavailableError), self.database():
            return Health(status=Status.UP)
        return Health(status=Status.DOWN, detail=f"cannot use {self._path}")


def _read(record: bytes, scope: Scope) -> Iterator[Instance]:
    with suppress(BadPayloadError):  # another version's; the others are still seen
        if scope.covers((instance := decode_instance(record)).endpoint_id):
            yield instance


def open_sqlite(url: str, settings: Settings) -> AbstractAsyncContextManager[SqliteDiscovery]:
    """No I/O before the block is entered. Raises ConfigError."""
    path = unquote(urlsplit(url).path)
    url_options(url, ())
    if not path.strip("/"):
        raise ConfigError(f"{url}: expected the path of a file, such as sqlite:///var/run/deployment.db")
    return _opened(path)


@asynccontextmanager
async def _opened(path: str) -> AsyncIterator[SqliteDiscovery]:
    _create(path)
    yield SqliteDiscovery(path)


def _create(path: str) -> None:
    """An empty file is an empty database. Nothing later makes one: a file that is gone is an outage."""
    try:
        open(path, "a").close()
    except OSError as error:
        raise UnavailableError(f"cannot use {path}: {error.strerror}") from error
