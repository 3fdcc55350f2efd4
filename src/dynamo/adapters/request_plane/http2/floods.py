"""How many frames that cost a worker more than their sender one connection may send."""

from __future__ import annotations

from time import monotonic

BURST = 2000  # frames at once: more calls than a router drops in one moment
RATE = 200  # a second after that
DATA, PRIORITY, RST_STREAM, SETTINGS, PING = 0, 2, 3, 4, 6
END_STREAM = 1
_COUNTED = (PRIORITY, RST_STREAM, SETTINGS, PING)


class Flooded(Exception):
    """More than a connection may send."""


class Floods:
    """Rapid reset (CVE-2023-44487); SETTINGS, PING, PRIORITY and empty DATA (CVE-2019-9511 to 9518).

    Header blocks and CONTINUATION frames are bounded by h2: 64 KiB of fields, 64 frames.
    """

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._left = float(BURST)
        self._at = monotonic()

    def count(self, kind: int, flags: int, length: int) -> None:
        """Raises Flooded."""
        if kind not in _COUNTED and (kind != DATA or length or flags & END_STREAM):
            return
        now = monotonic()
        self._left = min(float(BURST), self._left + (now - self._at) * RATE) - 1
        self._at = now
        if self._left < 0:
            raise Flooded(f"more than {BURST} frames of control at once and {RATE} a second")
