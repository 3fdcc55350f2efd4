"""Bytes become frames, header blocks are put together, and floods are counted."""

from __future__ import annotations

from typing import Protocol

from dynamo.adapters.request_plane.http2.floods import Floods
from dynamo.adapters.request_plane.http2.frames import (
    ALL_STREAMS,
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEAD_BYTES,
    HEADERS,
    MAX_FRAME_BYTES,
    PADDED,
    PREFACE,
    SETTINGS,
    WITH_PRIORITY,
    Code,
    Violation,
    unpack_head,
)
from dynamo.adapters.request_plane.http2.settings import MAX_LIST_BYTES

READ_BYTES = 64 * 1024
MOST_CONTINUATIONS = 64


class Target(Protocol):
    """Who is told of frames; what they raise ends the connection."""

    @property
    def closed(self) -> bool: ...

    def on_data(self, stream: int, flags: int, body: bytes) -> None: ...

    def on_headers(self, stream: int, flags: int, block: bytes) -> None: ...

    def on_frame(self, kind: int, flags: int, stream: int, body: bytes) -> None: ...


class Reader:
    """What a transport puts into ``buffer`` is given to ``target`` frame by frame, until that is closed."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_stream",
        "_continuations",
        "_floods",
        "_rest",
        "_skip",
        "_target",
        "buffer",
        "greeted",
    )

    def __init__(self, target: Target, *, preface: bool, floods: Floods | None) -> None:
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.greeted = False  # the peer's first SETTINGS came: it speaks HTTP/2
        self._target = target
        self._skip = len(PREFACE) if preface else 0
        self._floods = floods
        self._rest = b""
        self._block: bytearray | None = None  # of a message whose header fields have not ended
        self._block_stream = self._block_flags = self._continuations = 0

    def received(self, size: int) -> None:
        """So many bytes are in ``buffer``. Raises Violation, Flooded."""
        data = bytes(self.buffer[:size])
        if self._rest:
            data = self._rest + data
        at, end, target = 0, len(data), self._target
        if self._skip:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise Violation(Code.PROTOCOL_ERROR, "no preface of HTTP/2: it speaks something else")
            if end < self._skip:
                self._rest = data
                return
            at, self._skip = self._skip, 0
        while end - at >= HEAD_BYTES:
            high, low, kind, flags, stream = unpack_head(data, at)
            length = high << 8 | low
            if length > MAX_FRAME_BYTES:
                if not self.greeted:
                    raise Violation(Code.PROTOCOL_ERROR, "it speaks something else")
                raise Violation(Code.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            after = at + HEAD_BYTES + length
            if after > end:
                break
            body = data[at + HEAD_BYTES : after]
            if kind == DATA and length and not flags & PADDED and self._block is None and self.greeted:
                target.on_data(stream & ALL_STREAMS, flags, body)
            else:
                self._frame(kind, flags, stream & ALL_STREAMS, body)
            if target.closed:
                return
            at = after
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if not self.greeted:
            if kind != SETTINGS:
                raise Violation(Code.PROTOCOL_ERROR, "its first frame is not SETTINGS")
            self.greeted = True
        if self._floods is not None:
            self._floods.count(kind, flags, len(body))
        if self._block is not None:
            if kind != CONTINUATION or stream != self._block_stream:
                raise Violation(Code.PROTOCOL_ERROR, "a header block that is interrupted")
            self._continue(flags, body)
        elif kind == HEADERS:
            self._headers(flags, stream, body)
        elif kind == DATA:
            self._target.on_data(stream, flags, body)
        else:
            self._target.on_frame(kind, flags, stream, body)

    def _headers(self, flags: int, stream: int, body: bytes) -> None:
        if flags & (PADDED | WITH_PRIORITY):
            body = unpadded(flags, body)
            if flags & WITH_PRIORITY:
                if len(body) < 5:
                    raise Violation(Code.FRAME_SIZE_ERROR, "HEADERS without its priority")
                body = body[5:]
        if flags & END_HEADERS:
            self._target.on_headers(stream, flags, body)
            return
        self._block, self._block_stream, self._block_flags = bytearray(body), stream, flags
        self._continuations = 0

    def _continue(self, flags: int, body: bytes) -> None:
        block = self._block
        assert block is not None
        block += body
        self._continuations += 1
        if len(block) > MAX_LIST_BYTES:
            raise Violation(Code.ENHANCE_YOUR_CALM, f"header fields of more than {MAX_LIST_BYTES} bytes")
        if flags & END_HEADERS:
            self._block = None
            self._target.on_headers(self._block_stream, self._block_flags, bytes(block))
        elif self._continuations >= MOST_CONTINUATIONS:
            raise Violation(Code.PROTOCOL_ERROR, f"more than {MOST_CONTINUATIONS} CONTINUATION frames")


def unpadded(flags: int, body: bytes) -> bytes:
    """Raises Violation."""
    if not flags & PADDED:
        return body
    if not body or body[0] >= len(body):
        raise Violation(Code.PROTOCOL_ERROR, "more padding than its frame holds")
    return body[1 : len(body) - body[0]]
