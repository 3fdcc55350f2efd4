"""What DATA frames carry: length-delimited items, and the two messages of an open request side.

A message is a byte of flags, a length (u32, big-endian) and so many bytes. ``LAST``: nothing comes after it
from this side. ``NO_ITEM``: only its flags count, and its length is 0. ``STOP``: finish early.
"""

from __future__ import annotations

import struct

from dynamo.core.errors import DynamoError, WireError
from dynamo.core.wire.sending import too_large

RAW, LAST, NO_ITEM, STOP = 1, 2, 4, 8
KNOWN = RAW | LAST | NO_ITEM | STOP
PREFIX_BYTES = 5

pack_prefix = struct.Struct(">BI").pack
_unpack_prefix = struct.Struct(">BI").unpack_from

END_MESSAGE = pack_prefix(LAST | NO_ITEM, 0)
STOP_MESSAGE = pack_prefix(STOP | NO_ITEM, 0)


class Messages:
    """Puts messages together out of what arrives."""

    __slots__ = ("_buffer", "_limit", "needed")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer: bytearray | None = None  # the message that is incomplete
        self.needed = 0
        """Bytes of that message, 0 if none is incomplete or its length is not here yet."""

    @property
    def incomplete(self) -> bool:
        return self._buffer is not None

    def feed(self, data: bytes) -> tuple[list[tuple[int, bytes]], DynamoError | None]:
        """Flags and body of each message that is whole now, and what is wrong with what follows them."""
        whole: list[tuple[int, bytes]] = []
        source: bytes | memoryview = data
        if (buffer := self._buffer) is not None:
            buffer += data
            if len(buffer) < max(self.needed, PREFIX_BYTES):
                return whole, None
            self._buffer = None
            source = memoryview(buffer)
        error: DynamoError | None = None
        at, end = 0, len(source)
        self.needed = 0
        while end - at >= PREFIX_BYTES:
            flags, length = _unpack_prefix(source, at)
            if flags > KNOWN or (flags & NO_ITEM and length):
                error = WireError(f"a message with flags {flags} and {length} bytes")
                break
            if length > self._limit:
                error = too_large(length, self._limit)
                break
            after = at + PREFIX_BYTES + length
            if after > end:
                self.needed = PREFIX_BYTES + length
                break
            whole.append((flags, bytes(source[at + PREFIX_BYTES : after])))
            at = after
        if at < end:
            self._buffer = bytearray(source[at:])
        return whole, error
