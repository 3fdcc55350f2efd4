"""One connection: an asyncio transport that carries what a sans-IO ``wire.Connection`` says."""

from __future__ import annotations

import asyncio
import math
import socket
from asyncio import get_running_loop
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import cast

from dynamo.core.errors import DynamoError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.stream import Stream

# What may wait in the transport: bounds how far one frame delays the next. Without TLS nothing, which makes
# uvloop write at once: it else puts it off to the end of its iteration. With TLS writing would never resume.
WRITE_BUFFER_BYTES = 0
TLS_WRITE_BUFFER_BYTES = 256 * 1024
# What the system may hold of a TCP connection (Linux doubles it). By itself it grows to 4 MiB, which small
# items then wait behind: beside items of 16 MiB on loopback their median delay was 3.3 ms, and is 0.9 ms.
SEND_BUFFER_BYTES = 512 * 1024
TAKE_BYTES = 256 * 1024  # asked of the connection at a time: about one fragment of the largest size
JOIN_BYTES = 16 * 1024  # a part up to this is cheaper copied into a common write than written alone
EARLY_S = 25e-6  # what has waited for so long is worth a write, which takes about half of it
QUIET_S = 100e-6  # without a write
HOLD_S = 25e-6  # after a write the next one may wait for so long, if there is more to come
LATE_S = 0.05  # a timer that fires later than this tells that the loop was blocked
LINGER_S = 1.0  # for the peer to read what a closing side still says, and again until it closes: a reset
# would destroy the reason that was just sent


class Call(Stream):
    """Either end of a call: the wire's stream, with something to await."""

    __slots__ = ()

    async def wait(self) -> None:
        while not self.ready():
            waiter: asyncio.Future[None] = get_running_loop().create_future()
            self.on_readable = partial(_wake, waiter)
            await waiter

    async def writable(self) -> None:
        while not self.can_send:
            waiter: asyncio.Future[None] = get_running_loop().create_future()
            self.on_writable = partial(_wake, waiter)
            await waiter


def _wake(waiter: asyncio.Future[None]) -> None:
    """End a wait; it may have been cancelled in the meantime."""
    if not waiter.done():
        waiter.set_result(None)


