"""HTTP/2 frames as bytes (RFC 9113, sections 4 and 6), and what is wrong with those of a peer."""

from __future__ import annotations

import enum
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
MAX_FRAME_BYTES = 16_384  # RFC 9113's default; a larger one would delay the items of other streams
ALL_STREAMS = 2**31 - 1
LARGEST_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
WORKER_DRAINS = "this worker is draining"  # in its GOAWAY: tells it from that of a proxy

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS, PADDED, WITH_PRIORITY = 4, 8, 32


class Code(enum.IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Violation(Exception):
    """What a peer did that its connection does not outlive."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


pack_head = struct.Struct(">HBBBI").pack  # length by its higher two bytes and its lowest
unpack_head = struct.Struct(">HBBBI").unpack_from
unpack_u32 = struct.Struct(">I").unpack_from
_pack_u32 = struct.Struct(">I").pack
_pack_number = struct.Struct(">HBBBII").pack
_pack_goaway = struct.Struct(">HBBBIII").pack
_pack_setting = struct.Struct(">HI").pack


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return pack_head(len(body) >> 8, len(body) & 255, kind, flags, stream) + body


def headers_frames(stream: int, block: bytes, *, end: bool, room: int) -> bytes:
    """A header block; what is over ``room`` bytes follows in CONTINUATION."""
    flags = END_STREAM if end else 0
    size = len(block)
    if size <= room:
        return pack_head(size >> 8, size & 255, HEADERS, flags | END_HEADERS, stream) + block
    parts = [block[at : at + room] for at in range(0, size, room)]
    frames = [frame(HEADERS, flags, stream, parts[0])]
    frames += [frame(CONTINUATION, 0, stream, part) for part in parts[1:-1]]
    return b"".join([*frames, frame(CONTINUATION, END_HEADERS, stream, parts[-1])])


def window_frame(stream: int, increment: int) -> bytes:
    return _pack_number(0, 4, WINDOW_UPDATE, 0, stream, increment)


def reset_frame(stream: int, code: int) -> bytes:
    return _pack_number(0, 4, RST_STREAM, 0, stream, code)


def settings_frame(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_pack_setting(key, value) for key, value in values.items()))


def goaway_frame(last_stream: int, code: int = 0, text: str = "") -> bytes:
    debug = text.encode()[:1024]
    size = 8 + len(debug)
    return _pack_goaway(size >> 8, size & 255, GOAWAY, 0, 0, last_stream, code) + debug


SETTINGS_ACK = frame(SETTINGS, ACK, 0)
PING_FRAME = frame(PING, 0, 0, bytes(8))
