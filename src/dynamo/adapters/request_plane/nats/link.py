"""One session: what a sans-IO ``wire.Connection`` says, cut into numbered messages."""

from __future__ import annotations

import asyncio
import math
import struct
from collections import deque
from collections.abc import Callable, Iterator

from dynamo.core.errors import DynamoError, UnavailableError
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.outbox import Buffer

HEAD = struct.Struct("<QI")  # session id, sequence
TAKE_BYTES = 256 * 1024  # asked of the connection at a time: sessions take turns by so much
LAST_SEQUENCE = 2**32 - 2
LATE_S = 0.05  # a timer that fires later than this tells that the loop was blocked
LINGER_S = 1.0  # for a caller to hear that a worker closed its session, or took its first message


class SessionLink:
    """Drives one ``Connection``; ``wake`` is called when ``commands`` has something to send.

    ``on_closed`` is called once, when nothing of it is left. After its own last message it waits for the
    peer's for ``linger_s``. ``pinned`` is for a session with whoever takes its first message: called when
    that one has said who it is, it answers the subject for all that follows, which is held until then.
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
        pinned: Callable[[int], str] | None = None,
    ) -> None:
        self.connection = connection
        self.session = session
        self.target = target
        self.linger_s = linger_s
        self.closed = False
        self.retired = False  # it takes no new calls, and is closed after the last one
        self.queued = False  # with whoever ``wake`` told
        self.on_closed: Callable[[SessionLink], None] | None = on_closed
        self._inbox = inbox
        self._pinned = pinned
        self._wake = wake
        self._rest: deque[bytes] = deque()  # of what was taken from the connection: a message each
        self._sent = self._received = 0  # the next sequence numbers
        self._ended = False  # our last message went out
        self._peer_ended = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf
        self._prefix = b""
        connection.on_output = self._schedule
        self._schedule()
        self._timer = self._loop.call_later(connection.options.opening_s, self._unsent)

    @property
    def untouched(self) -> bool:
        """Nothing was sent yet."""
        return self._sent == 0

    @property
    def heard(self) -> bool:
        """Something came."""
        return self._received > 0

    @property
    def takes_calls(self) -> bool:
        return not self.retired and self.connection.accepts_calls

    @property
    def has_output(self) -> bool:
        """``commands`` may have more."""
        return not self._held and (bool(self._rest) or self.connection.has_output)

    @property
    def _held(self) -> bool:
        return self._pinned is not None and self._sent > 0

    def commands(self, max_payload: int) -> Iterator[list[Buffer]]:
        """What there is to say now, as NATS takes it, a message each; about ``TAKE_BYTES`` at most."""
        connection, rest = self.connection, self._rest
        room = max_payload - HEAD.size
        if not rest and not self._held:
            parts = connection.take_output(min(TAKE_BYTES, room))
            size = sum(len(part) for part in parts)
            if 0 < size <= room:
                yield self._command(size, parts)
            else:
                data = b"".join(parts)
                rest.extend(data[at : at + room] for at in range(0, size, room))
        while rest and not self._held:
            data = rest.popleft()
            yield self._command(len(data), [data])
        if connection.closed and not self.has_output and not self._ended:
            self._ended = True
            if not self._held and (not self.untouched or self._received):
                yield self._command(0, [])
            if self._held or self._peer_ended or not self.linger_s:
                self.finish()
            else:
                self._finish_in(self.linger_s)

    def _command(self, size: int, parts: list[Buffer]) -> list[Buffer]:
        """One message; the last token of its reply subject tells whether it was the session's first."""
        sequence = self._sent
        if sequence == 0 and not self.connection.closed:
            self._stop_timer()
            self._tick()  # the bound of the opening begins, and keep-alive
        if sequence < 2:
            self._prefix = f"PUB {self.target} {self._inbox}.{sequence} ".encode()
        self._sent = sequence + 1
        if sequence == LAST_SEQUENCE:  # the next one is for the end
            self._rest.clear()
            self.connection.connection_lost(ConnectionError("the numbers of the session are used up"))
        head = HEAD.pack(self.session, sequence)
        return [b"%b%d\r\n%b" % (self._prefix, size + HEAD.size, head), *parts, b"\r\n"]

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
        if self._pinned is not None and self.connection.peer_incarnation:
            self.target = self._pinned(self.connection.peer_incarnation)
            self._pinned = None
            self._schedule()
        if self.connection.closed:
            self._schedule()

    def nobody(self, *, first: bool) -> None:
        """Nobody was there to take a message, perhaps not even the first one."""
        error = UnavailableError(f"nobody serves {self.target} (NATS has no responders)")
        if first:
            self.fail(error)
        elif self._received or self.connection.closed:
            # A worker that leaves says so before it can no longer be reached: this one died.
            self._ended = True  # there is nobody to tell
            self.connection.connection_lost(error)
            self.finish()
        elif not self.retired:
            self.retired = True  # somebody took the first message: what it said may be on its way
            self._finish_in(LINGER_S, error)

    def resumed(self) -> None:
        """The way to NATS is back: what was lost meanwhile shows by what comes next, so something does."""
        if not self.connection.closed:
            if not self.untouched:
                self.connection.probe()
            self._schedule()

    def retire(self) -> None:
        """Take no new calls, and close after the last one."""
        self.retired = True
        self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close it unless a call is under way."""
        if not self.connection.open_streams:
            self.close()

    def fail(self, error: DynamoError) -> None:
        """The peer was never reached, for this reason."""
        self.connection.unreachable(error)
        self.finish()

    def close(self, error: DynamoError | None = None) -> None:
        """End every call, tell the peer why if there is a reason, and leave once that is sent."""
        self.connection.close(error)
        self._schedule()

    def finish(self, error: DynamoError | None = None) -> None:
        """Forget it; twice is fine."""
        if self.closed:
            return
        self.closed = True
        self._stop_timer()
        self.connection.connection_lost(error)
        if self.on_closed is not None:
            self.on_closed(self)
            self.on_closed = None

    def _finish_in(self, seconds: float, error: DynamoError | None = None) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self.finish, error)

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

    def _unsent(self) -> None:
        bound = f"{self.connection.options.opening_s:g} s (DYN_CONNECT_TIMEOUT_S)"
        self.fail(UnavailableError(f"there was no way to NATS, and so to {self.target}, for {bound}"))

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
