"""Frames of any kind and bytes changed anywhere, as hypothesis draws them."""

from __future__ import annotations

import struct

import hpack
from hypothesis import strategies as st

from unit.http2.attacks import REQUEST, u32

Odd = list[tuple[int, int, int, bytes | list[tuple[bytes, bytes]], int]]
Changes = list[tuple[int, str, int]]

FIELDS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"", b"x", b"X", b"\xff", b":path", b":status", b":method", b"te", b"content-length", b"cookie",
             b"content-type", b"dynamo-meta-bin", b"dynamo-meta-\xff", b"dynamo-timeout", b"dynamo-attempt",
             b"dynamo-instance", b"dynamo-input", b"dynamo-first-item", b"dynamo-max-message", b"accept"]
        ),
        st.sampled_from(
            [b"", b"-1", b"0", b"1e300", b"nan", b"\x00", b" a ", b"\xff\xfe", b"y" * 20_000, b"none",
             b"ended", b"application/json", b"application/vnd.dynamo.stream", b"text/event-stream", b"gA==",
             b"POST", b"/a/%ff/b", b"CONNECT", b"ffff-ffff"]
        ),
    ),
    max_size=4,
)  # fmt: skip
ODD = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 10), st.integers(0, 255)),
        st.integers(0, 255),
        st.sampled_from([0, -2, -4, -6, 0, 1, 2, 2**30]),  # beside the next number, which is the idle one
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [u32(0), u32(1), u32(2**31 - 1), bytes(5), bytes(8), bytes(6), b"{}", b"\x82\x87"]
            ),
            FIELDS,
        ),
        st.sampled_from([0, 0, 0, 0, 1, -1, 2**16]),  # by how much the length lies
    ),
    min_size=1,
    max_size=8,
)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 2**16),
        st.sampled_from(["flip", "set", "cut", "double", "insert"]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def odd(next_id: int, frames: Odd) -> bytes:
    """The frames, at a connection whose next stream has this number."""
    said = b""
    for kind, flags, beside, body, lie in frames:
        if isinstance(body, list):
            body = hpack.Encoder().encode([*REQUEST[: 4 if flags & 2 else 5], *body])
        stream = next_id + beside if beside <= 0 else beside
        if beside == 2:
            stream = 0
        length = max(0, len(body) + lie)
        said += struct.pack(">I", length)[1:] + bytes([kind, flags]) + u32(stream & 2**32 - 1) + body
    return said


def change(data: bytes, changes: Changes) -> bytes:
    changed = bytearray(data)
    for place, how, value in changes:
        at = place % (len(changed) + 1)
        if how == "insert" or at == len(changed):
            changed[at:at] = bytes([value])
        elif how == "flip":
            changed[at] ^= 1 << value % 8
        elif how == "set":
            changed[at] = value
        elif how == "cut":
            del changed[at : at + value]
        else:
            changed[at:at] = changed[at : at + value]
    return bytes(changed)
