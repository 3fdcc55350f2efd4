"""Bytes to frames: one parse loop for each read, and large bodies received where they will stay."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from dynamo.core.wire.frames import F_END, F_RAW, HEADER_BYTES, ITEM, ITEM_COST, MAGIC, unpack_header
from dynamo.core.wire.receiving import NO_ITEMS
from dynamo.core.wire.stream import Stream

OPENING_BYTES = 2048  # until the opening is done, so that silent connections cost next to nothing
BUFFER_BYTES = 64 * 1024
DIRECT_BYTES = 8 * 1024  # a body of which so much is still to come gets a buffer of its own


class Receiver(Protocol):
    """What is told of frames. It stops the reader when it wants no more."""

    def on_magic(self, found: bytes) -> None:
        """The first bytes, or so many of them that they are certainly wrong."""

    def on_header(self, length: int, kind: int, zero: int) -> None:
        """A frame began and is not whole yet."""

    def on_frame(self, kind: int, flags: int, zero: int, number: int, body: memoryview, placed: bool) -> None:
        """A frame; ``placed``: its body is in the assembly of its stream already."""


class Reader:
    """Whole items go to ``streams`` directly, without a call for each; all else goes to ``receiver``."""

    __slots__ = (
        "_body",
        "_body_frame",
        "_body_left",
        "_buffer",
        "_end",
        "_receiver",
        "_start",
        "_view",
        "greeted",
        "heard",
        "quick_limit",
        "stopped",
        "streams",
    )

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.streams: dict[int, Stream] = {}
        self.quick_limit = 0  # bytes of an item
        self.heard = False  # anything since somebody cleared it
        self.stopped = False  # what comes is thrown away
        self.greeted = False  # the magic was read
        self._buffer = bytearray(OPENING_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._body: memoryview | None = None  # what is still to be received of it
        self._body_left = 0
        self._body_frame: tuple[int, int, int, memoryview, bool] = (0, 0, 0, memoryview(b""), False)

    def get_buffer(self, hint: int = -1) -> memoryview:
        """Where the next bytes go; never empty. ``hint`` is asyncio's, and not used."""
        body = self._body
        return self._view[self._end :] if body is None else body

    def buffer_updated(self, count: int) -> None:
        """``count`` bytes were put where ``get_buffer`` said."""
        self.heard = True
        if self.stopped:
            return
        if (body := self._body) is not None:
            left = self._body_left = self._body_left - count
            if left:
                self._body = body[count:]
                return
            self._body = None
            kind, flags, stream, whole, placed = self._body_frame
            self._body_frame = (0, 0, 0, memoryview(b""), False)
            self._receiver.on_frame(kind, flags, 0, stream, whole, placed)
            return
        self._end += count
        self._parse()

    def _parse(self) -> None:
        view, buffer, position, end = self._view, self._buffer, self._start, self._end
        on_frame, quick_limit, unpack = self._receiver.on_frame, self.quick_limit, unpack_header
        if not self.greeted:
            if end < len(MAGIC):
                if not MAGIC.startswith(view[:end]):
                    self._receiver.on_magic(bytes(view[:end]))
                return
            self._receiver.on_magic(bytes(view[: len(MAGIC)]))
            self.greeted = not self.stopped
            position = len(MAGIC)
        # Looked up again after each frame of the long way: it may have changed them.
        get, no_items = self.streams.get, NO_ITEMS
        while end - position >= HEADER_BYTES and not self.stopped:
            length, kind, flags, zero, number = unpack(buffer, position)
            start = position + HEADER_BYTES
            stop = start + length
            if stop > end:
                self._receiver.on_header(length, kind, zero)
                if not self.stopped:
                    position = self._incomplete(position, length, kind, flags, number)
                    if self._body is not None:
                        end = position
                break
            position = stop
            if kind == ITEM and not zero and flags in _WHOLE and length <= quick_limit:
                stream = get(number)
                if stream is not None and stream._quick:
                    credit = stream._in_credit - length - ITEM_COST
                    if credit >= 0:
                        stream._in_credit = credit
                        payload = bytes(view[start:stop])
                        items = stream._items
                        if items is no_items:
                            items = stream._items = deque()
                        if not flags:
                            items.append(payload)
                        else:
                            items.append(memoryview(payload) if flags & F_RAW else payload)
                            if flags & F_END:
                                stream._end_input()
                                quick_limit, get = self.quick_limit, self.streams.get
                        hook = stream.on_readable
                        if hook is not None:
                            stream.on_readable = None
                            hook()
                        continue
            on_frame(kind, flags, zero, number, view[start:stop], False)
            quick_limit, get = self.quick_limit, self.streams.get
        if position == end and len(buffer) == BUFFER_BYTES:
            self._start = self._end = 0
        else:
            self._keep(position, end)

    def _incomplete(self, position: int, length: int, kind: int, flags: int, number: int) -> int:
        """Where parsing stopped. A large body goes on in a buffer of its own, or in that of its item."""
        start = position + HEADER_BYTES
        there = self._end - start
        if length - there < DIRECT_BYTES and HEADER_BYTES + length <= len(self._buffer):
            return position
        body = None
        if kind == ITEM and (stream := self.streams.get(number)) is not None:
            body = stream._place(flags, length)
        placed = body is not None
        if body is None:
            body = memoryview(bytearray(length))
        body[:there] = self._view[start : self._end]
        self._body_frame = (kind, flags, number, body, placed)
        self._body_left = length - there
        self._body = body[there:]
        return self._end

    def _keep(self, position: int, end: int) -> None:
        """Move what is left to the front if there is little room behind it."""
        if self.stopped or position == end:
            position = end = 0
            if self.quick_limit and len(self._buffer) < BUFFER_BYTES:
                self._replace(0, 0)
        elif len(self._buffer) - end < len(self._buffer) // 4:
            if self.quick_limit and len(self._buffer) < BUFFER_BYTES:
                self._replace(position, end)
            elif position:
                self._buffer[: end - position] = self._buffer[position:end]
            position, end = 0, end - position
        self._start, self._end = position, end

    def _replace(self, position: int, end: int) -> None:
        """The opening is done: from now on receive into a larger buffer."""
        larger = bytearray(BUFFER_BYTES)
        larger[: end - position] = self._view[position:end]
        self._buffer = larger
        self._view = memoryview(larger)


_WHOLE = frozenset({0, F_RAW, F_END, F_RAW | F_END})
