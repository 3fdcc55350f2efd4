"""One end of a call. The two share no state: they talk by messages, handed over once per loop tick."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from dynamo.core import errors
from dynamo.core.errors import DynamoError, Retry, TooLargeError
from dynamo.core.ports.request_plane import Payload

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.mem.plane import MemRequestPlane

ITEM_COST = 64  # bytes that an item costs beyond its length, so that empty ones are bounded too

Message: TypeAlias = "Callable[[Any], None] | Payload | None"
"""What is told to the peer: most often an item, None for a clean end of the items, else what to do there."""

NOTHING_QUEUED: deque[tuple[Payload | None, bool]] = deque(maxlen=0)
NO_ITEMS: deque[Payload] = deque(maxlen=0)
"""Of all ends that nothing has arrived for: an empty deque takes 600 bytes, and time to make."""


def cost_of(payload: Payload) -> int:
    """What an item takes from the window."""
    return (payload.nbytes if type(payload) is memoryview else len(payload)) + ITEM_COST


def check_size(payload: Payload, limit: int) -> None:
    """Raise TooLargeError for an item past the limit of one of the sides."""
    if (size := cost_of(payload) - ITEM_COST) > limit:
        raise TooLargeError(
            f"an item of {size} bytes is over the limit of {limit} (DYN_TCP_MAX_MESSAGE_SIZE); "
            "split it, or raise the limit on both sides"
        )


def snapshot(payload: Payload) -> Payload:
    """What a wire would deliver: nothing that the sender can still change or release."""
    if type(payload) is not memoryview:
        return payload
    kept = type(payload.obj) is bytes and payload.c_contiguous
    return payload.cast("B") if kept else memoryview(payload.tobytes())


def twin(error: DynamoError, retry: Retry | None = None) -> DynamoError:
    """The error as it arrives: class (of ours), text, verdict and fields, without cause and traceback."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    arrived: DynamoError = kind(str(error))
    for field in ("retry", "remote", "type_name", "status", "detail", "received"):
        if hasattr(error, field):
            setattr(arrived, field, getattr(error, field))
    if retry is not None:
        arrived.retry = retry
    return arrived


class Budget:
    """Bytes that items larger than a window may fill on one plane, granted first come, first served.

    Only a reader that waits asks: it takes the item once it is there, so one that sleeps keeps nothing from
    the others. An item larger than the whole budget passes alone.
    """

    def __init__(self, total: int) -> None:
        self._free = self._total = total
        self._asking: deque[End] = deque()

    @property
    def used(self) -> int:
        """0 when nothing larger than a window is on its way."""
        return self._total - self._free

    def fits(self, size: int) -> bool:
        return size <= self._free or self._free == self._total

    def ask(self, end: End) -> None:
        if end not in self._asking:
            self._asking.append(end)
            self._settle()

    def give_back(self, size: int) -> None:
        self._free += size
        self._settle()

    def forget(self, end: End) -> None:
        if end in self._asking:
            self._asking.remove(end)
            self._settle()

    def _settle(self) -> None:
        while self._asking and self.fits(self._asking[0].promised):
            end = self._asking.popleft()
            self._free -= end.promised
            end.grant()


