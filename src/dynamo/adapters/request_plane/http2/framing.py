"""What DATA frames carry: length-delimited items, and the two messages of an open request side.

A message is a byte of flags, a length (u32, big-endian) and so many bytes. ``LAST``: nothing comes after it
from this side. ``NO_ITEM``: only its flags count, and its length is 0. ``STOP``: finish early.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from dynamo.core.errors import WireError
from dynamo.core.wire.sending import too_large

RAW, LAST, NO_ITEM, STOP = 1, 2, 4, 8
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

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Flags and body of each message that is whole now. Raises WireError, TooLargeError."""
        buffer = self._buffer
        buffer += data
        if len(buffer) < self.needed:
            return
        at, end = 0, len(buffer)
        self.needed = 0
        try:
            while end - at >= PREFIX_BYTES:
                flags, length = _unpack_prefix(buffer, at)
                if (flags & NO_ITEM and length) or flags > 15:
                    raise WireError(f"a message with flags {flags} and {length} bytes")
                if length > self._limit:
                    raise too_large(length, self._limit)
                if end - at < PREFIX_BYTES + length:
                    self.needed = PREFIX_BYTES + length
                    break
                start = at + PREFIX_BYTES
                at = start + length
                yield flags, bytes(memoryview(buffer)[start:at])
        finally:
            del buffer[:at]
