"""Discovery through one SQLite file, for processes of one host, whose monotonic clock they share."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from urllib.parse import unquote, urlsplit

from dynamo.core.codec import decode_instance, encode_instance
from dynamo.core.config import Settings
from dynamo.core.errors import BadPayloadError, ConflictError, LeaseLostError, UnavailableError
from dynamo.core.health import Health, Status
from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Capability, Discovery, Identity, Lease, Liveness, Watch
from dynamo.core.watching import ConflatingWatch

TTL_S = 1.0
LOOK_S = TTL_S / 10
CAPABILITY = Capability(
    scheme="acme", liveness=Liveness.TTL, ttl_s=TTL_S, dynamic=True, cross_process=True, cross_host=False
)
TABLE = "CREATE TABLE IF NOT EXISTS rows (id, endpoint, owner, content, UNIQUE (id, endpoint))"
BURY = "DELETE FROM rows WHERE id IN (SELECT id FROM rows WHERE endpoint = '' AND content < ?)"
TAKE = "INSERT INTO rows VALUES (?1, '', ?2, ?3) ON CONFLICT DO UPDATE SET content = ?3 WHERE owner = ?2"


class AcmeLease(Lease):
    def __init__(self, store: "AcmeDiscovery", instance_id: int, incarnation: int) -> None:
        self._store, self._mine = store, (instance_id, f"{incarnation:x}")
        self._wanted: dict[str, bytes] = {}
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def put(self, instance: Instance) -> None:
        endpoint, record = str(instance.endpoint_id), encode_instance(instance)
        if self._lost.done():
            raise LeaseLostError(self._lost.result())
        with self._store.database() as db:
            db.execute("REPLACE INTO rows VALUES (?1, ?3, ?2, ?4)", (*self._mine, endpoint, record))
        self._wanted[endpoint] = record

    async def remove(self, endpoint_id: EndpointId) -> None:
        self._wanted.pop(str(endpoint_id), None)
        with self._store.database() as db:
            db.execute("DELETE FROM rows WHERE id = ? AND endpoint = ?", (self._mine[0], str(endpoint_id)))

    async def lost(self) -> str:
        return await asyncio.shield(self._lost)

    def take(self) -> bool:
        self._ends = time.monotonic() + TTL_S
        with self._store.database() as db:
            return db.execute(TAKE, (*self._mine, self._ends)).rowcount > 0

    async def keep(self) -> None:
        renewal = "UPDATE rows SET content = ?3 WHERE id = ?1 AND owner = ?2 AND endpoint = ''"
        while not self._lost.done():
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            try:
                with self._store.database() as db:
                    if not db.execute(renewal, (*self._mine, now + TTL_S)).rowcount:
                        self._lost.set_result("the lease is gone from the database")
                        continue
                    rows = [(*self._mine, *wanted) for wanted in self._wanted.items()]
                    db.executemany("INSERT OR IGNORE INTO rows VALUES (?1, ?3, ?2, ?4)", rows)
                self._ends = now + TTL_S
            except UnavailableError as error:
                if now > self._ends:
                    self._lost.set_result(f"unrenewed for {TTL_S} s: {error}")

    def end(self) -> None:
        with suppress(UnavailableError), self._store.database() as db:
            db.execute("DELETE FROM rows WHERE id = ? AND owner = ?", self._mine)


class AcmeDiscovery(Discovery):
    capability = CAPABILITY

    def __init__(self, path: str) -> None:
        self._path, self._uri = path, f"file:{path}?mode=rw"

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._uri, 2, uri=True, isolation_level=None)) as db:
                db.executescript(f"PRAGMA synchronous = OFF; BEGIN IMMEDIATE; {TABLE}")
                db.execute(BURY, (time.monotonic(),))
                yield db
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise UnavailableError(f"cannot use {self._path}: {error}") from error

    async def identity(self, endpoint_id: EndpointId) -> Identity | None:
        return None

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
        lease = AcmeLease(self, instance_id, incarnation)
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
    with suppress(BadPayloadError):
        if scope.covers((instance := decode_instance(record)).endpoint_id):
            yield instance


@asynccontextmanager
async def open_acme(url: str, settings: Settings) -> AsyncIterator[AcmeDiscovery]:
    path = unquote(urlsplit(url).path)
    open(path, "a").close()  # an empty file is an empty database
    yield AcmeDiscovery(path)
