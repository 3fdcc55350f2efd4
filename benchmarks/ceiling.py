"""The ceiling: length-prefixed MessagePack over asyncio.BufferedProtocol, and nothing that a transport needs.

    python ceiling.py server|client PORT|SOCKET [SERVER_PID]

No errors, windows, deadlines, cancellation, discovery. What a request plane costs is its distance from this.
A frame is a length (u32, little-endian) and [stream, kind, value]; a length with the highest bit set is that
of raw bytes, which belong to the stream of the frame before.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import msgspec
import uvloop
import workload

ITEM, END, RAW = 0, 1, 2
BUFFER_BYTES = 256 * 1024
IS_RAW = 1 << 31
length_at, length_bytes = struct.Struct("<I").unpack_from, struct.Struct("<I").pack
encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
Handler = Callable[[dict[str, Any]], AsyncIterator[Any]]


class Frames(asyncio.BufferedProtocol):
    """Messages both ways; what one loop tick sends is one write."""

    def __init__(self) -> None:
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.start = self.end = 0
        self.raw: memoryview | None = None  # being filled
        self.filled = 0
        self.out: list[bytes] = []
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view[self.end :] if self.raw is None else self.raw[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.raw is not None:
            self.filled += nbytes
            if self.filled == len(self.raw):
                raw, self.raw = self.raw, None
                self.raw_received(raw)
            return
        self.end += nbytes
        start, end, view = self.start, self.end, self.view
        while end - start >= 4:
            (length,) = length_at(view, start)
            if length & IS_RAW:
                raw = memoryview(bytearray(length - IS_RAW))
                start += 4
                here = min(len(raw), end - start)
                raw[:here] = view[start : start + here]
                start += here
                if here < len(raw):
                    self.raw, self.filled = raw, here
                    break
                self.raw_received(raw)
                continue
            if end - start - 4 < length:
                break
            self.received(decode(view[start + 4 : start + 4 + length]))
            start += 4 + length
        if start == end:
            start = end = 0
        elif BUFFER_BYTES - end < BUFFER_BYTES // 4:
            view[: end - start] = bytes(view[start:end])
            start, end = 0, end - start
        self.start, self.end = start, end

    @abstractmethod
    def received(self, message: Any) -> None:
        """Called for each message, in order."""

    def raw_received(self, raw: memoryview) -> None:
        """Called for each run of raw bytes."""
        raise NotImplementedError

    def send(self, message: Any) -> None:
        body = encode(message)
        if not self.out:
            self.loop.call_soon(self.flush)
        self.out += (length_bytes(len(body)), body)

    def send_raw(self, raw: bytes) -> None:
        self.flush()
        self.transport.writelines((length_bytes(len(raw) | IS_RAW), raw))

    def flush(self) -> None:
        if self.out:
            self.transport.write(b"".join(self.out))
            self.out.clear()


class Server(Frames):
    def __init__(self, handlers: dict[str, Handler]) -> None:
        super().__init__()
        self.handlers = handlers
        self.tasks: set[asyncio.Task[None]] = set()

    def received(self, message: Any) -> None:
        task = self.loop.create_task(self.serve(*message))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def serve(self, stream: int, handler: str, request: dict[str, Any]) -> None:
        async for item in self.handlers[handler](request):
            if type(item) is bytes:
                self.send((stream, RAW, None))
                self.send_raw(item)
            else:
                self.send((stream, ITEM, item))
        self.send((stream, END, None))


class Answer:
    """The items of one answer."""

    __slots__ = ("done", "items", "waiter")

    def __init__(self) -> None:
        self.items: deque[Any] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.done = False

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Any:
        if not self.items:
            if not self.done:
                self.waiter = asyncio.get_running_loop().create_future()
                await self.waiter
            if not self.items:
                raise StopAsyncIteration
        return self.items.popleft()


class Caller(Frames):
    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[int, Answer] = {}
        self.last = 0
        self.raw_for = 0

    def received(self, message: Any) -> None:
        number, kind, value = message
        if kind == RAW:
            self.raw_for = number
            return
        answer = self.answers[number]
        if kind == ITEM:
            answer.items.append(value)
        else:
            answer.done = True
            del self.answers[number]
        if answer.waiter is not None and not answer.waiter.done():
            answer.waiter.set_result(None)

    def raw_received(self, raw: memoryview) -> None:
        self.received((self.raw_for, ITEM, raw))

    def ask(self, handler: str, request: Any) -> Answer:
        self.last += 1
        answer = self.answers[self.last] = Answer()
        self.send((self.last, handler, request))
        return answer


class Calls(workload.Calls):
    def __init__(self, caller: Caller, address: str) -> None:
        self.caller, self.address = caller, address

    async def ask(self, request: dict[str, Any]) -> int:
        received = 0
        async for _ in self.caller.ask("generate", request):
            received += 1
        return received

    async def fetch(self, size: int) -> int:
        received = 0
        async for item in self.caller.ask("block", {"bytes": size}):
            received += len(item)
        return received

    async def hold(self) -> workload.Close:
        items = self.caller.ask("linger", None)
        await anext(items)

        async def close() -> None:
            """Nothing here can leave a call."""

        return close

    async def anew(self) -> None:
        caller = await connect(self.address)
        await Calls(caller, self.address).ask({"items": 1, "pause": None})
        caller.transport.close()


async def connect(address: str) -> Caller:
    loop = asyncio.get_running_loop()
    if address.isdecimal():
        _, caller = await loop.create_connection(Caller, "127.0.0.1", int(address))
    else:
        _, caller = await loop.create_unix_connection(Caller, address)
    return caller


async def serve(address: str) -> None:
    handlers: dict[str, Handler] = {
        "generate": workload.generate,
        "block": workload.block,
        "linger": workload.linger,
    }
    loop = asyncio.get_running_loop()

    def make() -> Server:
        return Server(handlers)

    if address.isdecimal():
        server = await loop.create_server(make, "127.0.0.1", int(address))
    else:
        server = await loop.create_unix_server(make, address)
    async with server:
        await server.serve_forever()


async def connect_once_served(address: str) -> Caller:
    while True:
        try:
            return await connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            await asyncio.sleep(0.05)


async def call(address: str, server_pid: str) -> None:
    caller = await asyncio.wait_for(connect_once_served(address), workload.TIMEOUT_S)
    await workload.obey(Calls(caller, address), int(server_pid))


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"server": serve, "client": call}

if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ROLES[role](*rest))
