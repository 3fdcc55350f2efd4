"""What the suite stands on: an adapter's harness, a worker that runs handlers, and items whose loss shows."""

from __future__ import annotations

import asyncio
import random
import secrets
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, TypeAlias

from attrs import define

from dynamo.core.errors import DynamoError
from dynamo.core.ports.request_plane import (
    Channel,
    IncomingCall,
    OutgoingCall,
    Payload,
    Request,
    RequestPlane,
    Server,
)

NEVER_FULL = 1000  # so many items of some hundred bytes are beyond any window of these tests

Handler: TypeAlias = Callable[[IncomingCall], Awaitable[None]]
LIMITS: dict[str, Any] = {"window_bytes": 8192, "max_message_bytes": 256 * 1024}


class Link(Protocol):
    """A way from callers to a server that can be broken."""

    address: str
    """What to dial."""

    @abstractmethod
    def fault(self, kind: str) -> None:
        """Make one of the class's ``faults`` happen now, to all that goes over this link."""


class RequestPlaneHarness(ABC):
    """What an adapter brings to the suite; only ``open_plane`` has no default."""

    slack_bytes: int = 0
    """What a producer may hand over beyond its window and one item, because the adapter or the kernel buffers
    it out of the window's reach; 0 where credit is all there is."""

    @abstractmethod
    def open_plane(self, **settings: Any) -> AbstractAsyncContextManager[RequestPlane]:
        """A plane of its own, for a worker or a caller; ``settings`` are fields of ``Settings`` to honour."""

    def address(self, server: Server) -> str:
        """Which of the server's addresses to dial."""
        return server.addresses[0]

    def link(self, server: Server) -> AbstractAsyncContextManager[Link]:
        """A way to ``server`` for the tests that break it; called only where the class lists ``faults``."""
        raise NotImplementedError(f"{type(self).__name__} knows no faults")


class Worker:
    """Runs a handler in a task for each call; a killed call cancels its task, a return ends the response.

    An assertion that fails in a handler ends the test.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._test = asyncio.current_task()
        self._cancelled_test = False
        self.failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls: list[IncomingCall] = []
        self.cancelled: list[str] = []
        """Request ids of handlers that were cancelled."""
        self.told: list[bool] = []
        """What ``on_cancel`` was called with, over all calls."""

    def accept(self, call: IncomingCall) -> None:
        self.calls.append(call)
        task = asyncio.get_running_loop().create_task(self._run(call))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, call.request.request_id))

        def on_cancel(killed: bool) -> None:
            self.told.append(killed)
            if killed:
                task.cancel()

        call.on_cancel = on_cancel
        if call.killed:
            on_cancel(True)

    async def _run(self, call: IncomingCall) -> None:
        try:
            await self._handler(call)
        except DynamoError as error:
            call.fail(error)
        else:
            call.end()

    def _ended(self, task: asyncio.Task[None], request_id: str) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            self.cancelled.append(request_id)
        elif (failure := task.exception()) is not None and self.failure is None:
            self.failure = failure
            if self._test is not None:
                self._cancelled_test = self._test.cancel()

    async def close(self) -> None:
        """Cancel what still runs; raise what a handler failed with, in place of the test's cancellation."""
        test, self._test = self._test, None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.failure is not None:
            if test is not None and self._cancelled_test:
                test.uncancel()
            raise self.failure


@define
class Rig:
    """A server on one plane, a caller on another, and the way between them."""

    plane: RequestPlane
    server: Server
    worker: Worker
    address: str
    instance_id: int
    incarnation: int
    leave: Callable[[], Awaitable[None]]
    """Leave the ``serve`` block now."""
    _count: int = 0

    @property
    def window_bytes(self) -> int:
        return self.plane.capability.window_bytes

    def call(
        self,
        payload: Payload | None = b"\xc0",
        *,
        end: bool = True,
        request_id: str | None = None,
        plane: RequestPlane | None = None,
    ) -> OutgoingCall:
        """Start a call from ``plane``, the caller's by default; its request id is unique by default."""
        self._count += 1
        request = Request(
            endpoint="ns.comp.ep", request_id=request_id or f"r{self._count}", payload=payload, end=end
        )
        return (plane or self.plane).call(self.address, request)


@asynccontextmanager
async def set_up(
    harness: RequestPlaneHarness,
    handler: Handler,
    *,
    caller: Mapping[str, Any] = LIMITS,
    worker: Mapping[str, Any] = LIMITS,
    accept: Callable[[IncomingCall], None] | None = None,
) -> AsyncGenerator[Rig]:
    """Open both planes with these settings and serve ``handler`` (or let ``accept`` answer in its place)."""
    runs = Worker(handler)
    instance_id, incarnation = secrets.randbelow(2**53 - 3) + 2, secrets.randbelow(2**64 - 3) + 2
    async with (
        harness.open_plane(**worker) as serving,
        harness.open_plane(**caller) as calling,
        AsyncExitStack() as server_block,
    ):
        server = await server_block.enter_async_context(
            serving.serve(accept or runs.accept, instance_id=instance_id, incarnation=incarnation)
        )
        try:
            address = harness.address(server)
            yield Rig(calling, server, runs, address, instance_id, incarnation, server_block.aclose)
        finally:
            await runs.close()


def packed(size: int, seed: int = 0) -> bytes:
    """One MessagePack value of exactly ``size`` bytes, the same for the same seed."""
    if size == 1:
        return bytes([seed % 128])
    for code, header in ((b"\xc4", ">B"), (b"\xc5", ">H"), (b"\xc6", ">I")):
        length = size - 1 - struct.calcsize(header)
        if 0 <= length < 256 ** struct.calcsize(header):
            return code + struct.pack(header, length) + random.Random(seed).randbytes(length)
    raise ValueError(f"no MessagePack value has {size} bytes")


def raw(size: int, seed: int = 0) -> memoryview:
    """Raw bytes of this length, in a buffer that its owner could change."""
    return memoryview(bytearray(random.Random(seed).randbytes(size)))


def shown(*payloads: Payload) -> list[str]:
    """What tells one item from another, short enough for an assertion's message."""
    return [
        f"{'raw' if isinstance(payload, memoryview) else 'packed'} {len(payload)} {zlib.crc32(payload):08x}"
        for payload in payloads
    ]


async def put(channel: Channel, payload: Payload, *, end: bool = False) -> None:
    """Send, let others run, and wait until more may be sent."""
    room = channel.send(payload, end=end)
    await asyncio.sleep(0)
    if not room:
        await channel.writable()


def fill(channel: Channel, payload: Payload) -> int:
    """Send copies of it until the window is spent; tells how many."""
    for count in range(1, NEVER_FULL + 1):
        if not channel.send(payload):
            return count
    raise AssertionError(f"{NEVER_FULL} items were accepted and `send` never answered False")


async def take(channel: Channel) -> Payload:
    """Receive one item; the end of the direction is a failure."""
    while (payload := channel.receive_nowait()) is None:
        if channel.ended:
            raise AssertionError(f"an item was expected, but the direction ended: {channel.error!r}")
        await channel.wait()
    return payload


async def take_all(channel: Channel) -> list[Payload]:
    """Receive until the direction ends, for whatever reason."""
    items: list[Payload] = []
    while not channel.ended:
        if (payload := channel.receive_nowait()) is None:
            await channel.wait()
        else:
            items.append(payload)
    return items


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what has no event of its own; the test's patience bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


async def forever() -> None:
    """Wait to be cancelled."""
    await asyncio.get_running_loop().create_future()
