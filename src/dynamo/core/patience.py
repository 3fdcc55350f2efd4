"""How long a stream may let its reader wait: one timer a stream, armed while somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dynamo.core.errors import ConfigError
from dynamo.core.model import shown
from dynamo.core.ports.request_plane import OutgoingCall

FOREVER_S = 31_536_000.0  # a year, the most that a setting may be


def seconds(name: str, value: float) -> float | None:
    """A bound as it was given; None for one that never comes. Raises ConfigError for what is no number."""
    try:
        return None if value >= FOREVER_S else value
    except TypeError:
        raise ConfigError(f"{name}={shown(value)}: expected seconds, such as 2.5") from None


class Patience:
    """Bounds, in seconds, on waiting for the first item of an attempt and for each later one; None: no bound.

    Only waiting counts: an item that lies here unread is late by nobody's fault but the reader's.
    ``exhausted`` is called with the limit and its option's name.
    """

    __slots__ = (
        "_call",
        "_exhausted",
        "_first_s",
        "_idle_s",
        "_loop",
        "_received",
        "_since",
        "_timer",
        "_waiting",
    )

    def __init__(
        self, first_s: float | None, idle_s: float | None, exhausted: Callable[[float, str], None]
    ) -> None:
        self._first_s = None if first_s is None else seconds("first_item_timeout_s", first_s)
        self._idle_s = None if idle_s is None else seconds("idle_timeout_s", idle_s)
        self._exhausted = exhausted
        self._loop = asyncio.get_running_loop()
        self._call: OutgoingCall | None = None
        self._received, self._since, self._waiting = 0, 0.0, False
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, call: OutgoingCall) -> None:
        """``call.wait()``, bounded; one that was cancelled and begun again goes on counting."""
        if self._call is not call or self._received != call.received:
            self._call, self._received = call, call.received
            self._since = self._loop.time()
        if self._timer is None:
            self._arm()
        self._waiting = True
        try:
            await call.wait()
        finally:
            self._waiting = False

    def _arm(self) -> None:
        limit_s = self._idle_s if self._received else self._first_s
        if limit_s is not None:
            self._timer = self._loop.call_at(self._since + limit_s, self._due)

    def _due(self) -> None:
        self._timer = None
        call = self._call
        limit_s = self._idle_s if self._received else self._first_s
        if not self._waiting or limit_s is None or call is None or call.ended:
            return  # the next wait arms it again
        if self._loop.time() < self._since + limit_s:
            self._arm()  # an item came in between
        else:
            self._exhausted(limit_s, "idle_timeout_s" if self._received else "first_item_timeout_s")

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
