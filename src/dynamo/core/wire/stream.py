"""One call on a connection: a sending and a receiving direction, each with its window.

Both sides use the same class. The driver subclasses it with what waits (``wait``, ``writable``) and gives
that to the ``Connection``; everything here is synchronous.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.core.errors import CallCancelledError, DynamoError, Retry, StreamBrokenError, UnavailableError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.faults import encode_error
from dynamo.core.wire.frames import ERROR, F_ITEM, KILL, STOP, header, map_frame
from dynamo.core.wire.receiving import NEVER, NO_ITEMS, Receiving
from dynamo.core.wire.sending import ERROR_ENTRY, NONE_PENDING

if TYPE_CHECKING:
    from dynamo.core.wire.connection import Connection


class Stream(Receiving):
    """One end of a call, as ``ports.request_plane.Channel`` says, without what waits.

    Hooks: ``on_readable`` and ``on_writable`` are set by whoever waits for ``ready()`` or ``can_send``; each
    is cleared before it is called, so it is called once for each setting. ``on_cancel(killed)`` tells the
    worker that the caller asked to stop (False) or left, or that the link broke (True). ``on_over`` is called
    once, when both directions are over. Hooks must not raise.

    On the worker's side ``request.payload`` is the first item, and ``receive_nowait`` gives those after it.
    """

    __slots__ = ("killed", "on_cancel", "on_over")

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._out = connection._out
        self.request = request
        self.over = self.stopped = self.killed = False
        self.id = self.received = 0
        self.on_readable = self.on_writable = None
        self.on_cancel: Callable[[bool], object] | None = None
        self.on_over: Callable[[], None] | None = None
        self._head = self._view = self._assembly = self._error = None
        self._open_at = self._small = -1
        self._open_index = self._offset = self._credit = self._window_out = self._half = 0
        self._first = self._blocked = self._busy = self._out_done = False
        self._pending = NONE_PENDING
        self._items = NO_ITEMS
        self._window = self._in_credit = self._owed = self._give_at = 0
        self._needed = self._extra = self._reserved = 0
        self._quick = True
        self._asked = self._in_done = self._answered = False

    # The caller's side.

    def stop(self) -> None:
        """Ask the worker to finish early; keep receiving until ``ended``."""
        if self.over or self.stopped:
            return
        self.stopped = True
        if self._head is None:
            self._tell(STOP)

    def kill(self) -> None:
        """Leave: the worker is cancelled, what is on its way is dropped. After ``ended`` it does nothing."""
        if not self.ended:
            self.leave(CallCancelledError("the call was killed by its caller"))

    def leave(self, error: DynamoError) -> None:
        """As ``kill``, and the call ends here with ``error``: its deadline, for one."""
        if self.over:
            if self._items:
                self._items.clear()
                self._error = error
            return
        if self._open_at == self._out.takes and self.request.end and not self.stopped:
            self._recall()
        elif self._head is None:
            self._tell(KILL)
        self._items.clear()
        self._finish(error)

    def _tell(self, kind: int) -> None:
        frame = header(kind, 0, self.id, 0)
        if self._open_at == self._out.takes:
            self._out.queue(frame)  # must not overtake its OPEN
        else:
            self._out.answer(frame)

    def _recall(self) -> None:
        """OPEN was not handed out and nothing follows it: blank it. Its id stays unused, which is allowed."""
        frames, index = self._out.frames, self._open_index
        if frames[index][5] & F_ITEM:
            frames[index + 1] = b""
        frames[index] = b""

    # The worker's side.

    def refuse(self, error: DynamoError) -> None:
        """Turn the call away before a handler starts: it arrives with ``error``'s class and SAFE."""
        self._fail(encode_error(error, Retry.SAFE))

    def fail(self, error: DynamoError) -> None:
        """End the response with ``error``, after the items already sent."""
        self._fail(encode_error(error))

    def _fail(self, body: bytes) -> None:
        if self._out_done:
            return
        if self._pending or not self._out.has_room():
            self._out_done = True
            self._queue((body, 0, ERROR_ENTRY))
        else:
            self._out.queue(map_frame(ERROR, self.id, body))
            self._end_sent()

    # The beginning and the end.

    def _opened(self) -> None:
        """OPEN is being queued: ids are given in that order."""
        connection = self._connection
        self.id = connection._last_id = connection._last_id + 1
        connection._waiting.discard(self)
        connection._streams[self.id] = self

    def _handed_out(self) -> bool:
        """OPEN was handed out, so that the peer may have it."""
        return self.id != 0 and self._open_at != self._out.takes

    def _broken(self, error: DynamoError | None, refused: bool, refuses: bool) -> DynamoError:
        """What it ends with when its connection does. ``refused``: by the listener, or ``refuses``: by us."""
        connection, sent = self._connection, self._handed_out()
        why = str(error or f"the connection to {connection.options.peer} was closed")
        ending: DynamoError
        if error is not None and (refused or refuses):
            ending = copy.copy(error)
            if refuses and sent and error.retry is Retry.SAFE:
                ending.retry = Retry.UNKNOWN
        elif sent:
            received = self.received + len(self._items)
            ending = StreamBrokenError(f"{why} ({received} items of the call had arrived)", received=received)
        else:
            ending = UnavailableError(f"{why} (the call was not sent)")
        ending.__cause__ = error
        return ending

    def _finish(self, error: DynamoError | None) -> None:
        """Both directions are over. Items that arrived can still be taken; a clean end stays one."""
        if self.over:
            return
        self.over = self._out_done = True
        if not self._in_done:
            self._in_done = True
            self._error = error
        self._small = -1
        self._quick = False
        self._give_at = NEVER
        if self._pending:
            self._pending.clear()
        self._view = self._assembly = self._head = None
        if self._busy:
            self._out.ended()
        if self._needed:
            self._forget()
        if self._reserved or self._extra:
            self._release()
        self._connection._finished(self)
        if self.on_readable is not None:
            self._wake_reader()
        if self.on_writable is not None:
            self._wake_writer()
        if (hook := self.on_over) is not None:
            self.on_over = None
            hook()
