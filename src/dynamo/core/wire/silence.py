"""Keep-alive as a function of time: when to ask, when to stop trusting, when to give up."""

from __future__ import annotations

import enum


class Act(enum.Enum):
    NOTHING = 0
    PING = 1
    STALL = 2  # silent for K: no new calls, and PING
    BREAK = 3  # silent for 3 K


class Silence:
    """Sampled by ``check``, an eighth of K apart: all happens within K/8 after its time, never before it."""

    __slots__ = ("_keepalive_s", "_ping_at", "_since", "stalled")

    def __init__(self, keepalive_s: float) -> None:
        self._keepalive_s = keepalive_s
        self._since: float | None = None
        self._ping_at = 0.0
        self.stalled = False

    def check(self, now: float, heard: bool) -> Act:
        """``heard``: a byte arrived since the last check."""
        since = self._since
        if heard or since is None:
            self._since = now
            self._ping_at = now + self._keepalive_s / 2
            self.stalled = False
            return Act.NOTHING
        if now - since >= 3 * self._keepalive_s:
            return Act.BREAK
        if now - since >= self._keepalive_s and not self.stalled:
            self.stalled = True
            self._ping_at = now + self._keepalive_s / 2
            return Act.STALL
        if now >= self._ping_at:
            self._ping_at = now + self._keepalive_s / 2
            return Act.PING
        return Act.NOTHING

    def next_check(self, now: float) -> float:
        return now + self._keepalive_s / 8
