"""How many frames that cost a worker more than their sender one connection may send."""

from __future__ import annotations

from time import monotonic

from dynamo.adapters.request_plane.http2.frames import (
    CONTINUATION,
    DATA,
    END_STREAM,
    PADDED,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)

BURST = 2000  # frames at once: more calls than a router drops in one moment
RATE = 200  # a second after that
PER_DATA = 4  # windows opened for each DATA frame that was sent: of its stream by halves, of the connection
MAX_PADDING = 256  # of a frame, with the byte that tells its length
_COUNTED = (PRIORITY, RST_STREAM, SETTINGS, PING)


class Flooded(Exception):
    """More than a connection may send."""


class Floods:
    """Rapid reset (CVE-2023-44487); SETTINGS, PING, PRIORITY, empty DATA and unknown frames (CVE-2019-9511 to
    9518); and apart from these, WINDOW_UPDATE, of which a reader of much sends many.

    Header blocks have bounds of their own: see ``reader``.
    """

    __slots__ = ("_control", "_windows")

    def __init__(self) -> None:
        self._control, self._windows = _Bucket(), _Bucket()

    def count(self, kind: int, flags: int, length: int) -> None:
        """Raises Flooded."""
        if kind == WINDOW_UPDATE:
            if not self._windows.take():
                raise Flooded(
                    f"more windows opened than {BURST}, {RATE} a second and {PER_DATA} a DATA frame"
                )
            return
        counted = kind in _COUNTED or kind > CONTINUATION or (kind == DATA and _may_be_empty(flags, length))
        if counted:
            self.spend()

    def spend(self, frames: int = 1) -> None:
        """As much as so many frames that cost us more than their sender. Raises Flooded."""
        if not self._control.take(frames):
            raise Flooded(f"more than {BURST} frames of control at once and {RATE} a second")

    def excuse(self) -> None:
        """A frame that was counted does no harm: who resets a stream that was answered has waited for that,
        as callers do that leave a call early.
        """
        self._control.left += 1

    def sent(self) -> None:
        """A DATA frame."""
        self._windows.left += PER_DATA

    def opened(self) -> None:
        """A stream, whose window our callers open at once."""
        self._windows.left += 1


def _may_be_empty(flags: int, length: int) -> bool:
    return not flags & END_STREAM and length <= (MAX_PADDING if flags & PADDED else 0)


class _Bucket:
    __slots__ = ("_at", "left")

    def __init__(self) -> None:
        self.left = float(BURST)
        self._at = monotonic()

    def take(self, count: int = 1) -> bool:
        if self.left < count:
            now = monotonic()
            self.left = min(float(BURST), self.left + (now - self._at) * RATE)
            self._at = now
        self.left -= count
        return self.left >= 0
