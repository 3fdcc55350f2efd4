"""The caller's and the worker's end of a call: how it starts, is stopped, killed, refused, and breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from dynamo.adapters.request_plane.mem.end import End, twin
from dynamo.core.errors import CallCancelledError, DynamoError, Retry, StreamBrokenError
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall, Payload, Request

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.mem.plane import MemRequestPlane, MemServer


class Outgoing(End, OutgoingCall):
    """The caller's end."""

    _answered = False

    def __init__(self, plane: MemRequestPlane, server: MemServer | None) -> None:
        super().__init__(plane, plane if server is None else server.plane)
        plane.calls.add(self)

    def start(self, server: MemServer, request: Request, instance_id: int, incarnation: int) -> None:
        """Send the request to ``server``."""
        self._peer = worker = Incoming(server, self, request)
        self._output_over = request.end
        self._post(lambda _: worker.open(instance_id, incarnation))

    def give_up(self, error: DynamoError) -> None:
        """Nobody to send it to: that is the first thing received."""
        self._loop.call_soon(lambda: self._close(error, keep=True))

    @property
    def _worker(self) -> Incoming | None:
        return cast("Incoming | None", self._peer)

    @property
    def answered(self) -> bool:
        return self._answered or self._received > 0 or bool(self._inbox)

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
        arrived = self._received + len(self._inbox)
        self._close(StreamBrokenError(f"{reason}, after {arrived} items", received=arrived), keep=True)

    def _end_input(self, error: DynamoError | None) -> None:
        if error is not None and error.retry is Retry.SAFE and (self._received or self._inbox):
            error.retry = Retry.UNKNOWN  # a handler had started
        self._answered = True
        self._close(error, keep=True)
        self._peer = None

    def _close(self, error: DynamoError | None, *, keep: bool) -> None:
        super()._close(error, keep=keep)
        self.plane.calls.discard(self)


class Incoming(End, IncomingCall):
    """The worker's end."""

    on_cancel: Callable[[bool], None] | None = None
    _stopped = _killed = False

    def __init__(self, server: MemServer, caller: Outgoing, request: Request) -> None:
        super().__init__(server.plane, caller.plane)
        self._server, self._peer, self.request = server, caller, request
        self._input_over = request.end

    def open(self, instance_id: int, incarnation: int) -> None:
        """The request arrived: hand it to the server's ``accept``, or turn it away."""
        server = self._server
        if (reason := server.reason_to_refuse(self.request, instance_id, incarnation)) is not None:
            self.refuse(reason)
        else:
            server.running.add(self)
            server.accept(self)

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def killed(self) -> bool:
        return self._killed

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
        if self not in self._server.running or (error is None and self._stopped):
            return
        self._stopped = True
        if error is not None:
            self._killed = True
            self._server.running.discard(self)
            self._close(twin(error), keep=False)
        if self.on_cancel is not None:
            self.on_cancel(self._killed)

    def break_off(self, reason: str) -> None:
        self._post(lambda peer: peer.break_off(reason))
        self.cancel(StreamBrokenError(reason, received=self._received))

    def _transmit(self, payload: Payload | None, end: bool) -> None:
        super()._transmit(payload, end)
        if end:
            self._server.running.discard(self)
            self._close(None, keep=False)
