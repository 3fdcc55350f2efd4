"""The TCP plane with no runtime above it: a worker that echoes, a caller, and a call that stays open."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from dynamo.adapters.request_plane.tcp import TcpRequestPlane, open_tcp
from dynamo.core.codec import decode, encode
from dynamo.core.config import Settings
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall, Request, RequestPlane

ENDPOINT = "demo.backend.echo"
INSTANCE = 0x1234
INCARNATION = os.getpid() << 8  # names the Unix socket, which two processes of tests must not share
BOUND_S = 10.0  # of everything that a test waits for


async def echo(call: IncomingCall) -> None:
    """Send back the first item, and each one after it, until the input ends."""
    if call.request.payload is not None:
        call.send(call.request.payload)
    while not call.ended:
        while (payload := call.receive_nowait()) is not None:
            if not call.send(payload):
                await call.writable()
        await call.wait()
    call.end()


class Worker:
    """A serving plane; ``address`` is of the scheme that was asked for."""

    def __init__(self, plane: TcpRequestPlane, server: Any, address: str) -> None:
        self.plane, self.server, self.address = plane, server, address
        host, _, port = address.rpartition(":")
        self.host, self.port = host.partition("://")[2], int(port) if port.isdecimal() else 0


@asynccontextmanager
async def working(scheme: str = "tcp", **settings: Any) -> AsyncIterator[Worker]:
    """A worker that echoes until the block ends."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(call: IncomingCall) -> None:
        task = asyncio.create_task(echo(call))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    options = Settings.from_env({}, **{"tcp_host": "127.0.0.1", **settings})
    async with open_tcp("tcp://", options) as plane:
        async with plane.serve(accept, instance_id=INSTANCE, incarnation=INCARNATION) as server:
            (address,) = (url for url in server.addresses if url.partition("://")[0] == scheme)
            yield Worker(plane, server, address)
    await asyncio.gather(*tasks)


@asynccontextmanager
async def calling(**settings: Any) -> AsyncIterator[TcpRequestPlane]:
    async with open_tcp("tcp://", Settings.from_env({}, **settings)) as plane:
        yield plane


def start(plane: RequestPlane, address: str, item: Any, *, end: bool = True, **identity: Any) -> OutgoingCall:
    request = Request(endpoint=ENDPOINT, request_id="r", payload=encode(item), end=end)
    return plane.call(address, request, **identity)


async def receive(call: OutgoingCall) -> Any:
    """The next item, within the bound. Raises what the call ended with."""
    async with asyncio.timeout(BOUND_S):
        while (payload := call.receive_nowait()) is None:
            if call.ended:
                raise call.error or EOFError("the call has ended")
            await call.wait()
    return decode(payload)


async def ask(plane: RequestPlane, address: str, item: Any = "hello", **identity: Any) -> Any:
    """One call from its start to its end. Raises what it ended with."""
    call = start(plane, address, item, **identity)
    answer = await receive(call)
    async with asyncio.timeout(BOUND_S):
        while not call.ended:
            await call.wait()
    if call.error is not None:
        raise call.error
    return answer


class Neighbour:
    """A call that stays open for the block, on a connection of its own, and must notice nothing else."""

    def __init__(self, plane: TcpRequestPlane, worker: Worker) -> None:
        self._call = start(plane, worker.address, "first", end=False)
        self._count = 0

    async def is_unharmed(self) -> None:
        self._count += 1
        self._call.send(encode(self._count))
        assert await receive(self._call) == self._count

    @classmethod
    @asynccontextmanager
    async def of(cls, worker: Worker, **settings: Any) -> AsyncIterator[Self]:
        async with calling(**settings) as plane:
            neighbour = cls(plane, worker)
            assert await receive(neighbour._call) == "first"
            yield neighbour
            await neighbour.is_unharmed()
            neighbour._call.end()
            try:
                await receive(neighbour._call)
            except EOFError:
                return
            raise AssertionError("an item that nobody sent")
