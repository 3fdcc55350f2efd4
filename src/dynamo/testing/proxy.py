"""A TCP proxy that fails on command, between a client and a server under test.

Faults are switched while connections run, and hold for open and new ones alike. Buffers are bounded: a slow
or stalled link makes the sender wait, as a real one does.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections import deque
from collections.abc import Coroutine
from typing import Any, Self, cast

CONNECT_TIMEOUT_S = 5.0
SLICE_S = 0.01  # a throttled link sends what it may in this time, then waits
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultProxy:
    """Forwards ``proxy.host:proxy.port`` to ``target_host:target_port`` while the block runs.

    Leaving the block resets what is still open and returns when every socket is closed. The methods that
    switch faults return at once and may be combined; ``heal`` ends them all.
    Needs an event loop with ``add_reader``, which all have but Windows' default one.
    """

    def __init__(self, target_host: str, target_port: int, *, buffer_bytes: int = 256 * 1024) -> None:
        """``buffer_bytes`` is how much one direction of one connection holds before its sender must wait."""
        self._target = (target_host, target_port)
        self._listener: socket.socket | None = None
        self._reserved: socket.socket | None = None
        self._links: set[_Link] = set()
        self._accepting: set[asyncio.Task[None]] = set()
        self._dials: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self.buffer_bytes = buffer_bytes
        self.host, self.port = "127.0.0.1", 0
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.stalled = False
        self.swallowing = False
        self.connections = 0
        """Accepted since the start."""
        self.bytes_to_target = 0
        """Delivered, not merely received."""
        self.bytes_from_target = 0

    @property
    def address(self) -> str:
        """``host:port`` to dial instead of the target."""
        return f"{self.host}:{self.port}"

    @property
    def open_connections(self) -> int:
        return len(self._links)

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.refuse()
        await asyncio.gather(*self._accepting, return_exceptions=True)  # cancelled, they would leave a socket
        for task in self._dials:
            task.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        self.reset()
        while self._links:
            self._closed.clear()
            await self._closed.wait()
        if self._reserved is not None:
            self._reserved.close()

    def delay(self, seconds: float) -> None:
        """Deliver every byte this much later, each way; order and throughput stay."""
        self.delay_s = seconds
        self._pump_all()

    def throttle(self, bytes_per_s: float) -> None:
        """Deliver at most so many bytes a second, per connection and direction."""
        self.bytes_per_s = bytes_per_s
        self._pump_all()

    def stall(self) -> None:
        """Deliver nothing, lose nothing, as a partition that TCP outlives; senders wait at full buffers."""
        self.stalled = True

    def black_hole(self) -> None:
        """Accept, read and drop everything, even the end of a connection; ``heal`` resets what lost bytes."""
        self.swallowing = True
        for link in self._links:
            if link.client.holds or link.target.holds:
                link.lose()

    def refuse(self) -> None:
        """Stop listening: new connections are refused, open ones go on. The port stays ours."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    def cut(self) -> None:
        """Close every open connection on both sides, without delivering what was on its way."""
        for link in list(self._links):
            link.close()

    def reset(self) -> None:
        """Reset (RST) every open connection on both sides."""
        for link in list(self._links):
            link.close(reset=True)

    def heal(self) -> None:
        """End every fault; connections that lost bytes are reset, stalled ones deliver what they hold."""
        self.delay_s, self.bytes_per_s = 0.0, None
        self.stalled = self.swallowing = False
        if self._listener is None:
            self._listen()
        self._pump_all()

    def _pump_all(self) -> None:
        for link in list(self._links):
            link.pump()

    def _listen(self) -> None:
        if sys.platform == "linux" and self._reserved is None:
            # Bound but not listening, it keeps the port from others while connections are refused.
            self._reserved = _bound(self.host, self.port)
            self.port = self._reserved.getsockname()[1]
        self._listener = _bound(self.host, self.port)
        self._listener.listen(128)  # from here on the kernel takes connections, before the loop serves them
        self.port = self._listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        # Not by asyncio's server: one that is closed in the tick of an accept leaves that socket open.
        try:
            accepted, _ = listener.accept()
        except OSError:  # gone before we came
            return
        accepted.setblocking(False)
        self._spawn(self._take(accepted), self._accepting)

    async def _take(self, accepted: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: _Link(self).client, accepted)

    def _spawn(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        among.add(task)
        task.add_done_callback(among.discard)

    def _opened(self, link: _Link) -> None:
        self.connections += 1
        self._links.add(link)
        if self.swallowing:
            link.lose()
        else:
            self._spawn(link.dial(*self._target), self._dials)

    def _gone(self, link: _Link) -> None:
        self._links.discard(link)
        self._closed.set()


class _Link:
    """One proxied connection: the accepted socket and the one dialed for it."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.client, self.target = _End(self), _End(self)
        self.client.peer, self.target.peer = self.target, self.client
        self._dialing = False
        self._closed = self._reset = False
        self._doomed = False

    async def dial(self, host: str, port: int) -> None:
        self._dialing = True
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(lambda: self.target, host, port)
        except (OSError, TimeoutError):
            self.close(reset=True)
        finally:
            self._dialing = False
            self.ended()

    def lose(self) -> None:
        """Bytes of it are lost: nothing true can follow, so it is reset once the fault is over."""
        self._doomed = True
        for end in (self.client, self.target):
            end.forget()

    def delivers(self) -> bool:
        """Whether bytes may pass at this moment."""
        if self._closed or self.proxy.stalled or self.proxy.swallowing:
            return False
        if self._doomed:
            self.close(reset=True)
            return False
        return True

    def pump(self) -> None:
        self.client.pump()
        self.target.pump()

    def broke(self) -> None:
        """One side reset its socket: the other side learns it, as soon as the link delivers at all."""
        self._doomed = True
        self.delivers()

    def close(self, *, reset: bool = False) -> None:
        self._closed, self._reset = True, reset
        for end in (self.client, self.target):
            end.close(reset=reset)

    def opened(self, end: _End) -> None:
        if end is self.client:
            self.proxy._opened(self)
        if self._closed:  # while the target was being dialed
            end.close(reset=self._reset)
        else:
            self.pump()

    def finished(self) -> None:
        """Both directions have ended: nothing is left to forward."""
        if self.client.end_delivered and self.target.end_delivered:
            self.close()

    def ended(self) -> None:
        if self.client.transport is None and self.target.transport is None and not self._dialing:
            self.proxy._gone(self)


class _End(asyncio.Protocol):
    """One socket, and the bytes that came from it and that its peer has not been given."""

    peer: _End

    def __init__(self, link: _Link) -> None:
        self._link, self._proxy = link, link.proxy
        self._loop = asyncio.get_running_loop()
        self._held: deque[tuple[float, bytes]] = deque()  # when it came, what; empty is the end of the stream
        self._held_bytes = 0
        self._free_at = 0.0  # when a throttled link may send again
        self._timer: asyncio.TimerHandle | None = None
        self._reading = self._writable = True
        self.transport: asyncio.Transport | None = None
        self.end_delivered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._link.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._proxy.swallowing:
            self._link.lose()
            return
        self._held.append((self._loop.time(), data))
        self._held_bytes += len(data)
        if self._held_bytes >= self._proxy.buffer_bytes and self._reading and self.transport is not None:
            self._reading = False
            self.transport.pause_reading()
        self.pump()

    def eof_received(self) -> bool:
        if self._proxy.swallowing:
            self._link.lose()
        else:
            self._held.append((self._loop.time(), b""))
            self.pump()
        return True  # the other direction goes on

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self.peer.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.forget()
        if exc is not None:
            self._link.broke()
        self._link.ended()

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def forget(self) -> None:
        """Drop what was not delivered."""
        self._held.clear()
        self._held_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
        self._read_on()

    def _read_on(self) -> None:
        if not self._reading and self._held_bytes <= self._proxy.buffer_bytes // 2:
            self._reading = True
            if self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    def close(self, *, reset: bool) -> None:
        self.forget()
        if self.transport is None:
            return
        if reset and not self.transport.is_closing():
            accepted: socket.socket = self.transport.get_extra_info("socket")
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def pump(self) -> None:
        """Give the peer what is due, and come back when the next byte is."""
        if self._timer is not None:
            self._timer.cancel()
        sink = self.peer.transport
        if not self._link.delivers() or sink is None or sink.is_closing():
            return
        rate, now = self._proxy.bytes_per_s, self._loop.time()
        while self._held and self.peer._writable:
            came_at, data = self._held[0]
            due = came_at + self._proxy.delay_s
            if rate is not None:
                due = max(due, self._free_at)
            if due > now:
                self._timer = self._loop.call_at(due, self.pump)
                break
            self._held.popleft()
            if not data:
                try:
                    sink.write_eof()
                except OSError:  # that side reset its socket, and its loop has yet to learn it
                    self._link.broke()
                    return
                self.end_delivered = True
                self._link.finished()
                return
            if rate is not None:
                allowed = max(1, int(rate * SLICE_S))
                if len(data) > allowed:
                    self._held.appendleft((came_at, data[allowed:]))
                    data = data[:allowed]
                self._free_at = max(self._free_at, now) + len(data) / rate
            self._held_bytes -= len(data)
            if self is self._link.client:
                self._proxy.bytes_to_target += len(data)
            else:
                self._proxy.bytes_from_target += len(data)
            sink.write(data)
        self._read_on()


def _bound(host: str, port: int) -> socket.socket:
    # asyncio sets TCP_NODELAY only where the protocol is named, and a proxy must not add 40 ms of its own.
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setblocking(False)
        opened.bind((host, port))
    except OSError:
        opened.close()
        raise
    return opened
