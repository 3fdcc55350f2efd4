"""Numbers and layouts of docs/wire-protocol.md: types, flags, headers, bounds."""

from __future__ import annotations

import enum
import struct

from dynamo.core.errors import Retry

MAGIC = b"\x89DYN\r\n\x1a\n"
VERSION = 1

HEADER_BYTES = 16
MAX_BODY = 262_144  # of any frame
ITEM_COST = 64  # credit that an item costs beyond its length
DEFAULT_WINDOW = 262_144
MIN_WINDOW = 128
DEFAULT_MAX_MESSAGE = 32 * 1024 * 1024
DEFAULT_MAX_STREAMS = 16_384
DEFAULT_MAX_HEAD = 65_536
MAX_STREAM_ID = 2**63 - 1
MAX_CREDIT = 2**53 - 1
ALL_STREAMS = 2**64 - 1  # in the first GOAWAY


class Type(enum.IntEnum):
    """Frame types; below are the same as plain integers, which compare three times faster."""

    HELLO = 0x01
    AUTH = 0x02
    OPEN = 0x03
    ITEM = 0x04
    END = 0x05
    ERROR = 0x06
    STOP = 0x07
    KILL = 0x08
    WINDOW = 0x09
    PING = 0x0A
    PONG = 0x0B
    GOAWAY = 0x0C


HELLO, AUTH, OPEN, ITEM, END, ERROR, STOP, KILL, WINDOW, PING, PONG, GOAWAY = (kind.value for kind in Type)
LAST_TYPE = GOAWAY
FIRST_MANDATORY_TYPE = 0x80  # unknown ones from here up must be understood

F_END, F_MORE, F_RAW, F_ITEM = 0x01, 0x02, 0x04, 0x08

# By type. -1 as a size: any; the opening types and PING to GOAWAY live on stream 0, ERROR on both.
ALLOWED_FLAGS = (0, 0, 0, F_ITEM | F_MORE | F_RAW | F_END, F_MORE | F_RAW | F_END, 0, 0, 0, 0, 0, 0, 0, 0)
BODY_SIZE = (-1, -1, -1, -1, -1, 0, -1, 0, 0, 8, 8, 8, 8)
FROM_DIALER_ONLY = frozenset({AUTH, OPEN, STOP, KILL})
FROM_LISTENER_ONLY = frozenset({GOAWAY})
ON_CONNECTION = frozenset({HELLO, AUTH, PING, PONG, GOAWAY})

HEADER = struct.Struct("<IBBHQ")  # length, type, flags, zero, stream
pack_header = HEADER.pack
unpack_header = HEADER.unpack_from
pack_item = struct.Struct("<IIQ").pack  # length, ITEM, stream: no flags
_WITH_U64 = struct.Struct("<IBBHQQ")
pack_u32 = struct.Struct("<I").pack
unpack_u32 = struct.Struct("<I").unpack_from
pack_u64 = struct.Struct("<Q").pack
unpack_u64 = struct.Struct("<Q").unpack_from


def header(kind: int, flags: int, stream: int, length: int) -> bytes:
    return pack_header(length, kind, flags, 0, stream)


def number_frame(kind: int, stream: int, value: int) -> bytes:
    """WINDOW or GOAWAY."""
    return _WITH_U64.pack(8, kind, 0, 0, stream, value)


def map_frame(kind: int, stream: int, body: bytes) -> bytes:
    return pack_header(len(body), kind, 0, 0, stream) + body


class Malformed(Exception):
    """The body of a frame is not what its type asks for."""


RETRY_NUMBERS = {Retry.SAFE: 0, Retry.UNKNOWN: 1, Retry.NEVER: 2}
RETRIES = (Retry.SAFE, Retry.UNKNOWN, Retry.NEVER)
