"""A worker over HTTP/2 with no runtime above it: what it does with a call is in the name that is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from dynamo.adapters.request_plane.http2 import Http2RequestPlane, open_http2
from dynamo.core.config import Settings
from dynamo.core.errors import (
    DeadlineError,
    DrainingError,
    DynamoError,
    OverloadedError,
    RemoteError,
    UnavailableError,
    UnknownEndpointError,
)
from dynamo.core.ports.request_plane import IncomingCall, Server

PATH = "/demo/HelloService/greet"
BOUND_S = 20.0  # of everything that a test waits for
ERRORS: dict[str, tuple[DynamoError, int]] = {
    "unknown": (UnknownEndpointError("nobody serves it"), 404),
    "overloaded": (OverloadedError("full"), 429),
    "draining": (DrainingError("leaving"), 503),
    "unavailable": (UnavailableError("its backend is away"), 503),
    "late": (DeadlineError("over"), 504),
    "broken": (RemoteError("no 'x'", type_name="KeyError"), 500),
}


def greetings(name: str) -> list[dict[str, Any]]:
    return [{"text": f"hello {name}", "number": number} for number in range(3)]


class Worker:
    """``go_on`` lets the call named "waits" have its second and third greeting; ``abort`` cuts all links."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.address = ""
        self.calls: list[IncomingCall] = []
        self.server: Server
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, call: IncomingCall) -> None:
        self.calls.append(call)
        task = asyncio.create_task(self._answer(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: IncomingCall) -> None:
        name = msgpack.unpackb(bytes(call.request.payload or b"\x80")).get("name")
        if name in ERRORS:
            call.fail(ERRORS[name][0])
            return
        for greeting in greetings(name):
            if greeting["number"] == 1 and name == "waits":
                await self.go_on.wait()
            if not call.send(msgpack.packb(greeting)):
                await call.writable()
        if name == "half":
            call.fail(RemoteError("gave up", type_name="ValueError"))
        call.end()

    async def close(self) -> None:
        self.go_on.set()
        await asyncio.gather(*self._tasks)


@asynccontextmanager
async def working(
    scheme: str = "http", accept: Callable[[IncomingCall], None] | None = None, **settings: Any
) -> AsyncIterator[Worker]:
    """It serves until the block ends."""
    worker = Worker()
    async with calling(tcp_host="127.0.0.1", **settings) as plane:
        async with plane.serve(accept or worker.accept, instance_id=1, incarnation=1) as server:
            worker.server = server
            (worker.address,) = (url for url in server.addresses if url.partition("://")[0] == scheme)
            try:
                yield worker
            finally:
                await worker.close()


@asynccontextmanager
async def calling(**settings: Any) -> AsyncIterator[Http2RequestPlane]:
    async with open_http2("http2://", Settings(**settings)) as plane:
        yield plane
