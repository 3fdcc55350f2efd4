"""A caller's sessions with a group of workers, where NATS chooses the worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from dynamo.adapters.request_plane.nats.link import SessionLink

SESSIONS: Final = 8  # that take calls in turns
TURN_S: Final = 1.0  # then NATS chooses anew, among those who are there by now


class Group:
    """A session stays with the worker that took its first message; so there are several, and not for long."""

    def __init__(self, dial: Callable[[], SessionLink]) -> None:
        self._dial = dial
        self._taking: deque[tuple[float, SessionLink]] = deque()  # until when, the next one first

    def next(self, now: float) -> SessionLink:
        """The session for a new call."""
        for _ in range(len(self._taking)):
            until, link = self._taking.popleft()
            if now < until and link.takes_calls:
                self._taking.append((until, link))
            elif not link.closed:
                link.retire()
        if len(self._taking) < SESSIONS:
            self._taking.append((now + TURN_S, self._dial()))
        else:
            self._taking.rotate()
        return self._taking[-1][1]
