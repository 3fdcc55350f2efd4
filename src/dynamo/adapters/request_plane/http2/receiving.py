"""The receiving half of a call: whole items for the application, whose window opens as it takes them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.adapters.request_plane.http2.framing import LAST, NO_ITEM, PREFIX_BYTES, RAW, STOP, Messages
from dynamo.adapters.request_plane.http2.sending import wake
from dynamo.core.errors import DynamoError, WireError
from dynamo.core.ports.request_plane import Payload

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection


class Receiving:
    """``window`` is what the peer may send unread, reserved of the budget in ``reserved``; ``in_credit`` what
    it may still send now, ``_owed`` what was taken and not given back yet.
    """

    connection: Http2Connection
    on_cancel: Callable[[bool], object] | None
    _stopped: bool
    on_first: Callable[[], None] | None  # the first item is here

    def __init__(self, window: int, in_credit: int, max_receive: int) -> None:
        self.window = window
        self.in_credit = in_credit
        self.reserved = 0
        self.in_done = False
        self._owed = 0
        self.granted_bytes = 0  # of the budget, granted beyond the window
        self._asked = False  # for that
        self._wants = False  # a reader waits
        self._messages = Messages(max_receive, window)
        self._items: deque[Payload] = deque()
        self._received = 0
        self._error: DynamoError | None = None
        self._readable: asyncio.Future[None] | None = None

    def receive_nowait(self) -> Payload | None:
        if not self._items:
            self._want()
            return None
        payload = self._items.popleft()
        self._received += 1
        cost = len(payload) + PREFIX_BYTES
        if self.granted_bytes and cost > self.window:
            cost -= self.granted_bytes
            self._release_held()
        self._owe(cost)
        return payload

    @property
    def ended(self) -> bool:
        return self.in_done and not self._items

    @property
    def error(self) -> DynamoError | None:
        return self._error if self.in_done and not self._items else None

    @property
    def received(self) -> int:
        return self._received

    async def wait(self) -> None:
        while not self._items and not self.in_done:
            self._want()
            self._readable = asyncio.get_running_loop().create_future()
            await self._readable

    def arrived(self, data: bytes) -> None:
        """Bytes of the direction that comes in. Raises WireError, TooLargeError."""
        items, last = self._items, self.in_done
        messages, error = self._messages.feed(data)
        for flags, body in messages:
            if flags or last or self.on_first is not None:
                last = self._message(flags, body, last)
            else:
                items.append(body)
        if messages and items:
            self._wants = False
            wake(self._readable)
        if error is not None:
            raise error
        if last and not self.in_done:
            self.end_input(None)
        elif self._messages.incomplete:
            self._owe(0)
            if self._wants:
                self._want()

    def _message(self, flags: int, body: bytes, last: bool) -> bool:
        """True if it is the last one."""
        if last and not flags & NO_ITEM:
            raise WireError("something came after the end of the input")
        if flags & STOP and not self._stopped:
            self._stopped = True
            if self.on_cancel is not None:
                self.on_cancel(False)
        if flags & NO_ITEM:
            self._owe(PREFIX_BYTES)
        else:
            self._items.append(memoryview(body) if flags & RAW else body)
            if (first := self.on_first) is not None:
                self.on_first = None
                first()
        return last or bool(flags & LAST)

    @property
    def buffered(self) -> int:
        """Whole items that were not taken."""
        return len(self._items)

    @property
    def excess(self) -> int:
        """What the incomplete item needs beyond the window."""
        return max(0, self._messages.needed - self.window) if not self.granted_bytes else 0

    def take_first(self) -> Payload | None:
        """The first item of a request, which becomes part of it."""
        payload = self.receive_nowait()
        self._received = 0
        return payload

    def end_input(self, error: DynamoError | None) -> None:
        """Nothing more comes in."""
        if not self.in_done:
            if error is None and self._messages.incomplete:
                error = WireError("the input ended in the middle of an item")
            self.in_done, self._error = True, error
            self.release()
        wake(self._readable)

    def _want(self) -> None:
        self._wants = True
        if not self.in_done and not self._items and not self._asked and (excess := self.excess):
            self._asked = True
            self.connection.budget.ask(self, excess)

    def widen(self, window: int) -> None:
        """The peer may send so much unread from now on."""
        if window > self.window:
            difference, self.window = window - self.window, window
            self._give(difference)

    def pad(self, size: int) -> None:
        """So much of what came was nothing."""
        self._give(size)

    def granted(self, size: int) -> None:
        """The budget has room for the item that is larger than the window."""
        self._asked = False
        self.granted_bytes = size
        self._messages.has_grant = True
        self._give(size)

    @abstractmethod
    def _give(self, size: int) -> None:
        """Let the peer send so much more."""

    def _owe(self, cost: int) -> None:
        owed = self._owed = self._owed + cost
        waits_for_more = self._messages.incomplete and not self._items
        if (waits_for_more or 2 * owed >= self.window) and owed and not self.in_done:
            self._owed = 0
            self._give(owed)

    def _release_held(self) -> None:
        held, self.granted_bytes = self.granted_bytes, 0
        if held:
            self.connection.budget.give_grant(held)

    def release(self) -> None:
        """Nothing more of it needs the budget."""
        if self._asked:
            self._asked = False
            self.connection.budget.forget(self)
        self._release_held()
        if reserved := self.reserved:
            self.reserved = 0
            self.connection.budget.give(reserved)
