"""Memory for what a process receives: windows that shrink as it is used, and grants for large items."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from dynamo.core.wire.frames import MIN_WINDOW

LEAST_WINDOW = 1024  # while there is room for it; a few tokens


class Asking(Protocol):
    """A stream that waits for room."""

    def granted(self, size: int) -> None: ...


class ReceiveBudget:
    """``total_bytes`` for all connections that share it; ``used`` is 0 again when all their streams are over.

    A quarter is kept for items larger than their window, so that windows never use up what lets those
    through. They are granted first come, first served; one that even the whole budget is too small for passes
    when no other is on its way.
    """

    __slots__ = ("_asking", "_granted", "_pool", "total", "used")

    def __init__(self, total_bytes: int) -> None:
        self.total = total_bytes
        self.used = 0
        self._pool = max(1, total_bytes * 3 // 4)
        self._granted = 0
        self._asking: deque[tuple[Asking, int]] = deque()

    def window(self, wanted: int) -> int:
        """Reserve a window for a new stream, and say its size; give it back with ``give``.

        Full size until half of the windows' share is used, then smaller by the square of what is left:
        thousands of streams still get a few KiB each.
        """
        free = self._pool - self.used
        half = self._pool // 2
        if free >= half and wanted <= free:
            size = wanted
        elif free < LEAST_WINDOW:
            size = MIN_WINDOW
        else:
            size = min(wanted, free, max(LEAST_WINDOW, wanted * free // half * free // half & ~1023))
        self.used += size
        return size

    def reserve(self, size: int) -> bool:
        """Take ``size`` now, or not at all; the first one always gets it."""
        if self.used and self.used + size > self.total:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give back what ``window`` or ``reserve`` took."""
        self.used -= size
        if self._asking:
            self._settle()

    # Grants.

    def grant_now(self, size: int) -> bool:
        """A grant without waiting; those that wait go first.

        It is for what a peer has only announced: a quarter is left, or who announces much and sends nothing
        would keep out even calls that need no more than a window.
        """
        if self._asking or not self._fits(size + self.total // 4):
            return False
        self.used += size
        self._granted += 1
        return True

    def ask(self, stream: Asking, size: int) -> None:
        """``stream.granted(size)`` is called when there is room, perhaps at once."""
        self._asking.append((stream, size))
        self._settle()

    def forget(self, stream: Asking) -> None:
        """It no longer asks."""
        for entry in self._asking:
            if entry[0] is stream:
                self._asking.remove(entry)
                self._settle()
                return

    def give_grant(self, size: int) -> None:
        """The item was taken, or will not come."""
        self._granted -= 1
        self.give(size)

    def _fits(self, size: int) -> bool:
        return self.used + size <= self.total or not self._granted

    def _settle(self) -> None:
        while self._asking and self._fits(self._asking[0][1]):
            stream, size = self._asking.popleft()
            self.used += size
            self._granted += 1
            stream.granted(size)
