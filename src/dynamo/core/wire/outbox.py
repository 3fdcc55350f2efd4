"""What waits to be written: control frames first, then small items in order, then fragments in turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from dynamo.core.wire.frames import F_END, ITEM, header, unpack_header

if TYPE_CHECKING:
    from dynamo.core.wire.sending import Sending

Buffer: TypeAlias = bytes | memoryview

CONGESTED_BYTES = 256 * 1024  # from here on items wait in their streams, whose senders are held up
EAGER_PARTS = 16  # headers and payloads; so many are not left to the end of the driver's tick
QUICK_BYTES = 2 * 1024  # appended between two looks at whether there is too much, or enough to take
JOIN_BYTES = 64 * 1024  # in all: cheaper copied together than written one by one
MAX_OVER = 64  # streams that wait for their turn and need it no more
MAX_CONTROL_BYTES = 1024 * 1024  # more answers than this wait unread: the peer only makes us work


def _nobody() -> None:
    pass


class Outbox:
    """Streams put small items into ``frames`` while it ``has_room``, else join ``busy``. After one was put,
    items of ``room`` bytes are simply appended, a header and a payload each: most items go that way.

    Until ``open`` is set only ``opening`` is given out.

    A burst is not held until the tick ends: two processes that answer each other's bursts would take turns,
    with one core idle. At ``eager`` parts the driver is asked to take them, then at twice as many, so that a
    burst of any size costs few writes if the driver does; the next ``take`` begins anew.
    """

    __slots__ = (
        "_granted",
        "_over",
        "busy",
        "control",
        "control_size",
        "eager",
        "flooded",
        "frames",
        "on_burst",
        "on_end",
        "on_output",
        "open",
        "opening",
        "room",
        "scheduled",
        "size",
        "takes",
    )

    def __init__(self) -> None:
        self.opening: list[Buffer] = []
        self.control: list[Buffer] = []
        self.control_size = 0
        self.frames: list[Buffer] = []
        self.size = 0  # bytes in frames
        self.busy: deque[Sending] = deque()  # each with something that may be sent
        self._over = 0  # of busy, what has ended
        self.room = 0  # bytes of items that may be appended to frames with no more ado
        self._granted = 0  # what ``room`` was
        self.takes = 0  # counts take(): tells what was handed out from what was not
        self.open = False
        self.scheduled = False  # on_output was called and not all was taken
        self.flooded = False
        self.eager = EAGER_PARTS  # parts in frames from which on they are not left to the end of the tick
        self.on_output: Callable[[], None] = _nobody
        self.on_burst: Callable[[], None] = _nobody
        self.on_end: Callable[[], None] = _nobody  # a stream's last frame was queued

    def wake(self) -> None:
        if not self.scheduled:
            self.scheduled = True
            self.on_output()

    def hurry(self) -> None:
        """``eager`` parts wait: the driver may take them now."""
        eager = 2 * self.eager
        self.on_burst()
        self.eager = eager

    def answer(self, frame: bytes) -> None:
        """Queue a control frame."""
        self.control.append(frame)
        self.control_size += len(frame)
        if self.control_size > MAX_CONTROL_BYTES:
            self.flooded = True
        if not self.scheduled:
            self.wake()

    def has_room(self) -> bool:
        """Small items may be put; else they wait in their streams."""
        if self._granted:
            self._settle()
        return self.size < CONGESTED_BYTES

    def put(self, head: bytes, payload: Buffer, size: int) -> None:
        """Append a frame in two parts, behind the others; the driver hears of the first, and of a burst."""
        frames = self.frames
        frames.append(head)
        frames.append(payload)
        self.size += size
        if not self.scheduled:
            self.wake()
        elif len(frames) >= self.eager:
            self.hurry()
        if self.scheduled:  # and not taken meanwhile
            self._granted = self.room = QUICK_BYTES

    def end_last(self, stream: int) -> bool:
        """Make the last frame the end of ``stream``, if it is an item of it that was not taken yet."""
        if not self._granted:  # nothing was put, or something else came after it
            return False
        size, kind, flags, _, number = unpack_header(self.frames[-2])
        if (kind, number) != (ITEM, stream):
            return False
        self.frames[-2] = header(ITEM, flags | F_END, stream, size)
        return True

    def queue(self, frame: bytes) -> None:
        """Queue a frame behind the items."""
        if self._granted:
            self._settle()
        self.frames.append(frame)
        self.size += len(frame)
        if not self.scheduled:
            self.wake()

    def _settle(self) -> None:
        """Count what went by ``room``, which is over."""
        self.size += self._granted - self.room
        self._granted = self.room = 0

    def join(self, stream: Sending) -> None:
        """``stream`` has something that may be sent: it takes turns from now on."""
        stream._busy = True
        self.busy.append(stream)
        if not self.scheduled:
            self.wake()

    def ended(self) -> None:
        """A stream in ``busy`` is over. Many are let go before their turn: a frozen peer's may never come."""
        self._over += 1
        if self._over > MAX_OVER and 2 * self._over > len(self.busy):
            alive = [stream for stream in self.busy if not stream.over]
            self.busy.clear()
            self.busy.extend(alive)
            self._over = 0

    def take(self, max_bytes: int) -> list[Buffer]:
        """What to write now: all but fragments, then fragments up to ``max_bytes``, at least one."""
        self.takes += 1
        self.eager = EAGER_PARTS
        if not self.open:
            opening, self.opening = self.opening, []
            self.scheduled = False
            return opening
        taken: list[Buffer]
        if self.opening or self.control:
            taken = [*self.opening, *self.control, *self.frames]
            self.opening, self.control = [], []
            self.control_size = 0
        else:
            taken = self.frames
        if self._granted:
            self._settle()
        if self.size <= JOIN_BYTES and len(taken) > 1:
            taken = [b"".join(taken)]
        self.frames = []
        room = max_bytes - self.size
        self.size = 0
        busy = self.busy
        if busy:
            first = True
            while busy and (first or room > 0):
                stream = busy.popleft()
                size = stream._emit(taken)
                if stream.over:
                    self._over -= 1
                if stream._pending and not stream._blocked:
                    busy.append(stream)
                else:
                    stream._busy = False
                room -= size
                if size:
                    first = False
        self.scheduled = bool(busy)
        return taken

    def forget(self) -> None:
        """Nothing of what streams and answers queued will be sent."""
        self._settle()
        self.control, self.frames = [], []
        self.control_size = self.size = 0

    def clear(self) -> None:
        """The connection is gone: nothing will be sent."""
        self.opening = []
        self.forget()
        self.busy.clear()
        self.scheduled = False

    @property
    def waiting_bytes(self) -> int:
        """About what control frames and small items take that ``take`` would give."""
        return self.size + self._granted - self.room + self.control_size
