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
        self._buffer = bytearray()
        self._limit = limit
        self.needed = 0
        """Bytes of the message that is incomplete, 0 if none is or its length is not here yet."""

    @property
    def incomplete(self) -> bool:
        return bool(self._buffer)

    def feed(self, data: bytes) -> tuple[list[tuple[int, bytes]], DynamoError | None]:
        """Flags and body of each message that is whole now, and what is wrong with what follows them."""
        buffer = self._buffer
        buffer += data
        whole: list[tuple[int, bytes]] = []
        if len(buffer) < self.needed:
            return whole, None
        error: DynamoError | None = None
        at, end = 0, len(buffer)
        self.needed = 0
        while end - at >= PREFIX_BYTES:
            flags, length = _unpack_prefix(buffer, at)
            if flags > KNOWN or (flags & NO_ITEM and length):
                error = WireError(f"a message with flags {flags} and {length} bytes")
                break
            if length > self._limit:
                error = too_large(length, self._limit)
                break
            if end - at < PREFIX_BYTES + length:
                self.needed = PREFIX_BYTES + length
                break
            start = at + PREFIX_BYTES
            at = start + length
            whole.append((flags, bytes(memoryview(buffer)[start:at])))
        del buffer[:at]
        return whole, error
