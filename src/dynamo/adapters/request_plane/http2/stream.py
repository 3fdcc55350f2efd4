"""Either end of a call: items in and out of one HTTP/2 stream. What is awaited is here, I/O is not."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2.framing import (
    END_MESSAGE,
    LAST,
    NO_ITEM,
    PREFIX_BYTES,
    RAW,
    STOP,
    STOP_MESSAGE,
    Messages,
    pack_prefix,
)
from dynamo.adapters.request_plane.http2.headers import NATIVE, Fields
from dynamo.adapters.request_plane.http2.statuses import status_of
from dynamo.core.errors import CallCancelledError, DynamoError, Retry, StreamBrokenError, WireError
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall, Payload, Request
from dynamo.core.wire.sending import too_large

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection


MIN_BACKLOG_BYTES = 64 * 1024  # small windows would else cost a turn of the loop each time


class Http2Call(IncomingCall, OutgoingCall):
    """The end of a call on this side; the two sides share what moves items.

    Outgoing: ``_credit`` is what HTTP/2's window of the stream lets through, less what is queued here: it is
    negative while something waits. Incoming: ``_owed`` is credit of items taken that was not given back yet.
    """

    def __init__(self, connection: Http2Connection, request: Request) -> None:
        self.request = request
        self.id = 0  # of the HTTP/2 stream, once it has one
        self._stopped = self._killed = False
        self.over = False
        self.max_send: float = connection.options.max_message_bytes
        self.on_cancel: Callable[[bool], None] | None = None
        self.connection = connection
        self.queue: deque[Payload] = deque()  # framed, to be sent
        self.offset = 0  # of the first of them
        self._backlog = 0  # bytes of all of them: a peer may grant more than is good to keep here
        self.out_done = False  # nothing more is queued
        self.failure: DynamoError | None = None  # instead of a clean end
        self.failure_retry: Retry | None = None  # instead of its own verdict
        self.on_first: Callable[[Http2Call], None] | None = None  # the first item is here
        self.head_sent = False
        self.peer_done = False  # its side of the stream is closed
        self.credit = 0
        self.window = connection.options.window_bytes
        self._most_backlog = max(self.window, MIN_BACKLOG_BYTES)
        self.owed = 0
        self.in_done = False
        self.reserved = 0  # of the budget, for the window
        self.held = 0  # of the budget, granted beyond the window
        self._asked = False  # for that
        self._wants = False  # a reader waits
        self._messages = Messages(connection.options.max_message_bytes)
        self._items: deque[Payload] = deque()
        self._received = 0
        self._error: DynamoError | None = None
        self._head_came = False
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None

    # Sending.

    def send(self, payload: Payload, *, end: bool = False) -> bool:
        size = len(payload) if type(payload) is bytes else memoryview(payload).nbytes
        if size > self.max_send:
            raise too_large(size, int(self.max_send))
        if self.out_done:
            return True
        self.put(payload, size, LAST if end and self.connection.dialer else 0)
        if end:
            self.out_done = True
        return self._has_room

    def put(self, payload: Payload, size: int, flags: int) -> None:
        """Queue an item of so many bytes."""
        queue = self.queue
        if type(payload) is not bytes:
            flags |= RAW
            payload = memoryview(payload).cast("B") if size else b""
        queue.append(pack_prefix(flags, size))
        if size:
            queue.append(payload)
        self.credit -= size + PREFIX_BYTES
        self._backlog += size + PREFIX_BYTES
        self.connection.wants_to_send(self)

    def end(self) -> None:
        if not self.out_done:
            self.out_done = True
            if self.connection.dialer:
                self._tell(END_MESSAGE)
            self.connection.wants_to_send(self)

    @property
    def _has_room(self) -> bool:
        return self.out_done or (self.credit > 0 and self._backlog < self._most_backlog)

    async def writable(self) -> None:
        while not self._has_room:
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    def credited(self, increment: int) -> None:
        """The peer's window grew, or shrank when its settings came."""
        self.credit += increment
        if self._has_room:
            _wake(self._writable)

    def sent(self, size: int) -> None:
        """So much of what was queued is on its way."""
        self._backlog -= size
        if self._has_room:
            _wake(self._writable)

    def _tell(self, message: bytes) -> None:
        self.queue.append(message)
        self.credit -= len(message)
        self._backlog += len(message)
        self.connection.wants_to_send(self)

    # Receiving.

    def receive_nowait(self) -> Payload | None:
        if not self._items:
            self._want()
            return None
        payload = self._items.popleft()
        self._received += 1
        cost = len(payload) + PREFIX_BYTES
        if self.held and cost > self.window:
            cost -= self.held
            self._release_held()
        self._owe(cost)
        return payload

    @property
    def ended(self) -> bool:
        return self.in_done and not self._items

    @property
    def error(self) -> DynamoError | None:
        return self._error if self.ended else None

    @property
    def received(self) -> int:
        return self._received

    @property
    def answered(self) -> bool:
        return self._head_came

    async def wait(self) -> None:
        while not self._items and not self.in_done:
            self._want()
            self._readable = asyncio.get_running_loop().create_future()
            await self._readable

    def arrived(self, data: bytes) -> None:
        """Bytes of the direction that comes in. Raises WireError, TooLargeError."""
        before = len(self._items)
        last = self.in_done
        messages, error = self._messages.feed(data)
        for flags, body in messages:
            if last and not flags & NO_ITEM:
                raise WireError("something came after the end of the input")
            if flags & STOP and not self.stopped:
                self._stopped = True
                if self.on_cancel is not None:
                    self.on_cancel(False)
            if flags & NO_ITEM:
                self._owe(PREFIX_BYTES)
            else:
                self._items.append(memoryview(body) if flags & RAW else body)
                if (first := self.on_first) is not None:
                    self.on_first = None
                    first(self)
            last = last or bool(flags & LAST)
        if len(self._items) > before:
            self._wants = False
            _wake(self._readable)
        if error is not None:
            raise error
        if last and not self.in_done:
            self.end_input(None)
        elif self._messages.incomplete:
            self._owe(0)
            if self._wants:
                self._want()

    def head_came(self) -> None:
        self._head_came = True

    @property
    def buffered(self) -> int:
        """Whole items that were not taken."""
        return len(self._items)

    @property
    def excess(self) -> int:
        """What the incomplete item needs beyond the window."""
        return max(0, self._messages.needed - self.window) if not self.held else 0

    def take_first(self) -> None:
        """The first item of a request becomes part of it."""
        payload = self.receive_nowait()
        self._received = 0
        self.request.payload = payload

    def end_input(self, error: DynamoError | None) -> None:
        """Nothing more comes in."""
        if not self.in_done:
            if error is None and self._messages.incomplete:
                error = WireError("the input ended in the middle of an item")
            self.in_done, self._error = True, error
            self._release()
        _wake(self._readable)

    def _want(self) -> None:
        self._wants = True
        if not self.in_done and not self._items and not self._asked and (excess := self.excess):
            self._asked = True
            self.connection.budget.ask(self, excess)

    def granted(self, size: int) -> None:
        """The budget has room for the item that is larger than the window."""
        self._asked = False
        self.held = size
        self.connection.give_credit(self, size)

    def _owe(self, cost: int) -> None:
        self.owed += cost
        if self.owed and (2 * self.owed >= self.window or self._messages.incomplete) and not self.in_done:
            owed, self.owed = self.owed, 0
            self.connection.give_credit(self, owed)

    def _release_held(self) -> None:
        held, self.held = self.held, 0
        if held:
            self.connection.budget.give_grant(held)

    def _release(self) -> None:
        if self._asked:
            self._asked = False
            self.connection.budget.forget(self)
        self._release_held()
        if reserved := self.reserved:
            self.reserved = 0
            self.connection.budget.give(reserved)

    # How it ends.

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def killed(self) -> bool:
        return self._killed

    def stop(self) -> None:
        if not self.over and not self.stopped:
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

    def head(self) -> Fields:
        """What stands before the items of a response."""
        status = "200" if self.failure is None or self.head_sent else str(status_of(self.failure))
        return [
            (":status", status),
            ("content-type", NATIVE),
            ("dynamo-max-message", str(self.connection.options.max_message_bytes)),
        ]

    def refuse(self, error: DynamoError) -> None:
        self._fail(error, Retry.SAFE)

    def fail(self, error: DynamoError) -> None:
        self._fail(error, None)

    def _fail(self, error: DynamoError, retry: Retry | None) -> None:
        if not self.out_done:
            self.out_done = True
            self.failure, self.failure_retry = error, retry
            self.connection.wants_to_send(self)

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
        self.over = self.out_done = True
        self.queue.clear()
        self.end_input(error)
        self._release()
        _wake(self._writable)
        self.connection.finished(self)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
