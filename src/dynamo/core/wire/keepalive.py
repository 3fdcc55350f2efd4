"""What time alone does to a connection, whatever it speaks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

from dynamo.core.errors import DynamoError, Retry, UnavailableError
from dynamo.core.wire.opening import Options
from dynamo.core.wire.silence import Act, Silence


class Leavable(Protocol):
    @abstractmethod
    def leave(self, error: DynamoError) -> None: ...


class Kept(Protocol):
    """A connection, as seen by the clock."""

    ready: bool  # the opening is done

    @abstractmethod
    def probe(self) -> None:
        """Queue a PING."""

    @abstractmethod
    def unanswered(self) -> Iterable[Leavable]:
        """The calls of ours that may run twice and brought nothing yet."""

    @abstractmethod
    def close(self, error: DynamoError | None = None) -> None: ...


class Keepalive:
    """Bounds the opening and the silence of one open connection. It reads no clock."""

    __slots__ = ("_began_at", "_connection", "_options", "silence")

    def __init__(self, connection: Kept, options: Options) -> None:
        self._connection, self._options = connection, options
        self.silence = Silence(options.keepalive_s)
        self._began_at: float | None = None

    def tick(self, now: float, heard: bool) -> float:
        """The next time to call it. ``heard``: something came since the last time.

        May ask with PING, end calls, or close the connection: the opening took too long, or 3 K of silence.
        """
        connection, options, silence = self._connection, self._options, self.silence
        if not connection.ready:
            if self._began_at is None:
                self._began_at = now
            limit = self._began_at + options.opening_s
            if now < limit:
                return min(limit, silence.next_check(now))
            late = f"{options.peer} did not finish the opening within {options.opening_s:g} s"
            connection.close(UnavailableError(late))
            return math.inf
        act = silence.check(now, heard)
        if act is Act.BREAK:
            silent = f"nothing came from {options.peer} for {3 * options.keepalive_s:g} s (DYN_KEEPALIVE_S)"
            connection.close(UnavailableError(silent))
            return math.inf
        if act is Act.STALL:  # what may run twice is better tried elsewhere
            bound = f"{options.keepalive_s:g} s (DYN_KEEPALIVE_S)"
            silent = f"nothing came from {options.peer} for {bound}, and no answer to this call before that"
            for call in list(connection.unanswered()):
                call.leave(UnavailableError(silent, retry=Retry.UNKNOWN))
        if act is not Act.NOTHING:
            connection.probe()
        return silence.next_check(now)
