"""Connections on their way in: accepted, and the TLS handshake where there is one.

Not ``loop.create_server``: with asyncio a connection in its handshake holds 340 KB (measured on 3.11), 1.7 GB
for 5,000 silent ones. Here one that has said nothing yet holds a socket and a task, and handshakes take
turns.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine

from dynamo.adapters.request_plane.tcp.link import Link

BURST = 32  # connections accepted before anything else gets a turn
HANDSHAKES = 64  # under way at a time
PAUSE_S = 0.1  # before the next try where the process has no descriptors left

_PROACTOR = getattr(asyncio, "ProactorEventLoop", ())  # of Windows: tells no one that a socket is readable


class Arrivals:
    """What one server accepts. A link that is aborted before it has a transport ends its arrival."""

    def __init__(self, arrival_s: float) -> None:
        """``arrival_s`` bounds the time from the accept to the end of the handshake."""
        self._arrival_s = arrival_s
        self._loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(HANDSHAKES)
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(
        self, listener: socket.socket, make_link: Callable[[], Link], context: ssl.SSLContext | None = None
    ) -> None:
        """Accept from ``listener`` until ``aclose``; each connection gets a link."""
        self._start(self._accept(listener, make_link, context))

    async def aclose(self) -> None:
        """Stop accepting, and close what has not finished its handshake."""
        while tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(
        self, listener: socket.socket, make_link: Callable[[], Link], context: ssl.SSLContext | None
    ) -> None:
        while True:
            try:
                if isinstance(self._loop, _PROACTOR):
                    accepted = [(await self._loop.sock_accept(listener))[0]]
                else:
                    await self._readable(listener)
                    accepted = _accept_some(listener)
            except OSError:  # no descriptors left
                await asyncio.sleep(PAUSE_S)
                continue
            for connection in accepted:
                link = make_link()
                if link.closed:  # the server is closing
                    connection.close()
                else:
                    arrival = _Arrival(connection, link)
                    link.arrival = self._start(self._arrive(arrival, connection, context))
                    link.arrival.add_done_callback(arrival.over)
            await asyncio.sleep(0)

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


def _accept_some(listener: socket.socket) -> list[socket.socket]:
    accepted: list[socket.socket] = []
    while len(accepted) < BURST:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError):
            break
        except ConnectionError:  # gone before it was accepted
            continue
        except OSError:
            if accepted:
                break
            raise
        connection.setblocking(False)
        accepted.append(connection)
    return accepted
