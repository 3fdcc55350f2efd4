"""The sending half of a call: items are framed and wait here until the connection takes them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2.framing import END_MESSAGE, LAST, PREFIX_BYTES, RAW, pack_prefix
from dynamo.core.errors import DynamoError
from dynamo.core.ports.request_plane import Payload
from dynamo.core.wire.sending import too_large

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection

JOIN_BYTES = 1024  # an item up to this is cheaper copied behind its prefix than kept beside it

MIN_BACKLOG_BYTES = 64 * 1024  # small windows would else cost a turn of the loop each time


class Sending:
    """``credit`` is what HTTP/2's window of the stream lets through, less what is queued here: it is negative
    while something waits.
    """

    connection: Http2Connection

    def __init__(self, max_send: float, backlog: int) -> None:
        """``backlog``: so much is kept here at most, however much the peer lets through."""
        self.max_send = max_send
        self._backlog = max(backlog, MIN_BACKLOG_BYTES)
        self.queue: deque[Payload] = deque()  # framed
        self.queued = 0  # bytes of it
        self.offset = 0  # of the first of them
        self.credit = 0
        self.out_done = False  # nothing more is queued
        self.busy = False  # the connection knows that there may be something to send
        self._writable: asyncio.Future[None] | None = None

    def send(self, payload: Payload, *, end: bool = False) -> bool:
        size = len(payload) if type(payload) is bytes else memoryview(payload).nbytes
        if size > self.max_send:
            raise too_large(size, int(self.max_send))
        if self.out_done:
            return True
        if end:
            self.out_done = True
            try:
                self.put(payload, size, LAST if self.connection.dialer else 0)
            except DynamoError:  # nothing was queued, and the call still needs an end
                self.out_done = False
                raise
            self.connection.complete()
            return True
        self.put(payload, size, 0)
        return self.credit > 0 and self.queued < self._backlog

    def put(self, payload: Payload, size: int, flags: int) -> None:
        """Queue an item of so many bytes."""
        queue = self.queue
        if type(payload) is not bytes:
            flags |= RAW
            payload = memoryview(payload).cast("B") if size else b""
        if size <= JOIN_BYTES:
            queue.append(pack_prefix(flags, size) + payload)
        else:
            queue.append(pack_prefix(flags, size))
            queue.append(payload)
        size += PREFIX_BYTES
        self.queued += size
        self.credit -= size
        self._wants_to_send(size)

    def _tell(self, message: bytes) -> None:
        self.queue.append(message)
        size = len(message)
        self.queued += size
        self.credit -= size
        self._wants_to_send(size)

    @abstractmethod
    def _wants_to_send(self, size: int) -> None:
        """So many bytes more, or the end."""

    def end(self) -> None:
        if not self.out_done:
            self.out_done = True
            if self.connection.dialer:
                self._tell(END_MESSAGE)
            else:
                self._wants_to_send(1)
            self.connection.complete()

    async def writable(self) -> None:
        while not (self.out_done or (self.credit > 0 and self.queued < self._backlog)):
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    def credited(self, increment: int) -> None:
        """The peer's window grew, or shrank when its settings came."""
        self.credit += increment
        self.make_room()

    def make_room(self) -> None:
        """Something may be queued again: the peer's window grew, or something was sent."""
        if self._writable is not None and self.credit > 0 and self.queued < self._backlog:
            wake(self._writable)

    def gather(self, room: int) -> list[Payload]:
        """So many bytes of what is queued, at most all of it."""
        parts: list[Payload] = []
        queue = self.queue
        self.queued -= room
        while room:
            part, offset = queue[0], self.offset
            rest = len(part) - offset
            if rest <= room:
                parts.append(part if not offset else memoryview(part)[offset:])
                queue.popleft()
                self.offset = 0
                room -= rest
            else:
                parts.append(memoryview(part)[offset : offset + room])
                self.offset += room
                room = 0
        return parts

    def stop_sending(self) -> None:
        self.out_done = True
        self.queue.clear()
        self.queued = self.offset = 0
        wake(self._writable)


def wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
