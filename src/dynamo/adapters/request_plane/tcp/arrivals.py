"""Connections on their way in: accepted, and the TLS handshake where there is one.

Not ``loop.create_server``: with asyncio a connection in its handshake holds 340 KB (measured on 3.11), 1.7 GB
for 5,000 silent ones. Here one that has said nothing yet holds a socket and a task, and handshakes take
turns.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress

from attrs import frozen

from dynamo.adapters.request_plane.tcp.descriptors import way_out
from dynamo.adapters.request_plane.tcp.link import Link

logger = logging.getLogger("dynamo.runtime")

QUEUE = 1024  # connections that the system holds for us to accept
BURST = 32  # connections accepted before anything else gets a turn
HANDSHAKES = 64  # under way at a time
PAUSE_S = 0.1  # before the next try where the process has no descriptors left

_PROACTOR = getattr(asyncio, "ProactorEventLoop", ())  # of Windows: tells no one that a socket is readable


@frozen(eq=False)
class Door:
    """A listening socket, what makes the link of a connection that comes in by it, and its TLS."""

    listener: socket.socket
    make_link: Callable[[], Link]
    context: ssl.SSLContext | None = None


class Arrivals:
    """What one server accepts. A link that is aborted before it has a transport ends its arrival."""

    def __init__(self, arrival_s: float) -> None:
        """``arrival_s`` bounds the time from the accept to the end of the handshake."""
        self._arrival_s = arrival_s
        self._loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(HANDSHAKES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._doors: list[Door] = []
        self._said = False  # why nobody is accepted, this time

    def accept(self, door: Door) -> None:
        """Accept there until ``finish``."""
        self._doors.append(door)
        if isinstance(self._loop, _PROACTOR):
            self._start(self._accept_one_by_one(door))
        else:
            self._watch(door)

    def finish(self) -> None:
        """Accept who has connected already, and close the listeners: the system turns away who comes now.

        Whom it has connected and we have not accepted would be reset, when the call may have been sent.
        """
        for door in self._doors:
            if not isinstance(self._loop, _PROACTOR):
                self._loop.remove_reader(door.listener)
            with suppress(OSError):
                for connection in _waiting(door.listener, QUEUE):
                    self._take(connection, door)
            door.listener.close()
        self._doors.clear()

    async def aclose(self) -> None:
        """Stop accepting, and close what has not finished its handshake."""
        self.finish()
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _watch(self, door: Door) -> None:
        if door in self._doors:
            self._loop.add_reader(door.listener, self._accept_some, door)

    def _accept_some(self, door: Door) -> None:
        try:
            for connection in _waiting(door.listener, BURST):
                self._take(connection, door)
            self._said = False
        except OSError as error:
            self._say(error, door)
            self._loop.remove_reader(door.listener)
            self._loop.call_later(PAUSE_S, self._watch, door)

    async def _accept_one_by_one(self, door: Door) -> None:
        while door in self._doors:
            try:
                connection, _ = await self._loop.sock_accept(door.listener)
            except OSError as error:
                self._say(error, door)
                await asyncio.sleep(PAUSE_S)
            else:
                self._said = False
                self._take(connection, door)

    def _say(self, error: OSError, door: Door) -> None:
        """Most likely no descriptors are left. Each try would say the same."""
        if not self._said and door.listener.fileno() >= 0:
            self._said = True
            name = door.listener.getsockname()
            where = name if isinstance(name, str) else ":".join(map(str, name[:2]))
            logger.warning("who connects to %s has to wait: %s%s", where, error, way_out(error))

    def _take(self, connection: socket.socket, door: Door) -> None:
        link = door.make_link()
        arrival = _Arrival(connection, link)
        link.arrival = self._start(self._arrive(arrival, connection, door.context))
        link.arrival.add_done_callback(arrival.over)

    async def _arrive(
        self, arrival: _Arrival, connection: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        loop = self._loop
        try:
            if context is None:
                await loop.connect_accepted_socket(arrival.protocol, connection)
                return
            async with asyncio.timeout(self._arrival_s):
                if not isinstance(loop, _PROACTOR):
                    await self._readable(connection)
                    if not connection.recv(1, socket.MSG_PEEK):
                        return
                async with self._turns:
                    await loop.connect_accepted_socket(
                        arrival.protocol, connection, ssl=context, ssl_handshake_timeout=self._arrival_s
                    )
        except OSError:  # gone, not TLS, without a certificate that we trust, or too late
            pass
        except asyncio.CancelledError:
            arrival.link.abort()  # uvloop closes the transport now, without a word to its protocol
            raise

    async def _readable(self, connection: socket.socket) -> None:
        readable = self._loop.create_future()
        self._loop.add_reader(connection, _settle, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(connection)


class _Arrival:
    """Sees to it that the socket and the link end with the arrival, even if that was never begun."""

    __slots__ = ("_connection", "link")

    def __init__(self, connection: socket.socket, link: Link) -> None:
        self._connection: socket.socket | None = connection
        self.link = link

    def protocol(self) -> Link:
        self._connection = None  # it is the transport's from now on
        return self.link

    def over(self, _: asyncio.Task[None]) -> None:
        self.link.arrival = None
        if self._connection is not None:
            self._connection.close()
        if not self.link.connected:
            self.link.abort()


def _settle(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)


def _waiting(listener: socket.socket, most: int) -> Iterator[socket.socket]:
    """What waits to be accepted. Raises OSError where there are no descriptors left."""
    for _ in range(most):
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:  # gone before it was accepted
            continue
        connection.setblocking(False)
        yield connection
