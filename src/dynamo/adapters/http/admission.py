"""How many requests of one route run at once, and how many wait: ``max_inflight`` and ``queue``."""

from __future__ import annotations

import asyncio
from collections import deque

from dynamo.core.errors import DynamoError, OverloadedError


class Admission:
    """Up to ``limit`` run, up to ``room`` wait in order of arrival (``limit``, if None); more are refused.

    Without a limit all run.
    """

    def __init__(self, endpoint: str, limit: int | None, room: int | None) -> None:
        self._endpoint, self._limit = endpoint, limit
        self._room = limit if room is None else room
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def check(self) -> None:
        """Raise OverloadedError if one more would be too many."""
        if self._limit is None or self._running + len(self._waiting) < self._limit + (self._room or 0):
            return
        raise OverloadedError(
            f"{self._endpoint} runs {self._running} requests (max_inflight) and "
            f"{len(self._waiting)} wait (queue)"
        )

    async def enter(self) -> None:
        """Wait for a place; who has got one gives it back with ``leave``. Raises OverloadedError."""
        self.check()
        if self._limit is None or self._running < self._limit:
            self._running += 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave()  # it came in the same moment
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def leave(self) -> None:
        """Give the place to the one who waits longest."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._running -= 1

    def turn_away(self, error: DynamoError) -> None:
        """Refuse those who wait: nothing of them has started."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(error)
