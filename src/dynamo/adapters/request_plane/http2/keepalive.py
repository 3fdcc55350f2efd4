"""The bounds of a connection's opening and of its silence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2.frames import PING_FRAME
from dynamo.core.errors import Retry, UnavailableError
from dynamo.core.wire.silence import Act, Silence

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection


class Keepalive:
    """What time alone does to a connection; ``heard`` is set when something has come."""

    def __init__(self, connection: Http2Connection) -> None:
        self._connection = connection
        self._silence = Silence(connection.options.keepalive_s)
        self._began_at: float | None = None
        self.heard = False

    @property
    def stalled(self) -> bool:
        """The peer was silent for K."""
        return self._silence.stalled

    def tick(self, now: float) -> float:
        """May ask with PING, end calls, or close the connection; returns when to be called again."""
        connection, silence = self._connection, self._silence
        options = connection.options
        if not connection.ready:
            if self._began_at is None:
                self._began_at = now
            limit = self._began_at + options.opening_s
            if now < limit:
                return min(limit, silence.next_check(now))
            late = f"{options.peer} did not finish the opening within {options.opening_s:g} s"
            connection.close(UnavailableError(late))
            return math.inf
        heard, self.heard = self.heard, False
        act = silence.check(now, heard)
        if act is Act.BREAK:
            bound = f"{3 * options.keepalive_s:g} s (DYN_KEEPALIVE_S)"
            connection.close(UnavailableError(f"nothing came from {options.peer} for {bound}"))
            return math.inf
        if act is Act.STALL and connection.dialer:
            self._give_up_unanswered()
        if act is not Act.NOTHING:
            connection.outbox.put(PING_FRAME)
        return silence.next_check(now)

    def _give_up_unanswered(self) -> None:
        """Calls that may run twice and brought nothing yet are better tried elsewhere."""
        connection = self._connection
        options = connection.options
        bound = f"{options.keepalive_s:g} s (DYN_KEEPALIVE_S)"
        silent = f"nothing came from {options.peer} for {bound}, and no answer to this call before that"
        for call in [*connection.calls.values(), *connection.outbox.waiting]:
            if call.request.idempotent and not call.head_came:
                call.leave(UnavailableError(silent, retry=Retry.UNKNOWN))
