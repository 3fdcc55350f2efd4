"""Cuts what arrives into frames before h2 sees it: GOAWAY is ours to read, and floods are counted here."""

from __future__ import annotations

import struct
from collections.abc import Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
MAX_FRAME_BYTES = 16_384  # RFC 9113's default; a larger one would delay the items of other streams
GOAWAY = 7
ALL_STREAMS = 2**31 - 1

_unpack_goaway = struct.Struct(">II").unpack_from
_pack_goaway = struct.Struct(">BHBBIII").pack


def goaway_frame(last_stream: int, code: int = 0, text: str = "") -> bytes:
    """RFC 9113, section 6.8."""
    debug = text.encode()[:1024]
    return _pack_goaway(0, 8 + len(debug), GOAWAY, 0, 0, last_stream, code) + debug


class Oversized(Exception):
    """The head of a frame that is larger than allowed; h2 would wait for all of it before it says so."""


class Cutter:
    """Whole frames out of bytes; GOAWAY goes to ``on_goaway(last_stream, code, text)``.

    What is no preface is passed on as it is: h2 knows what to say about it.
    """

    __slots__ = ("_buffer", "_on_frame", "_on_goaway", "_skip")

    def __init__(
        self,
        on_goaway: Callable[[int, int, str], None],
        on_frame: Callable[[int, int, int], None],
        *,
        preface: bool,
    ) -> None:
        self._buffer = bytearray()
        self._skip = len(PREFACE) if preface else 0
        self._on_goaway = on_goaway
        self._on_frame = on_frame

    def cut(self, data: bytes | memoryview) -> bytes:
        """What h2 is to read now. Raises Oversized."""
        buffer = self._buffer
        buffer += data
        at, end, unpassed = 0, len(buffer), 0
        passed: list[bytes] = []
        if self._skip:
            if not PREFACE.startswith(buffer[: len(PREFACE)]):
                self._skip = 0
                return self._all()
            if end < self._skip:
                return b""
            at, self._skip = self._skip, 0
        while end - at >= HEAD_BYTES:
            length = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            kind = buffer[at + 3]
            if length > MAX_FRAME_BYTES:
                raise Oversized(f"a frame of {length} bytes, at most {MAX_FRAME_BYTES} are taken")
            after = at + HEAD_BYTES + length
            if after > end:
                break
            self._on_frame(kind, buffer[at + 4], length)
            if kind == GOAWAY and length >= 8:
                passed.append(bytes(buffer[unpassed:at]))
                last, code = _unpack_goaway(buffer, at + HEAD_BYTES)
                text = buffer[at + HEAD_BYTES + 8 : after].decode(errors="replace")
                self._on_goaway(last & ALL_STREAMS, code, text)
                unpassed = after
            at = after
        passed.append(bytes(buffer[unpassed:at]))
        del buffer[:at]
        return b"".join(passed)

    def _all(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        return data
