"""Calls over a NATS server of one's own, with no runtime above the plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from dynamo.adapters.request_plane.nats import NatsRequestPlane, open_nats
from dynamo.core.config import Settings
from dynamo.core.errors import DynamoError
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall, Request
from nats_server import NatsServer

ITEM = b"\xc0"


def nats(server: NatsServer, **settings: Any) -> Settings:
    return Settings.from_env({}, nats_server=server.url, startup_timeout_s=5.0, **settings)


def answer(call: IncomingCall) -> None:
    if call.request.request_id != "waits":
        call.send(ITEM, end=True)


@asynccontextmanager
async def both(settings: Settings) -> AsyncIterator[tuple[NatsRequestPlane, str]]:
    async with (
        asyncio.timeout(20),
        open_nats("nats://", settings) as worker,
        open_nats("nats://", settings) as caller,
        worker.serve(answer, instance_id=1, incarnation=1) as served,
    ):
        yield caller, served.addresses[0]


def start(caller: NatsRequestPlane, address: str, request_id: str = "r") -> OutgoingCall:
    return caller.call(address, Request(endpoint="a.b.c", request_id=request_id, payload=ITEM))


async def outcome(call: OutgoingCall) -> DynamoError | None:
    while not call.ended:
        if call.receive_nowait() is None:
            await call.wait()
    return call.error


async def works(settings: Settings) -> bool:
    async with both(settings) as (caller, address):
        return await outcome(start(caller, address)) is None


@contextmanager
def configured(folder: Path, text: str) -> Iterator[NatsServer]:
    path = folder / "nats.conf"
    path.write_text(text)
    with NatsServer("--config", str(path)) as server:
        yield server
