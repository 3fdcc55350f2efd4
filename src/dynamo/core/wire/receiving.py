"""The receiving half of a stream: whole items for the application, credit for the sender."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from io import BytesIO

from dynamo.core.errors import DynamoError, WireError
from dynamo.core.ports.request_plane import Payload
from dynamo.core.wire.frames import (
    F_END,
    F_MORE,
    F_RAW,
    ITEM_COST,
    MAX_CREDIT,
    WINDOW,
    number_frame,
    unpack_u64,
)
from dynamo.core.wire.sending import Sending, too_large

NEVER = sys.maxsize  # credit is not given back any more


NO_ITEMS: deque[Payload] = deque(maxlen=0)
"""Of all streams that nothing has arrived for: an empty deque takes 600 bytes, and time to make."""


class StreamFailure(Exception):
    """What arrived ends this stream, with ``error``, and nothing else."""

    def __init__(self, error: DynamoError) -> None:
        super().__init__(error)
        self.error = error


class Assembly:
    """An item that arrives in fragments, put together where it stays.

    BytesIO gives its buffer out as ``bytes`` without a copy, and lets others write into it before: a
    bytearray would have to be copied once more, which for 16 MiB takes as long as receiving it.
    """

    __slots__ = ("_file", "filled", "raw", "size", "total")

    def __init__(self, total: int, raw: bool, size: int) -> None:
        self.total = total
        self.raw = raw
        self.filled = self.size = 0
        self._file = BytesIO()
        if size:
            self._grow(size)

    def room(self, size: int, whole: bool) -> memoryview:
        """Where the next ``size`` bytes go. Only ``whole`` allows memory for more than what has been sent."""
        needed = self.filled + size
        if needed > self.size:
            self._grow(self.total if whole else min(self.total, max(needed, 2 * self.size)))
        return self._file.getbuffer()[self.filled : needed]

    def _grow(self, size: int) -> None:
        self._file.seek(size - 1)
        self._file.write(b"\0")
        self.size = size

    def payload(self) -> Payload:
        """The item, once it is whole; a copy only if somebody still holds what ``room`` gave."""
        data = self._file.getvalue()
        return memoryview(data) if self.raw else data


class Receiving(Sending):
    """What comes in on one stream, in order.

    Credit of items taken collects in ``_owed`` until it is ``_give_at``: half of the window, or at once while
    an item is incomplete.
    """

    __slots__ = (
        "_answered",
        "_asked",
        "_assembly",
        "_error",
        "_extra",
        "_give_at",
        "_in_credit",
        "_in_done",
        "_items",
        "_needed",
        "_owed",
        "_quick",
        "_reserved",
        "_window",
        "on_readable",
        "received",
    )

    received: int  # items taken
    on_readable: Callable[[], None] | None
    _items: deque[Payload]  # NO_ITEMS until the first one
    _window: int
    _in_credit: int  # what the peer may still send
    _owed: int  # credit of items taken that was not given back yet
    _give_at: int
    _quick: bool  # no item is incomplete and the input is open
    _assembly: Assembly | None
    _needed: int  # excess of the announced item that was not granted yet
    _asked: bool  # for it, from the budget
    _extra: int  # granted
    _reserved: int  # of the budget, for the window
    _in_done: bool
    _answered: bool
    _error: DynamoError | None

    def receive_nowait(self) -> Payload | None:
        """Take the next item and give its credit back; None if none is here.

        None also tells that a reader waits: an item larger than the window is granted to such only.
        """
        items = self._items
        if items:
            payload = items.popleft()
            self.received += 1
            owed = self._owed + len(payload) + ITEM_COST
            if owed < self._give_at:
                self._owed = owed
            else:
                self._give_back(owed)
            return payload
        if self._needed and not self._asked:
            self._ask()
        return None

    def ready(self) -> bool:
        """There is an item to take, or ``ended``; False tells the same as None of ``receive_nowait``."""
        if self._items or self._in_done:
            return True
        if self._needed and not self._asked:
            self._ask()
        return bool(self._items)

    @property
    def ended(self) -> bool:
        """No further item will come and all were taken."""
        return self._in_done and not self._items

    @property
    def error(self) -> DynamoError | None:
        """Why it ended; None for a clean end or while it runs."""
        return self._error if self._in_done and not self._items else None

    @property
    def answered(self) -> bool:
        """Anything of the response arrived."""
        return self._answered or self.received > 0 or bool(self._items)

    # Receiving.

    def _receive(self, flags: int, body: memoryview, placed: bool = False) -> Payload | None:
        """An item or a fragment arrived; the item if it is whole. ``placed``: the bytes are in the assembly.

        Raises StreamFailure.
        """
        if self._in_done:
            raise StreamFailure(WireError("an item came after the end of the input"))
        if flags & F_MORE and flags & F_END:
            raise StreamFailure(WireError("a frame has both MORE and END"))
        size, assembly, limit = len(body), self._assembly, self._connection._max_receive
        if assembly is None:
            if flags & F_MORE:
                self._begin_assembly(flags, body, limit)
                return None
            if size > limit:
                raise StreamFailure(too_large(size, limit))
            self._spend(size + ITEM_COST)
            return memoryview(bytes(body)) if flags & F_RAW else bytes(body)
        if not assembly_takes(assembly, flags, size):
            raise StreamFailure(
                WireError(
                    f"a fragment of {size} bytes in an item of {assembly.total} with {assembly.filled} there"
                )
            )
        self._spend(size if flags & F_MORE else size + ITEM_COST)
        if not placed:
            assembly.room(size, self._needed == 0)[:] = body
        assembly.filled += size
        if flags & F_MORE:
            return None
        self._assembly = None
        self._quick = True
        self._give_at = self._window // 2
        self._forget()
        return assembly.payload()

    def _begin_assembly(self, flags: int, body: memoryview, limit: int) -> None:
        size = len(body) - 8
        total = unpack_u64(body)[0] if size >= 0 else 0
        if size < 0 or not size < total <= MAX_CREDIT:
            raise StreamFailure(
                WireError(f"a first fragment with {max(size, 0)} bytes of an item of {total}")
            )
        if total > limit:
            raise StreamFailure(too_large(total, limit))
        self._spend(size)
        excess = total + ITEM_COST - self._window
        assembly = self._assembly = Assembly(total, bool(flags & F_RAW), total if excess <= 0 else size)
        assembly.room(size, excess <= 0)[:] = body[8:]
        assembly.filled = size
        self._quick = False
        self._answered = True
        self._give_at = 0  # while it is incomplete, credit goes back at once
        if self._owed:
            self._give_back(self._owed)
        if excess > 0:
            self._needed = excess
            if self.on_readable is not None and not self._items:
                self._ask()

    def _begin(self, payload: Payload | None, end: bool) -> None:
        """The call is whole (listener): its first item is part of the request, which takes it."""
        self._first = False
        self.request.payload = payload
        self.request.end = end
        if end:
            self._close_input()
        elif payload is not None:
            owed = self._owed + len(payload) + ITEM_COST
            if owed < self._give_at:
                self._owed = owed
            else:
                self._give_back(owed)

    def _secure_input(self) -> bool:
        """Memory for the input of a call, window and announced first item (listener): now, or not at all."""
        budget = self._connection._budget
        if not budget.reserve(self._window):
            return False
        self._reserved = self._window
        if needed := self._needed:
            if not budget.grant_now(needed):
                self._release()
                return False
            self.granted(needed)
        return True

    def _place(self, flags: int, size: int) -> memoryview | None:
        """Where to receive the body of a further fragment; None if it is none, or not a right one.

        Nor for the last: whoever received it still holds the place while ``payload`` is called.
        """
        assembly = self._assembly
        if assembly is None or not assembly_takes(assembly, flags, size) or size > self._in_credit:
            return None
        if not flags & F_MORE:
            return None
        return assembly.room(size, self._needed == 0)

    def _spend(self, cost: int) -> None:
        credit = self._in_credit - cost
        if credit < 0:
            raise StreamFailure(WireError(f"{-credit} bytes more than the window of {self._window} allows"))
        self._in_credit = credit

    def _wake_reader(self) -> None:
        if (hook := self.on_readable) is not None:
            self.on_readable = None
            hook()

    def _give_back(self, owed: int) -> None:
        if (
            extra := self._extra
        ):  # only one grant at a time, and the item that it was for is the one that was taken
            self._extra = 0
            owed -= extra
            self._connection._budget.give_grant(extra)
        self._owed = 0
        self._in_credit += owed
        self._out.answer(number_frame(WINDOW, self.id, owed))

    def _ask(self) -> None:
        self._asked = True
        self._connection._budget.ask(self, self._needed)

    def granted(self, size: int) -> None:
        """The budget has room for the excess of the announced item."""
        self._asked = False
        self._needed = 0
        self._extra = size
        self._in_credit += size
        self._out.answer(number_frame(WINDOW, self.id, size))

    def _forget(self) -> None:
        """The item is whole, or will not come."""
        self._needed = 0
        if self._asked:
            self._asked = False
            self._connection._budget.forget(self)

    def _end_input(self) -> None:
        """The peer sends no more items."""
        if self._assembly is not None:
            raise StreamFailure(WireError("END came in the middle of an item"))
        if self._in_done:
            raise StreamFailure(WireError("the input ended twice"))
        self._answered = True
        if self._connection._dialer:
            self._finish(None)
            return
        self._close_input()
        self._wake_reader()

    def _close_input(self) -> None:
        self._in_done = True
        self._quick = False
        self._give_at = NEVER
        if self._reserved or self._extra:
            self._release()

    def _release(self) -> None:
        budget = self._connection._budget
        if extra := self._extra:
            self._extra = 0
            budget.give_grant(extra)
        if reserved := self._reserved:
            self._reserved = 0
            budget.give(reserved)


def assembly_takes(assembly: Assembly, flags: int, size: int) -> bool:
    """A further fragment: not empty, not RAW, and whole exactly when MORE is missing."""
    if size == 0 or flags & F_RAW or (flags & F_MORE and flags & F_END):
        return False
    rest = assembly.total - assembly.filled - size
    return rest > 0 if flags & F_MORE else rest == 0
