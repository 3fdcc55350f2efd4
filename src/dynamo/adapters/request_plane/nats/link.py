"""One session: what a sans-IO ``wire.Connection`` says, cut into numbered messages."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Iterator

from dynamo.core.errors import DynamoError, UnavailableError
from dynamo.core.wire.connection import Connection

HEAD = struct.Struct("<QI")  # session id, sequence
TAKE_BYTES = 256 * 1024  # asked of the connection at a time: sessions take turns by so much
LAST_SEQUENCE = 2**32 - 2
LATE_S = 0.05  # a timer that fires later than this tells that the loop was blocked


class SessionLink:
    """Drives one ``Connection``; ``wake`` is called when ``messages`` has something for ``target``.

    ``on_closed`` is called once, when nothing of it is left. After its own last message it waits for the
    peer's for ``linger_s``.
    """

    def __init__(
        self,
        connection: Connection,
        session: int,
        target: str,
        inbox: str,
        wake: Callable[[SessionLink], None],
        on_closed: Callable[[SessionLink], None],
        linger_s: float = 0,
    ) -> None:
        self.connection = connection
        self.session = session
        self.target = target
        self.closed = False
        self.queued = False  # with whoever ``wake`` told
        self.on_closed: Callable[[SessionLink], None] | None = on_closed
        self._inbox = inbox
        self._linger_s = linger_s
        self._wake = wake
        self._sent = self._received = 0  # the next sequence numbers
        self._ended = False  # our last message went out
        self._peer_ended = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        connection.on_output = self._schedule
        self._schedule()
        self._tick()

    @property
    def untouched(self) -> bool:
        """Nothing was sent yet."""
        return self._sent == 0

    def reply(self) -> str:
        """Where NATS says that nobody is there; its last token tells whether the first message was lost."""
        return f"{self._inbox}.{min(self._sent, 1)}"

    def messages(self, max_payload: int) -> Iterator[tuple[str, bytes]]:
        """What there is to send now, each with its reply subject; about ``TAKE_BYTES`` at most."""
        connection = self.connection
        room = max_payload - HEAD.size
        data = memoryview(b"".join(connection.take_output(min(TAKE_BYTES, room))))
        while data:
            yield self.reply(), self._headed(data[:room])
            data = data[room:]
        if connection.closed and not connection.has_output and not self._ended:
            self._ended = True
            if not self.untouched or self._received:
                yield self.reply(), self._headed(memoryview(b""))
            if self._peer_ended or not self._linger_s:
                self.finish()
            else:
                self._stop_timer()
                self._timer = self._loop.call_later(self._linger_s, self.finish)

    def _headed(self, data: memoryview) -> bytes:
        message = b"".join((HEAD.pack(self.session, self._sent), data))
        self._sent += 1
        if self._sent >= LAST_SEQUENCE:
            self.connection.close()
        return message

    def received(self, sequence: int, data: memoryview) -> None:
        """A message of this session came."""
        if self.closed:
            return
        if sequence != self._received:
            self._peer_ended = True  # it is told, and what else it says is not of interest
            lost = f"messages {self._received} to {sequence - 1} of the session were lost"
            self._lost(ConnectionError(lost))
            return
        self._received += 1
        if not data:
            self._peer_ended = True
            if self._ended:
                self.finish()
                return
            self._lost(EOFError("the other side closed it"))
            return
        self.connection.feed(data)
        if self.connection.closed:
            self._schedule()

    def nobody(self, *, first: bool) -> None:
        """Nobody was there to take a message, perhaps not even the first one."""
        error = UnavailableError(f"nobody serves {self.target} (NATS has no responders)")
        if first:
            self.fail(error)
        else:
            self._ended = True  # there is nobody to tell
            self.connection.connection_lost(error)
            self.finish()

    def resumed(self) -> None:
        """The way to NATS is back: what was lost meanwhile shows by what comes next, so something does."""
        if not self.connection.closed:
            if not self.untouched:
                self.connection.probe()
            self._schedule()

    def fail(self, error: DynamoError) -> None:
        """The peer was never reached, for this reason."""
        self.connection.unreachable(error)
        self.finish()

    def close(self, error: DynamoError | None = None) -> None:
        """End every call, tell the peer why if there is a reason, and leave once that is sent."""
        self.connection.close(error)
        self._schedule()

    def finish(self) -> None:
        """Forget it; twice is fine."""
        if self.closed:
            return
        self.closed = True
        self._stop_timer()
        self.connection.connection_lost(None)
        if self.on_closed is not None:
            self.on_closed(self)
            self.on_closed = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lost(self, cause: Exception) -> None:
        """End it here, and tell the other side that nothing more comes."""
        self.connection.connection_lost(cause)
        self._schedule()

    def _schedule(self) -> None:
        if not self.queued and not self.closed:
            self.queued = True
            self._wake(self)

    def _tick(self) -> None:
        if self.closed:
            return
        now = self._loop.time()
        if now > self._due + LATE_S:
            self._due = now + LATE_S  # this loop was blocked: read first what arrived meanwhile
        else:
            self._due = self.connection.tick(now)
        if self.connection.closed:
            self._schedule()
        else:
            self._timer = self._loop.call_at(self._due, self._tick)
