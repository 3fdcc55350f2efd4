"""The caller's and the worker's end of a call: how it starts, is stopped, killed, refused, and breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from dynamo.adapters.request_plane.mem.end import End, twin
from dynamo.core.errors import CallCancelledError, DynamoError, Retry, StreamBrokenError
from dynamo.core.ports.request_plane import Request

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.mem.plane import MemRequestPlane, MemServer


class Outgoing(End):
    """The caller's end."""

    __slots__ = ("_answered",)

    def __init__(self, plane: MemRequestPlane, other: MemRequestPlane, end: bool) -> None:
        super().__init__(plane, other, False, end)
        self._answered = False
        plane.calls.add(self)

    def start(self, worker: Incoming) -> None:
        """Send the request, which ``worker`` brings."""
        self._peer = worker
        self._post(_open)

    def give_up(self, error: DynamoError) -> None:
        """Nobody to send it to: that is the first thing received."""
        self._loop.call_soon(lambda: self._close(error, keep=True))

    @property
    def _worker(self) -> Incoming | None:
        return cast("Incoming | None", self._peer)

    @property
    def answered(self) -> bool:
        return self._answered or self.received > 0 or bool(self._inbox)

    def stop(self) -> None:
        if (worker := self._worker) is not None and not self._input_over:
            self._post(lambda _: worker.cancel(None))

    def kill(self) -> None:
        self.leave(CallCancelledError("the call was killed by its caller"))

    def leave(self, error: DynamoError) -> None:
        """Cancel the worker; the call ends here with ``error``."""
        if not self.ended:
            self._close(error, keep=False)
            if (worker := self._worker) is not None:
                self._post(lambda _: worker.cancel(error))

    def break_off(self, reason: str) -> None:
        arrived = self.received + len(self._inbox)
        self._close(StreamBrokenError(f"{reason}, after {arrived} items", received=arrived), keep=True)

    def _end_input(self, error: DynamoError | None) -> None:
        if error is not None and error.retry is Retry.SAFE and (self.received or self._inbox):
            error.retry = Retry.UNKNOWN  # a handler had started
        self._answered = True
        self._close(error, keep=True)
        self._peer = None

    def _close(self, error: DynamoError | None, *, keep: bool) -> None:
        super()._close(error, keep=keep)
        self.plane.calls.discard(self)


class Incoming(End):
    """The worker's end. ``expected``: the instance id and incarnation that the caller wants, 0 for any."""

    __slots__ = ("_expected", "_server", "killed", "on_cancel", "request", "stopped")

    def __init__(
        self, server: MemServer, caller: Outgoing, request: Request, expected: tuple[int, int]
    ) -> None:
        super().__init__(server.plane, caller.plane, request.end, False)
        self._server, self._peer, self.request, self._expected = server, caller, request, expected
        self.on_cancel: Callable[[bool], None] | None = None
        self.stopped = self.killed = False

    def open(self) -> None:
        """The request arrived: hand it to the server's ``accept``, or turn it away."""
        server = self._server
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
        if self not in self._server.running or (error is None and self.stopped):
            return
        self.stopped = True
        if error is not None:
            self.killed = True
            self._server.running.discard(self)
            self._close(twin(error), keep=False)
        if self.on_cancel is not None:
            self.on_cancel(self.killed)

    def break_off(self, reason: str) -> None:
        self._post(lambda peer: peer.break_off(reason))
        self.cancel(StreamBrokenError(reason, received=self.received))

    def _end_output(self) -> None:
        super()._end_output()
        self._server.running.discard(self)
        self._close(None, keep=False)


def _open(worker: End) -> None:
    cast(Incoming, worker).open()
