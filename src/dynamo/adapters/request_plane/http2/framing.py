"""What DATA frames carry: length-delimited items, and the two messages of an open request side.

A message is a byte of flags, a length (u32, big-endian) and so many bytes. ``LAST``: nothing comes after it
from this side. ``NO_ITEM``: only its flags count, and its length is 0. ``STOP``: finish early.
"""

from __future__ import annotations

import struct
from typing import cast

from dynamo.core.errors import DynamoError, WireError
from dynamo.core.wire.receiving import Assembly
from dynamo.core.wire.sending import too_large

RAW, LAST, NO_ITEM, STOP = 1, 2, 4, 8
KNOWN = RAW | LAST | NO_ITEM | STOP
PREFIX_BYTES = 5

pack_prefix = struct.Struct(">BI").pack
_unpack_prefix = struct.Struct(">BI").unpack_from

END_MESSAGE = pack_prefix(LAST | NO_ITEM, 0)
STOP_MESSAGE = pack_prefix(STOP | NO_ITEM, 0)


class Messages:
    """Puts messages together out of what arrives. Up to ``room`` bytes are kept for one that has begun; once
    ``has_grant`` is set, as many as it announced.
    """

    __slots__ = ("_assembly", "_flags", "_limit", "_room", "_start", "has_grant", "incomplete")

    def __init__(self, limit: int, room: int) -> None:
        self._limit, self._room = limit, room
        self.has_grant = False
        self.incomplete = False  # something has begun that is not whole
        self._start = b""  # of a message whose length is not here yet
        self._flags = 0
        self._assembly: Assembly | None = None  # of the message whose body is not whole

    @property
    def needed(self) -> int:
        """Bytes of the message that is incomplete, 0 if none is or its length is not here yet."""
        return 0 if self._assembly is None else self._assembly.total + PREFIX_BYTES

    def feed(self, data: bytes) -> tuple[list[tuple[int, bytes]], DynamoError | None]:
        """Flags and body of each message that is whole now, and what is wrong with what follows them."""
        whole: list[tuple[int, bytes]] = []
        at = 0
        if self._assembly is not None:
            at = self._fill(self._assembly, data)
            if self._assembly.filled < self._assembly.total:
                return whole, None
            whole.append((self._flags, cast(bytes, self._assembly.payload())))
            self._assembly, self.incomplete = None, False
        elif self._start:
            data, self._start, self.incomplete = self._start + data, b"", False
        end = len(data)
        while end - at >= PREFIX_BYTES:
            flags, length = _unpack_prefix(data, at)
            if flags > KNOWN or (flags & NO_ITEM and length):
                return whole, WireError(f"a message with flags {flags} and {length} bytes")
            if length > self._limit:
                return whole, too_large(length, self._limit)
            at += PREFIX_BYTES
            after = at + length
            if after > end:
                self._flags, self.has_grant, self.incomplete = flags, False, True
                known = length if length <= self._room else end - at
                self._assembly = Assembly(length, raw=False, size=known)
                self._fill(self._assembly, data[at:])
                return whole, None
            whole.append((flags, data[at:after]))
            at = after
        if at < end:
            self._start, self.incomplete = data[at:], True
        return whole, None

    def _fill(self, assembly: Assembly, data: bytes) -> int:
        """The bytes that it took."""
        size = min(len(data), assembly.total - assembly.filled)
        part = data if size == len(data) else memoryview(data)[:size]
        assembly.room(size, self.has_grant)[:] = part
        assembly.filled += size
        return size
