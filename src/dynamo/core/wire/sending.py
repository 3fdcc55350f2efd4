"""The sending half of a stream: small items at once, the rest as window and link allow."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from dynamo.core.errors import DynamoError, TooLargeError
from dynamo.core.ports.request_plane import Payload, Request
from dynamo.core.wire.frames import (
    END,
    ERROR,
    F_END,
    F_ITEM,
    F_MORE,
    F_RAW,
    HEADER_BYTES,
    ITEM,
    ITEM_COST,
    MAX_BODY,
    OPEN,
    STOP,
    header,
    pack_header,
    pack_item,
    pack_u32,
    pack_u64,
)
from dynamo.core.wire.outbox import Buffer, Outbox

if TYPE_CHECKING:
    from dynamo.core.wire.connection import Connection

ERROR_ENTRY = -1  # in place of flags: the entry's payload is the body of ERROR
NONE_PENDING: deque[tuple[Payload | None, int, int]] = deque(maxlen=0)
"""Of all streams that never had to wait: an empty deque takes 600 bytes."""


class Sending:
    """What goes out on one stream, in order.

    ``_pending`` holds what could not go at once. As long as it holds something, and once nothing more may be
    sent, ``_small`` is -1, so that ``send`` takes the long way.
    """

    __slots__ = (
        "__weakref__",
        "_blocked",
        "_busy",
        "_connection",
        "_credit",
        "_first",
        "_half",
        "_head",
        "_offset",
        "_open_at",
        "_open_index",
        "_out",
        "_out_done",
        "_pending",
        "_small",
        "_view",
        "_window_out",
        "id",
        "on_writable",
        "over",
        "request",
        "stopped",
    )

    # Set by Stream, in one go: a call costs a few microseconds in all.
    _connection: Connection
    _out: Outbox
    request: Request
    id: int  # given when OPEN is queued
    over: bool  # both directions
    stopped: bool  # the caller asked to finish; on its own side: has asked
    on_writable: Callable[[], None] | None
    _head: bytes | None  # of OPEN, until that is queued
    _open_at: int  # Outbox.takes when OPEN was queued: while it is the same, OPEN was not handed out
    _open_index: int  # in Outbox.frames
    _first: bool  # dialer: the first of _pending belongs into OPEN; listener: it is not whole yet
    _credit: int
    _window_out: int  # of the peer
    _half: int  # what a small item may cost
    _small: int
    _pending: deque[tuple[Payload | None, int, int]]  # payload, length, flags
    _view: memoryview | None  # of the item that is being sent in fragments
    _offset: int
    _blocked: bool  # by credit
    _busy: bool  # in Outbox.busy
    _out_done: bool  # the end is queued or sent

    @abstractmethod
    def _opened(self) -> None: ...

    @abstractmethod
    def _finish(self, error: DynamoError | None) -> None: ...

    def send(self, payload: Payload, *, end: bool = False) -> bool:
        """Queue one item, with ``end`` as the last one; False: wait until ``can_send`` before sending more.

        Never waits, and never drops an item while the call lives; afterwards it does. Raises TooLargeError.
        """
        if type(payload) is bytes and not end:
            cost = len(payload) + ITEM_COST
            out = self._out
            if (
                cost <= self._small
                and (credit := self._credit - cost) >= 0
                and (room := out.room - cost) >= 0
            ):
                self._credit = credit
                out.room = room
                frames = out.frames
                frames.append(pack_item(cost - ITEM_COST, ITEM, self.id))
                frames.append(payload)
                return credit > 0
        return self._send(payload, end)

    def _send(self, payload: Payload, end: bool) -> bool:
        """What ``send`` says, for any item and whatever waits."""
        if type(payload) is bytes:
            size, flags = len(payload), 0
        else:
            size, flags = payload.nbytes if type(payload) is memoryview else len(payload), F_RAW
        if end:
            flags |= F_END
        cost, out = size + ITEM_COST, self._out
        if cost <= self._small and cost <= self._credit and out.has_room():
            self._credit -= cost
            out.put(pack_header(size, ITEM, flags, 0, self.id), payload, size + HEADER_BYTES)
            if end:
                self._end_sent()
                out.on_end()
                return True
            return self._credit > 0
        return self._send_later(payload, size, flags)

    def end(self) -> None:
        """Nothing more is sent from here; doing it twice is fine."""
        if self._out_done:
            return
        out = self._out
        if self._pending or self._head is not None:
            self._end_later()
        elif out.end_last(self.id):
            self._end_sent()
            out.on_end()
        elif out.has_room():
            out.queue(header(END, 0, self.id, 0))
            self._end_sent()
            out.on_end()
        else:
            self._end_later()

    @property
    def can_send(self) -> bool:
        """The window has room, or the call is over."""
        return self._out_done or (self._credit > 0 and not self._pending)

    # Sending what could not go at once.

    def _send_later(self, payload: Payload, size: int, flags: int) -> bool:
        if size > self._connection._max_send:
            raise too_large(size, self._connection._max_send)
        if self._out_done:
            return True
        if flags & F_END:
            self._out_done = True
        self._queue((payload, size, flags))
        return self._out_done

    def _end_later(self) -> None:
        self._out_done = True
        self._queue((None, 0, F_END))

    def _queue(self, entry: tuple[Payload | None, int, int]) -> None:
        if self._pending is NONE_PENDING:
            self._pending = deque()
        self._pending.append(entry)
        self._small = -1
        if not self._busy and not self._blocked:
            if (
                len(self._pending) == 1
                and self._head is None
                and self._credit < entry[1] + ITEM_COST <= self._half
            ):
                self._blocked = True
            else:
                self._out.join(self)

    def _credited(self, increment: int) -> None:
        """WINDOW arrived, or HELLO with another window."""
        self._credit += increment
        if self._pending:
            if self._blocked and self._credit > 0:
                self._blocked = False
                if not self._busy:
                    self._out.join(self)
        elif (hook := self.on_writable) is not None and self._credit > 0:
            self.on_writable = None
            hook()

    def _rewindow(self, window: int) -> None:
        """The listener's HELLO said which window the inputs have."""
        difference = window - self._window_out
        self._window_out = window
        self._half = small_limit(window, self._connection._max_send)
        if self._small >= 0:
            self._small = self._half
        if difference:
            self._credited(difference)

    def _emit(self, frames: list[Buffer]) -> int:
        """Append what may go now, about one fragment; its bytes. ``_blocked``: credit is missing for more."""
        pending, size = self._pending, 0
        if self._head is not None:
            size = self._emit_open(frames)
        while pending and size < MAX_BODY and not self._blocked:
            payload, length, flags = pending[0]
            if payload is None or flags == ERROR_ENTRY:
                pending.popleft()
                body = b"" if payload is None else bytes(payload)
                frames.append(header(END if payload is None else ERROR, 0, self.id, len(body)) + body)
                self._end_sent()
                return size + 16 + len(body)
            if self._view is not None:
                size += self._emit_fragment(frames, payload, length, flags)
            elif length + ITEM_COST <= self._half:
                if length + ITEM_COST > self._credit:
                    self._blocked = True
                    break
                self._credit -= length + ITEM_COST
                frames.append(header(ITEM, flags, self.id, length))
                frames.append(payload)
                size += length + 16
                self._sent(flags)
            else:
                data = max(0, min(self._credit, MAX_BODY - 8, length - 1))
                frames.append(header(ITEM, flags & F_RAW | F_MORE, self.id, data + 8) + pack_u64(length))
                self._begin_fragments(frames, payload, data)
                size += data + 24
        if not pending and not self._out_done:
            self._small = self._half
            if self._credit > 0 and (hook := self.on_writable) is not None:
                self.on_writable = None
                hook()
        return size

    def _put_open(self, frames: list[Buffer], head: bytes, payload: Payload | None, length: int) -> int:
        """OPEN with its whole first item, or without one."""
        self._opened()
        flags = F_END if self.request.end else 0
        size = 4 + len(head)
        if payload is None:
            frames.append(pack_header(size, OPEN, flags, 0, self.id) + pack_u32(size - 4) + head)
        else:
            flags |= F_ITEM if type(payload) is bytes else F_ITEM | F_RAW
            self._credit -= length + ITEM_COST
            size += length
            frames.append(pack_header(size, OPEN, flags, 0, self.id) + pack_u32(len(head)) + head)
            frames.append(payload)
        if not flags & F_END and not self._pending and not self._out_done:
            self._small = self._half
        return size + 16

    def _emit_open(self, frames: list[Buffer]) -> int:
        """OPEN that could not go when the call was opened, with the first item or a fragment of it."""
        head, pending = self._head, self._pending
        assert head is not None
        self._head = None
        if not self._first:
            return self._put_open(frames, head, None, 0) + self._emit_stop(frames)
        self._first = False
        payload, length, flags = pending[0]
        assert payload is not None
        if length + ITEM_COST <= self._half and len(head) + length <= MAX_BODY - 4:
            pending.popleft()
            return self._put_open(frames, head, payload, length) + self._emit_stop(frames)
        self._opened()
        data = max(0, min(self._credit, MAX_BODY - len(head) - 12, length - 1))
        size = 12 + len(head) + data
        frames.append(
            pack_header(size, OPEN, flags & F_RAW | F_ITEM | F_MORE, 0, self.id)
            + pack_u32(len(head))
            + head
            + pack_u64(length)
        )
        self._begin_fragments(frames, payload, data)
        return size + 16 + self._emit_stop(frames)

    def _emit_stop(self, frames: list[Buffer]) -> int:
        """STOP, if it was asked for before OPEN could go."""
        if not self.stopped:
            return 0
        frames.append(header(STOP, 0, self.id, 0))
        return 16

    def _begin_fragments(self, frames: list[Buffer], payload: Payload, data: int) -> None:
        self._view = memoryview(payload)
        self._offset = data
        self._credit -= data
        if data:
            frames.append(self._view[:data])

    def _emit_fragment(self, frames: list[Buffer], payload: Payload, length: int, flags: int) -> int:
        view, offset, credit = self._view, self._offset, self._credit
        assert view is not None
        rest = length - offset
        if rest <= MAX_BODY and rest + ITEM_COST <= credit:
            self._credit = credit - rest - ITEM_COST
            frames.append(header(ITEM, flags & F_END, self.id, rest))
            frames.append(view[offset:])
            self._view = None
            self._sent(flags)
            return rest + 16
        data = min(credit, MAX_BODY, rest - 1)
        if data <= 0:
            self._blocked = True
            return 0
        self._credit = credit - data
        frames.append(header(ITEM, F_MORE, self.id, data))
        frames.append(view[offset : offset + data])
        self._offset = offset + data
        return data + 16

    def _sent(self, flags: int) -> None:
        """The first of ``_pending`` is on its way."""
        self._pending.popleft()
        if flags & F_END:
            self._end_sent()

    def _end_sent(self) -> None:
        self._out_done = True
        self._small = -1
        if self._connection._dialer:
            self._wake_writer()
        else:
            self._finish(None)

    def _wake_writer(self) -> None:
        if (hook := self.on_writable) is not None:
            self.on_writable = None
            hook()


def small_limit(window: int, max_message: int) -> int:
    """What an item may cost and still go in one frame, whole or not at all."""
    return min(window // 2, MAX_BODY + ITEM_COST, max_message + ITEM_COST)


def too_large(size: int, limit: int) -> TooLargeError:
    return TooLargeError(
        f"an item of {size} bytes is over the limit of {limit} (DYN_TCP_MAX_MESSAGE_SIZE); "
        "split it, or raise the limit on both sides"
    )
