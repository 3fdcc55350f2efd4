"""SETTINGS of HTTP/2 (RFC 9113, section 6.5.2): what we say, and what the peer may say."""

from __future__ import annotations

import math
import struct

from dynamo.adapters.request_plane.http2.frames import (
    DEFAULT_WINDOW,
    LARGEST_WINDOW,
    MAX_FRAME_BYTES,
    Code,
    Violation,
    settings_frame,
)

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5
MAX_HEADER_LIST_SIZE = 6
MAX_STREAMS = 4096  # of one connection at a time
MAX_LIST_BYTES = 64 * 1024  # of the header fields of one message, counted as RFC 9113, section 6.5.2 says

_entries = struct.Struct(">HI").iter_unpack


def our_settings(*, dialer: bool, window: int) -> bytes:
    """The frame that opens our side; ``window`` is what a stream may send us before we say more."""
    values = {MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES, INITIAL_WINDOW_SIZE: window}
    return settings_frame(values | ({ENABLE_PUSH: 0} if dialer else {MAX_CONCURRENT_STREAMS: MAX_STREAMS}))


class PeerSettings:
    """What the peer has said so far; the defaults are RFC 9113's."""

    __slots__ = ("max_frame", "max_list", "max_streams", "table", "window")

    def __init__(self) -> None:
        self.table = 4096
        self.max_streams: float = math.inf
        self.window = DEFAULT_WINDOW
        self.max_frame = MAX_FRAME_BYTES
        self.max_list: float = math.inf

    def read(self, body: bytes) -> None:
        """Raises Violation."""
        if len(body) % 6:
            raise Violation(Code.FRAME_SIZE_ERROR, f"SETTINGS of {len(body)} bytes")
        for key, value in _entries(body):
            if key == HEADER_TABLE_SIZE:
                self.table = value
            elif key == MAX_CONCURRENT_STREAMS:
                self.max_streams = value
            elif key == INITIAL_WINDOW_SIZE:
                if value > LARGEST_WINDOW:
                    raise Violation(Code.FLOW_CONTROL_ERROR, f"an initial window of {value} bytes")
                self.window = value
            elif key == MAX_FRAME_SIZE:
                if not 16_384 <= value < 2**24:
                    raise Violation(Code.PROTOCOL_ERROR, f"frames of {value} bytes at most")
                self.max_frame = min(value, MAX_FRAME_BYTES)
            elif key == MAX_HEADER_LIST_SIZE:
                self.max_list = value
            elif key == ENABLE_PUSH and value > 1:
                raise Violation(Code.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
