"""The ceiling: length-prefixed MessagePack over asyncio.BufferedProtocol, and nothing that a transport needs.

No errors, windows, deadlines, cancellation, discovery. What a request plane costs is its distance from this.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

from dynamo.core.codec import decode, encode

ITEM, END = 0, 1
BUFFER_BYTES = 256 * 1024
Handler = Callable[[dict[str, Any]], AsyncIterator[Any]]


class Frames(asyncio.BufferedProtocol):
    """Messages both ways; what one loop tick sends is one write."""

    def __init__(self) -> None:
        self.buffer = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.buffer)
        self.start = self.end = 0
        self.out: list[bytes] = []
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view[self.end :]

    def buffer_updated(self, nbytes: int) -> None:
        self.end += nbytes
        start, end, view = self.start, self.end, self.view
        while end - start >= 4:
            length = int.from_bytes(view[start : start + 4], "little")
            if end - start - 4 < length:
                break
            self.received(decode(bytes(view[start + 4 : start + 4 + length])))
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

    def send(self, message: Any) -> None:
        body = encode(message)
        if not self.out:
            self.loop.call_soon(self.flush)
        self.out += (len(body).to_bytes(4, "little"), body)

    def flush(self) -> None:
        self.transport.write(b"".join(self.out))
        self.out.clear()


class Server(Frames):
    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self.handler = handler
        self.tasks: set[asyncio.Task[None]] = set()

    def received(self, message: Any) -> None:
        task = self.loop.create_task(self.serve(*message))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def serve(self, stream: int, request: dict[str, Any]) -> None:
        async for item in self.handler(request):
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

    def received(self, message: Any) -> None:
        number, kind, value = message
        answer = self.answers[number]
        if kind == ITEM:
            answer.items.append(value)
        else:
            answer.done = True
            del self.answers[number]
        if answer.waiter is not None and not answer.waiter.done():
            answer.waiter.set_result(None)

    def ask(self, request: dict[str, Any]) -> Answer:
        self.last += 1
        answer = self.answers[self.last] = Answer()
        self.send((self.last, request))
        return answer


async def serve(handler: Handler, port: int, stopped: Awaitable[Any]) -> None:
    """Serve on loopback until ``stopped``."""
    async with await asyncio.get_running_loop().create_server(lambda: Server(handler), "127.0.0.1", port):
        await stopped


async def connect(port: int) -> Caller:
    _, caller = await asyncio.get_running_loop().create_connection(Caller, "127.0.0.1", port)
    return caller