class Link(asyncio.BufferedProtocol):
    """Drives one ``Connection`` and owns its transport; writes once per loop tick, and during a long one.

    ``on_closed`` is called once, when nothing of it is left. ``silent_hint`` is for the message where the
    peer closes before it said anything.
    """

    def __init__(
        self,
        connection: Connection,
        peer: str,
        on_closed: Callable[[Link], None] | None = None,
        silent_hint: str = "",
    ) -> None:
        self.connection = connection
        self.peer = peer  # for messages
        self.on_closed = on_closed
        self.closed = False
        self.connected = False  # it has, or had, a transport
        self.arrival: asyncio.Task[None] | None = None  # what will bring it one
        self.open = cast("Callable[[Request], Call]", connection.open)  # Call is its type of streams
        self._silent_hint = silent_hint
        # Asked before each read, so without a step between.
        self.get_buffer = connection.get_buffer  # type: ignore[assignment, method-assign]
        self._loop = get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._writing = False  # connected, and the transport's buffer has room
        self._closing = False  # the connection is closed, and the transport has its bound
        self._flush_scheduled = False
        self._waiting_since = 0.0  # the first of what is to be written
        self._written_at = 0.0
        self._prompted = False  # something arrived since the last tick that wrote
        self._held = 0  # bytes that were held at the end of the last tick
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the timer was to fire
        connection.on_output = self._schedule_flush
        connection.on_burst = self._write_early
        connection.on_end = self._write_if_quiet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.connected = True
        if self.closed:  # given up while it was connecting
            self._transport.abort()
            return
        has_tls = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(TLS_WRITE_BUFFER_BYTES if has_tls else WRITE_BUFFER_BYTES)
        carrier: socket.socket | None = transport.get_extra_info("socket")
        if carrier is not None and carrier.family in (socket.AF_INET, socket.AF_INET6):
            carrier.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._writing = True
        self._tick()
        self._flush()

    def buffer_updated(self, nbytes: int) -> None:
        self._prompted = True
        self.connection.buffer_updated(nbytes)
        if self.connection.closed:
            self._flush()

    def eof_received(self) -> bool:
        return False  # the transport closes itself; connection_lost is next

    def pause_writing(self) -> None:
        self._writing = False

    def resume_writing(self) -> None:
        self._writing = True
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._silent_hint and not self.connection.greeted:
            silent = EOFError(self._silent_hint + (f" ({exc})" if exc else ""))
            silent.__cause__, exc = exc, silent
        self._finish(exc)

    def fail(self, error: DynamoError) -> None:
        """The peer cannot be reached, for this reason."""
        self.connection.unreachable(error)
        self.abort()

    def close(self, error: DynamoError | None = None) -> None:
        """End every call, tell the peer why if there is a reason, and close once that is written."""
        if not self.closed:
            self.connection.close(error)
            self._flush()
            if self._transport is None:
                self._finish(None)

    def abort(self) -> None:
        """Close at once, without a word, as a killed process does."""
        self._finish(None)
        if self._transport is not None:
            self._transport.abort()

    def _schedule_flush(self) -> None:
        self._waiting_since = perf_counter()
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._end_tick)

    def _end_tick(self) -> None:
        """Write what the tick brought. Right after another write it is held for one more tick, and again
        while each brings more: handlers that only let others run between items then share writes.
        """
        waiting = self.connection.waiting_bytes
        if (
            waiting != self._held
            and perf_counter() - self._written_at < HOLD_S
            and self._writing
            and not self.connection.closed
        ):
            self._held = waiting
            self._loop.call_soon(self._end_tick)
            return
        self._held = 0
        self._flush_scheduled = self._prompted = False
        if waiting or self.connection.has_output or self.connection.closed:
            self._flush()

    def _flush(self) -> None:
        """Write what there is."""
        transport = self._transport
        if transport is None or self.closed:
            return
        self._write()
        if self.connection.closed:
            if not self._closing:
                self._closing = True
                self._abort_in(LINGER_S)
            if self._writing:
                self._linger(transport)

    def _write(self) -> None:
        """Write as long as the transport takes it; small parts that came together go in one write."""
        transport, connection = self._transport, self.connection
        self._written_at = perf_counter()
        while self._writing and transport is not None and (parts := connection.take_output(TAKE_BYTES)):
            if len(parts) == 1:
                transport.write(parts[0])
                if connection.has_output:
                    continue
                return
            small: list[bytes | memoryview] = []
            for part in parts:
                if len(part) <= JOIN_BYTES:
                    small.append(part)
                    continue
                if small:
                    transport.write(b"".join(small))
                    small.clear()
                transport.write(part)
            if small:
                transport.write(b"".join(small))

    def _write_if_quiet(self) -> None:
        """A request or an answer is complete, and most likely nothing else comes in this tick: no other call
        is open, or none had anything to say lately.
        """
        if self.connection.open_streams <= 1 or perf_counter() - self._written_at > QUIET_S:
            self._write()

    def _write_early(self) -> None:
        if self._prompted and perf_counter() - self._waiting_since > EARLY_S:
            self._write()

    def _linger(self, transport: asyncio.Transport) -> None:
        """Everything is written: end our direction, and read on, for nothing, until the peer ends its own."""
        if transport.is_closing():
            return
        if transport.can_write_eof():
            try:
                transport.write_eof()
            except (OSError, RuntimeError):  # reset by the peer, and the loop has not told us yet
                transport.abort()
                return
        else:
            transport.close()  # TLS says goodbye by itself
        self._abort_in(LINGER_S)
        self._writing = False

    def _abort_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.abort)

    def _tick(self) -> None:
        """Keep-alive and the bound of the opening, whenever the connection asked to be reminded."""
        if self.closed or self.connection.closed:
            return
        now = self._loop.time()
        if now > self._due + LATE_S:
            # This loop was blocked: read first what arrived meanwhile, or the peer passes for silent.
            self._due = now + LATE_S
        else:
            self._due = self.connection.tick(now)
        if self.connection.closed:
            self._flush()
        else:
            self._timer = self._loop.call_at(self._due, self._tick)

    def _finish(self, cause: Exception | None) -> None:
        if self.closed:
            return
        self.closed = True
        self._writing = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.arrival is not None:
            self.arrival.cancel()
        self.connection.connection_lost(cause)
        if self.on_closed is not None:
            self.on_closed(self)
            self.on_closed = None
