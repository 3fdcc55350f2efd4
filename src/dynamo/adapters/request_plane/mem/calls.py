"""The caller's and the worker's end of a call: how it starts, is stopped, killed, refused, and breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.mem.end import NO_ITEMS, NOTHING_QUEUED, End, cost_of, twin, wake
from dynamo.core.errors import CallCancelledError, DynamoError, Retry, StreamBrokenError
from dynamo.core.ports.request_plane import Request

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.mem.plane import MemRequestPlane, MemServer


class Call(End):
    """Both ends are of one class, which makes each attribute cheaper to reach: the interpreter remembers
    where it was in objects of one class only.
    """

    __slots__ = ("_answered", "_expected", "_server", "killed", "on_cancel", "request", "stopped")

    def __init__(
        self,
        plane: MemRequestPlane,
        other: MemRequestPlane,
        request: Request,
        server: MemServer | None = None,
    ) -> None:
        """``server``: whom the worker's end belongs to; None at the caller's."""
        self.plane, self._loop, self._peer, self._server = plane, plane.loop, None, server
        self.request = request
        limit, other_limit = plane.max_message_bytes, other.max_message_bytes
        self._limit = limit if limit < other_limit else other_limit
        self._peer_window = self._credit = other.window_bytes
        self._window, self._half = plane.window_bytes, plane.half_window
        self._output_over, self._input_over = (request.end, False) if server is None else (False, request.end)
        self.ended = self._input_over
        self._outbox, self._inbox, self._queued = None, NO_ITEMS, NOTHING_QUEUED
        self._scheduled = self._announced = self._asking = self._answered = self.stopped = self.killed = False
        self.received = self.promised = self._owed = self._held = 0
        self._failure = self._error = self._writable = self._readable = None
        self._expected = 0, 0  # instance id and incarnation that the caller wants, 0 for any
        self.on_cancel: Callable[[bool], object] | None = None

    @property
    def answered(self) -> bool:
        return self._answered or self.received > 0 or bool(self._inbox)

    # The caller's side.

    def start(self, server: MemServer, request: Request, expected: tuple[int, int]) -> None:
        """Send the request to ``server``, which is to be that instance and incarnation, or 0."""
        worker = Call(server.plane, self.plane, request, server)
        worker._peer, worker._expected, self._peer = self, expected, worker
        self._post(Call.open)

    def give_up(self, error: DynamoError) -> None:
        """Nobody to send it to: that is the first thing received."""
        self._loop.call_soon(lambda: self._close(error, keep=True))

    def stop(self) -> None:
        if self._peer is not None and not self._input_over:
            self._post(lambda worker: worker.cancel(None))

    def kill(self) -> None:
        self.leave(CallCancelledError("the call was killed by its caller"))

    def leave(self, error: DynamoError) -> None:
        """Cancel the worker; the call ends here with ``error``."""
        if not self.ended:
            self._close(error, keep=False)
            if self._peer is not None:
                self._post(lambda worker: worker.cancel(error))

    # The worker's side.

    def open(self) -> None:
        """The request arrived: hand it to the server's ``accept``, or turn it away."""
        server = self._server
        assert server is not None
        if (reason := server.reason_to_refuse(self.request, *self._expected)) is not None:
            self.refuse(reason)
        else:
            server.running.add(self)
            server.accept(self)

    def refuse(self, error: DynamoError) -> None:
        self._fail(twin(error, Retry.SAFE))

    def fail(self, error: DynamoError) -> None:
        self._fail(twin(error))

    def _fail(self, error: DynamoError) -> None:
        if not self._output_over:
            self._failure = error
            self.end()

    def cancel(self, error: DynamoError | None) -> None:
        """The caller asks to finish (no error), or has left."""
        server = self._server
        assert server is not None
        if self not in server.running or (error is None and self.stopped):
            return
        self.stopped = True
        if error is not None:
            self.killed = True
            self._close(twin(error), keep=False)
        if self.on_cancel is not None:
            self.on_cancel(self.killed)

    # Either side.

    def break_off(self, reason: str) -> None:
        if self._server is None:
            arrived = self.received + len(self._inbox)
            self._close(StreamBrokenError(f"{reason}, after {arrived} items", received=arrived), keep=True)
        else:
            self._post(lambda caller: caller.break_off(reason))
            self.cancel(StreamBrokenError(reason, received=self.received))

    def _end_output(self) -> None:
        if (failure := self._failure) is None:
            self._post(None)
        else:
            self._post(lambda peer: peer._end_input(failure))
        if (server := self._server) is None:
            return
        if self.ended and self._writable is None and not self._held:
            server.running.discard(self)  # most calls: nothing is left to close
        else:
            self._close(None, keep=False)

    def _end_input(self, error: DynamoError | None) -> None:
        if self._server is not None:
            self._close_input(error)
            return
        if error is not None and error.retry is Retry.SAFE and (self.received or self._inbox):
            error.retry = Retry.UNKNOWN  # a handler had started
        self._answered = True
        self._close(error, keep=True)
        self._peer = None

    def _close(self, error: DynamoError | None, *, keep: bool) -> None:
        """End both directions; with ``keep`` what arrived can still be taken, and a clean end stays one."""
        self._output_over = True
        if self._queued:
            self._queued.clear()
        if (waiter := self._writable) is not None:
            wake(waiter)
        if not keep:
            self._inbox.clear()
        if not (keep and self._input_over):
            self._close_input(error)
        if self.promised:
            self.plane.budget.forget(self)
            self.promised = 0
        if self._held and not any(cost_of(payload) > self._window for payload in self._inbox):
            self._release()
        if (server := self._server) is None:
            self.plane.calls.discard(self)
        else:
            server.running.discard(self)
