"""What waits to be written: control frames first, then small items in order, then fragments in turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from dynamo.core.wire.sending import Sending

Buffer: TypeAlias = bytes | memoryview

CONGESTED_BYTES = 256 * 1024  # from here on items wait in their streams, whose senders are held up
EAGER_PARTS = 16  # headers and payloads; so many are not left to the end of the driver's tick
JOIN_BYTES = 64 * 1024  # in all: cheaper copied together than written one by one
MAX_CONTROL_BYTES = 1024 * 1024  # more answers than this wait unread: the peer only makes us work


def _nobody() -> None:
    pass


class Outbox:
    """Streams append to ``frames`` directly while ``size`` is below CONGESTED_BYTES, else join ``busy``.

    Until ``open`` is set only ``opening`` is given out.

    A burst is not held until the tick ends: two processes that answer each other's bursts would take turns,
    with one core idle. At ``eager`` parts the driver is asked to take them, then at twice as many, so that a
    burst of any size costs few writes if the driver does; the next ``take`` begins anew.
    """

    __slots__ = (
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
        "scheduled",
        "size",
        "tail",
        "takes",
    )

    def __init__(self) -> None:
        self.opening: list[Buffer] = []
        self.control: list[Buffer] = []
        self.control_size = 0
        self.frames: list[Buffer] = []
        self.size = 0  # bytes in frames
        self.busy: deque[Sending] = deque()  # each with something that may be sent
        self.tail: Sending | None = None  # whose ITEM is the last in frames, so that END can still ride on it
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

    def queue(self, frame: bytes) -> None:
        """Queue a frame behind the items."""
        self.tail = None
        self.frames.append(frame)
        self.size += len(frame)
        if not self.scheduled:
            self.wake()

    def join(self, stream: Sending) -> None:
        """``stream`` has something that may be sent: it takes turns from now on."""
        stream._busy = True
        self.busy.append(stream)
        if not self.scheduled:
            self.wake()

    def take(self, max_bytes: int) -> list[Buffer]:
        """What to write now: all but fragments, then fragments up to ``max_bytes``, at least one."""
        self.takes += 1
        self.eager = EAGER_PARTS
        self.tail = None
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
                if stream._pending and not stream._blocked:
                    busy.append(stream)
                else:
                    stream._busy = False
                room -= size
                if size:
                    first = False
        self.scheduled = bool(busy)
        return taken

    def clear(self) -> None:
        """The connection is gone: nothing of this will be sent."""
        self.opening, self.control, self.frames = [], [], []
        self.control_size = self.size = 0
        self.busy.clear()
        self.tail = None
        self.scheduled = False
