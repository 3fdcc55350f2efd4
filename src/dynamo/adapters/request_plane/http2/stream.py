"""Either end of a call: items in and out of one HTTP/2 stream. What is awaited is here, I/O is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2.fields import FieldEncoder
from dynamo.adapters.request_plane.http2.frames import DEFAULT_WINDOW, window_frame
from dynamo.adapters.request_plane.http2.framing import STOP_MESSAGE
from dynamo.adapters.request_plane.http2.headers import NATIVE, Opening, end_fields
from dynamo.adapters.request_plane.http2.receiving import Receiving
from dynamo.adapters.request_plane.http2.sending import Sending
from dynamo.adapters.request_plane.http2.statuses import status_of
from dynamo.core.errors import CallCancelledError, DynamoError, Retry, StreamBrokenError
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall, Request

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection


class Http2Call(Sending, Receiving, IncomingCall, OutgoingCall):
    """The end of a call on this side; the two sides share what moves items."""

    def __init__(self, connection: Http2Connection, request: Request, window: int) -> None:
        limit = connection.options.max_message_bytes
        Sending.__init__(self, limit, connection.options.window_bytes)
        # A caller may have sent what HTTP/2 has by default before it knew what we take.
        in_credit = window if connection.dialer else max(window, DEFAULT_WINDOW)
        Receiving.__init__(self, window, in_credit, limit)
        self.connection = connection
        self.request = request
        self._stopped = self._killed = False
        self.head_came = False  # on the caller's side: that of the response
        self.id = 0  # of the HTTP/2 stream, once it has one
        self.opening: Opening | None = None  # on the caller's side, until it is sent
        self.over = False
        self.on_cancel: Callable[[bool], object] | None = None
        self.on_first = None
        self.failure: DynamoError | None = None  # instead of a clean end
        self.failure_retry: Retry | None = None  # instead of its own verdict
        self.head_sent = False
        self.peer_done = False  # its side of the stream is closed
        self.held = False  # on the worker's side: its first item is not whole

    def _wants_to_send(self, size: int) -> None:
        self.connection.outbox.brings(self, size)

    def _give(self, size: int) -> None:
        if not self.over and not self.peer_done and self.id:
            self.in_credit += size
            self.connection.outbox.put(window_frame(self.id, size))

    @property
    def answered(self) -> bool:
        return self.head_came

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def killed(self) -> bool:
        return self._killed

    def stop(self) -> None:
        if not self.over and not self._stopped:
            self._stopped = True
            self._tell(STOP_MESSAGE)

    def kill(self) -> None:
        if not self.ended:
            self.leave(CallCancelledError("the call was killed by its caller"))

    def leave(self, error: DynamoError) -> None:
        """The worker is cancelled, what arrived is dropped, and the call ends here with ``error``."""
        self._items.clear()
        if self.over:
            self._error = error
            return
        self.connection.cancel(self)
        self.finish(error)

    @property
    def holds_back(self) -> bool:
        """What there is to send waits until more has come."""
        return False

    @property
    def is_whole(self) -> bool:
        """What came is as long as its head said."""
        return True

    def head(self, encoder: FieldEncoder) -> bytes:
        """The header block that stands before the items of a response."""
        if self.failure is None or self.head_sent:
            return encoder.encode(self.connection.native_head)
        limit = str(self.connection.options.max_message_bytes)
        status = str(status_of(self.failure))
        return encoder.encode_once(
            [(":status", status), ("content-type", NATIVE), ("dynamo-max-message", limit)]
        )

    def trailers(self, encoder: FieldEncoder) -> bytes:
        """The one that stands behind them."""
        if self.failure is None:
            return encoder.encode(self.connection.clean_end)
        fields = end_fields(self.failure, self.failure_retry, self.connection.peer.max_list)
        return encoder.encode_once(fields)

    def refuse(self, error: DynamoError) -> None:
        self._fail(error, Retry.SAFE)

    def fail(self, error: DynamoError) -> None:
        self._fail(error, None)

    def _fail(self, error: DynamoError, retry: Retry | None) -> None:
        if not self.out_done:
            self.out_done = True
            self.failure, self.failure_retry = error, retry
            self._wants_to_send(1)

    def break_off(self, error: DynamoError) -> None:
        """The caller left, or its link broke."""
        if not self.over:
            self._killed = True
            self._items.clear()
            self.in_done = False
            self.finish(error)
            if self.on_cancel is not None:
                self.on_cancel(True)

    def broken(self, why: str) -> StreamBrokenError:
        """The end of a call whose link broke after it was sent."""
        received = self._received + len(self._items)
        return StreamBrokenError(f"{why} ({received} items of the call had arrived)", received=received)

    def finish(self, error: DynamoError | None) -> None:
        """Both directions are over; items that arrived can still be taken, and a clean end stays one."""
        if self.over:
            return
        self.over = True
        self.stop_sending()
        self.end_input(error)
        self.release()
        self.connection.finished(self)
