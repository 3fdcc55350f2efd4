"""What breaks HTTP/2, with the error codes that RFC 9113 allows for it."""

from __future__ import annotations

import struct
from collections.abc import Callable

from dynamo.adapters.request_plane.http2.frames import MAX_FRAME_BYTES
from unit.http2.attacks import (
    ACK,
    CODES,
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    u32,
)
from unit.http2.caller import Caller

P, F, S, W, C = (
    CODES.PROTOCOL_ERROR,
    CODES.FRAME_SIZE_ERROR,
    CODES.STREAM_CLOSED,
    CODES.FLOW_CONTROL_ERROR,
    CODES.COMPRESSION_ERROR,
)


def setting(code: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", code, value))


def opening(
    caller: Caller, *fields: tuple[str | bytes, str | bytes], without: str = "", flags: int = 5
) -> bytes:
    stream, caller.next_id = caller.next_id, caller.next_id + 2
    block = caller.encoder.encode([*(pair for pair in REQUEST if pair[0] != without), *fields])
    return frame(HEADERS, flags, stream, block)


def with_body(caller: Caller, body: bytes) -> bytes:
    said = opening(caller, ("content-length", "5"), flags=4)
    return said + frame(DATA, 1, caller.next_id - 2, body)


def padded(stream: int) -> bytes:
    return frame(DATA, PADDED, stream, b"\x09x")


def skipped(caller: Caller) -> bytes:
    caller.next_id += 2
    return opening(caller) + frame(HEADERS, 5, caller.next_id - 4, caller.encoder.encode(REQUEST))


def after_its_end(caller: Caller, kind: int) -> bytes:
    said = caller.open(True, "hold", 0)
    return said + frame(
        kind, 5, caller.next_id - 2, caller.encoder.encode(REQUEST) if kind == HEADERS else b"x"
    )


Wrong = tuple[str, Callable[[Caller], bytes], set[CODES]]

WRONG: list[Wrong] = [
    ("DATA on the connection", lambda c: frame(DATA, 0, 0, b"x"), {P}),
    ("DATA on an idle stream", lambda c: frame(DATA, 0, c.next_id, b"x"), {P}),
    ("DATA after the end", lambda c: after_its_end(c, DATA), {S}),
    ("HEADERS after the end", lambda c: after_its_end(c, HEADERS), {S}),
    ("HEADERS on the connection", lambda c: frame(HEADERS, 5, 0, c.encoder.encode(REQUEST)), {P}),
    ("HEADERS of an even number", lambda c: frame(HEADERS, 5, 2, c.encoder.encode(REQUEST)), {P}),
    ("HEADERS of a number passed over", skipped, {P, S}),
    ("PRIORITY of 4 bytes", lambda c: frame(PRIORITY, 0, 1, u32(3)), {F}),
    ("PRIORITY on the connection", lambda c: frame(PRIORITY, 0, 0, u32(3) + b"x"), {P}),
    ("RST_STREAM on the connection", lambda c: frame(RST_STREAM, 0, 0, u32(8)), {P}),
    ("RST_STREAM on an idle stream", lambda c: frame(RST_STREAM, 0, c.next_id, u32(8)), {P}),
    ("RST_STREAM of 3 bytes", lambda c: frame(RST_STREAM, 0, 1, bytes(3)), {F}),
    ("SETTINGS on a stream", lambda c: frame(SETTINGS, 0, 1), {P}),
    ("SETTINGS of 5 bytes", lambda c: frame(SETTINGS, 0, 0, bytes(5)), {F}),
    ("an acknowledgement of more", lambda c: frame(SETTINGS, ACK, 0, bytes(6)), {F}),
    ("ENABLE_PUSH 2", lambda c: setting(2, 2), {P}),
    ("INITIAL_WINDOW_SIZE 2^31", lambda c: setting(4, 2**31), {W}),
    ("MAX_FRAME_SIZE 16,383", lambda c: setting(5, 2**14 - 1), {P}),
    ("MAX_FRAME_SIZE 2^24", lambda c: setting(5, 2**24), {P}),
    ("PUSH_PROMISE", lambda c: frame(PUSH, 4, 1, u32(2) + c.encoder.encode(REQUEST)), {P}),
    ("PING on a stream", lambda c: frame(PING, 0, 1, bytes(8)), {P}),
    ("PING of 7 bytes", lambda c: frame(PING, 0, 0, bytes(7)), {F}),
    ("GOAWAY on a stream", lambda c: frame(GOAWAY, 0, 1, bytes(8)), {P}),
    ("GOAWAY of 7 bytes", lambda c: frame(GOAWAY, 0, 0, bytes(7)), {F}),
    ("WINDOW_UPDATE of 0", lambda c: frame(WINDOW_UPDATE, 0, 0, u32(0)), {P}),
    ("WINDOW_UPDATE of 3 bytes", lambda c: frame(WINDOW_UPDATE, 0, 0, bytes(3)), {F}),
    ("WINDOW_UPDATE on an idle stream", lambda c: frame(WINDOW_UPDATE, 0, c.next_id, u32(1)), {P}),
    ("more than a window", lambda c: frame(WINDOW_UPDATE, 0, 0, u32(2**31 - 1)), {W}),
    ("CONTINUATION of nothing", lambda c: frame(CONTINUATION, 4, c.next_id, b"x"), {P}),
    ("PING in a header block", lambda c: opening(c, flags=0) + frame(PING, 0, 0, bytes(8)), {P}),
    ("an unknown frame in a header block", lambda c: opening(c, flags=0) + frame(0xBE, 0, 0), {P}),
    ("fields that are no HPACK", lambda c: frame(HEADERS, 5, c.next_id, b"\xff\xff\xff\xff\xff\xff"), {C}),
    ("an index of no table", lambda c: frame(HEADERS, 5, c.next_id, b"\xfe"), {C}),
    ("padding longer than the frame", lambda c: opening(c, flags=4) + padded(c.next_id - 2), {P}),
    ("too large a frame", lambda c: frame(DATA, 0, 1, bytes(MAX_FRAME_BYTES + 1)), {F}),
    ("a field in capitals", lambda c: opening(c, ("X-A", "b")), {P}),
    ("no :path", lambda c: opening(c, without=":path"), {P}),
    ("a pseudo field at the end", lambda c: opening(c, (":path", "/a"), without=":path"), {P}),
    ("connection: close", lambda c: opening(c, ("connection", "close")), {P}),
    ("less than the content-length", lambda c: with_body(c, b"{}"), {P}),
    ("more than the content-length", lambda c: with_body(c, b'{"a": 1}'), {P}),
]  # fmt: skip