class End:
    """It touches its own state only, on its own loop; the peer is reached by ``_post``."""

    __slots__ = (
        "_announced", "_asking", "_credit", "_error", "_failure", "_half", "_held", "_inbox", "_input_over",
        "_limit", "_loop", "_outbox", "_output_over", "_owed", "_peer", "_peer_window", "_queued",
        "_readable", "_scheduled", "_window", "_writable", "ended", "plane", "promised", "received",
    )  # fmt: skip

    # Set by Call, in one go.
    plane: MemRequestPlane
    _loop: asyncio.AbstractEventLoop
    _peer: End | None
    _limit: int  # of an item's bytes, on either side
    _scheduled: bool
    _outbox: list[Message] | None  # what is to be handed over
    _peer_window: int
    _credit: int
    _queued: deque[tuple[Payload | None, bool]]  # what the window does not let through; (None, True): the end
    _announced: bool  # the first of them, as larger than the window
    _output_over: bool
    _failure: DynamoError | None
    _writable: asyncio.Future[None] | None
    _inbox: deque[Payload]  # NO_ITEMS until the first one
    _window: int
    _half: int
    _owed: int  # credit of items taken; goes back when it is much, or the reader waits
    _asking: bool  # the reader wants an item and none is here
    promised: int  # what the announced item needs beyond the window
    _held: int  # what it got of the budget
    _input_over: bool
    ended: bool  # that, and all was taken
    _error: DynamoError | None
    _readable: asyncio.Future[None] | None
    received: int

    def send(self, payload: Payload, *, end: bool = False) -> bool:
        if (
            type(payload) is bytes
            and (size := len(payload)) <= self._limit
            and (credit := self._credit - size - ITEM_COST) >= 0
            and not self._queued
            and not self._output_over
        ):
            self._credit = credit
            if (outbox := self._outbox) is None:
                outbox = self._outbox = []
            outbox.append(payload)
            if end:
                self._output_over = True
                self._end_output()
                return True
            if not self._scheduled:
                self._schedule()
            return credit > 0
        check_size(payload, self._limit)
        if not self._output_over:
            self._output_over = end
            self._queue(snapshot(payload), end)
        return self._has_room

    def end(self) -> None:
        if not self._output_over:
            self._output_over = True
            if self._queued:
                self._queued.append((None, True))
            else:
                self._end_output()

    @property
    def _has_room(self) -> bool:
        return self._output_over or (not self._queued and self._credit > 0)

    async def writable(self) -> None:
        while not self._has_room:
            self._writable = self._loop.create_future()
            await self._writable

    def receive_nowait(self) -> Payload | None:
        inbox = self._inbox
        if not inbox:
            if not self._asking:
                self._ask()
            return None
        payload = inbox.popleft()
        if self._input_over and not inbox:
            self.ended = True
        self.received += 1
        owed = self._owed = self._owed + len(payload) + ITEM_COST
        if owed > self._half:
            self._give_back(len(payload) + ITEM_COST)
        return payload

    def _give_back(self, cost: int) -> None:
        """Much is owed. ``cost`` is that of the item just taken, whose excess the budget bore."""
        if (excess := cost - self._window) > 0:
            self._owed -= excess
            self._release()
        if not self._scheduled:
            self._schedule()

    @property
    def error(self) -> DynamoError | None:
        return self._error if self.ended else None

    async def wait(self) -> None:
        while not self._inbox and not self._input_over:
            if not self._asking:
                self._ask()
            readable = self._readable = self._loop.create_future()
            await readable

    @abstractmethod
    def break_off(self, reason: str) -> None:
        """The link to the peer is gone."""

    @abstractmethod
    def _end_output(self) -> None:
        """Nothing is left to be sent before the end, or before ``_failure``: tell the peer."""

    @abstractmethod
    def _end_input(self, error: DynamoError | None) -> None:
        """The peer sends no more items."""

    # The link: what was posted in one tick goes together, to another thread through its loop's own door.

    def _post(self, message: Message) -> None:
        if (outbox := self._outbox) is None:
            outbox = self._outbox = []
        outbox.append(message)
        self.plane.urgent = True
        if not self._scheduled:
            self._schedule()

    @property
    def waiting(self) -> int:
        """What was posted and not handed over yet."""
        return 0 if self._outbox is None else len(self._outbox)

    def _schedule(self) -> None:
        self._scheduled = True
        plane = self.plane
        if not plane.posting:
            plane.flush_soon()
        plane.posting.append(self)

    def flush(self) -> None:
        """Hand over what was posted."""
        self._scheduled = False
        batch, self._outbox = self._outbox or [], None
        credit, self._owed = self._owed, 0
        if (peer := self._peer) is None:
            return
        if self._output_over and self._input_over and not self._queued:
            self._peer = None  # nothing more to say; the two would keep each other for the garbage collector
        if peer._loop is self._loop:
            peer._deliver(batch, credit)
            return
        try:
            peer._loop.call_soon_threadsafe(peer._deliver, batch, credit)
        except RuntimeError:  # the loop is closed
            self.break_off("the event loop of the other side was closed")

    def _deliver(self, batch: list[Message], credit: int) -> None:
        if credit:
            self._credited(credit)
        inbox = self._inbox
        for message in batch:
            if message is None:
                self._end_input(None)
            elif isinstance(message, (bytes, memoryview)):
                if not self._input_over:
                    if inbox is NO_ITEMS:
                        inbox = self._inbox = deque()
                    inbox.append(message)
            else:
                message(self)
        if inbox:
            self._asking = False
            if (waiter := self._readable) is not None:
                self._readable = None
                wake(waiter)

    # Sending, as the window allows.

    def _queue(self, payload: Payload | None, end: bool) -> None:
        if self._queued is NOTHING_QUEUED:
            self._queued = deque()
        self._queued.append((payload, end))
        self._pump()

    def _pump(self) -> None:
        while self._queued:
            payload, end = self._queued[0]
            cost = 0 if payload is None else cost_of(payload)
            if cost > self._credit:
                if cost > self._peer_window and not self._announced:
                    self._announced = True
                    self._announce(cost - self._peer_window)
                return
            self._queued.popleft()
            self._announced = False
            self._credit -= cost
            self._transmit(payload, end)

    def _announce(self, size: int) -> None:
        self._post(lambda peer: peer._promise(size))

    def _transmit(self, payload: Payload | None, end: bool) -> None:
        if payload is not None:
            if self._outbox is None:
                self._outbox = []
            self._outbox.append(payload)
        if end:
            self._end_output()
        elif not self._scheduled:
            self._schedule()

    def _credited(self, size: int) -> None:
        self._credit += size
        self._pump()
        if (waiter := self._writable) is not None and self._has_room:
            wake(waiter)

    # Receiving.

    def _close_input(self, error: DynamoError | None) -> None:
        self._input_over, self._error = True, error
        self.ended = not self._inbox
        if (waiter := self._readable) is not None:
            self._readable = None
            wake(waiter)

    def _ask(self) -> None:
        self._asking = True
        if self._owed and not self._scheduled:
            self._schedule()
        if self.promised:
            self.plane.budget.ask(self)

    def _promise(self, size: int) -> None:
        if not self._input_over:
            self.promised = size
            if self._asking and not self._inbox:
                self._ask()

    def grant(self) -> None:
        """The budget has room for the announced item."""
        self._held = size = self.promised
        self.promised = 0
        self._post(lambda peer: peer._credited(size))

    def _release(self) -> None:
        held, self._held = self._held, 0
        self.plane.budget.give_back(held)


def wake(waiter: asyncio.Future[None]) -> None:
    """End a wait; it may have been cancelled in the meantime."""
    if not waiter.done():
        waiter.set_result(None)
