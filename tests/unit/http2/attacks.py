"""What attackers send over HTTP/2, as bytes, and the error code that their connection ends with.

Each is what follows the preface and the SETTINGS of an honest opening.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import islice

import h2.errors
import hpack

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS, PADDED = 4, 8

REQUEST = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "x"),
    (":path", "/a/b/c"),
    ("content-type", "application/json"),
]
CODES = h2.errors.ErrorCodes
FRAMES = 5000  # of a flood


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def _requests(flags: int = END_HEADERS) -> Iterator[tuple[int, bytes]]:
    encoder = hpack.Encoder()
    for number in range(FRAMES):
        stream = 2 * number + 1
        yield stream, frame(HEADERS, flags, stream, encoder.encode(REQUEST))


def rapid_reset() -> Iterator[bytes]:
    """CVE-2023-44487."""
    for stream, opened in _requests():
        yield opened + frame(RST_STREAM, 0, stream, u32(CODES.CANCEL))


def made_you_reset() -> Iterator[bytes]:
    """CVE-2025-8671: the worker is made to reset what the attacker opened, here by an increment of 0."""
    for stream, opened in islice(_requests(), 1000):
        yield opened + frame(WINDOW_UPDATE, 0, stream, u32(0))


def too_many_streams() -> Iterator[bytes]:
    for _, opened in _requests():
        yield opened


def continuation_flood() -> Iterator[bytes]:
    """CVE-2024-27983 and others of that spring."""
    yield frame(HEADERS, 0, 1, hpack.Encoder().encode(REQUEST))
    for _ in range(FRAMES):
        yield frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b")


def empty_continuation_flood() -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, hpack.Encoder().encode(REQUEST))
    for _ in range(FRAMES):
        yield frame(CONTINUATION, 0, 1)


def _split(block: bytes) -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, block[:16_000])
    for at in range(16_000, len(block), 16_000):
        yield frame(CONTINUATION, END_HEADERS if at + 16_000 >= len(block) else 0, 1, block[at : at + 16_000])


def header_flood() -> Iterator[bytes]:
    fields = [*REQUEST, *((f"x-{number}", "y" * 100) for number in range(1000))]
    yield from _split(hpack.Encoder().encode(fields))


def hpack_bomb() -> Iterator[bytes]:
    """CVE-2016-6581: one large field in the table, then one byte for each time that it is meant."""
    encoder = hpack.Encoder()
    yield frame(HEADERS, END_HEADERS, 1, encoder.encode([*REQUEST, ("x-large", "y" * 4000)]))
    again = encoder.encode([("x-large", "y" * 4000)])
    assert len(again) == 1
    yield frame(HEADERS, END_HEADERS, 3, encoder.encode(REQUEST) + again * 16_000)


def settings_flood() -> Iterator[bytes]:
    """CVE-2019-9515."""
    for _ in range(FRAMES):
        yield frame(SETTINGS, 0, 0)


def ping_flood() -> Iterator[bytes]:
    """CVE-2019-9512."""
    for _ in range(FRAMES):
        yield frame(PING, 0, 0, bytes(8))


def priority_flood() -> Iterator[bytes]:
    """CVE-2019-9513."""
    for number in range(FRAMES):
        yield frame(PRIORITY, 0, 2 * number + 3, u32(1) + b"\x10")


def empty_data_flood() -> Iterator[bytes]:
    """CVE-2019-9518."""
    yield frame(HEADERS, END_HEADERS, 1, hpack.Encoder().encode(REQUEST))
    for _ in range(FRAMES):
        yield frame(DATA, 0, 1)


def padding_flood() -> Iterator[bytes]:
    """DATA of nothing but padding, which is no less empty."""
    yield frame(HEADERS, END_HEADERS, 1, hpack.Encoder().encode(REQUEST))
    for _ in range(FRAMES):
        yield frame(DATA, PADDED, 1, b"\x04" + bytes(4))


def window_update_flood() -> Iterator[bytes]:
    for _ in range(20 * FRAMES):
        yield frame(WINDOW_UPDATE, 0, 0, u32(1))


def unknown_frame_flood() -> Iterator[bytes]:
    for _ in range(20 * FRAMES):
        yield frame(0xFA, 0, 0)


def oversized_frame() -> Iterator[bytes]:
    yield frame(DATA, 0, 1, bytes(20_000))


def oversized_frame_that_never_ends() -> Iterator[bytes]:
    """What says so is in its head; waiting for the rest would take 16 MiB."""
    yield b"\xff\xff\xff" + frame(DATA, 0, 1)[3:]


def window_overflow() -> Iterator[bytes]:
    yield frame(WINDOW_UPDATE, 0, 0, u32(2**31 - 1))


def window_of_settings_overflow() -> Iterator[bytes]:
    yield frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31))


def more_than_the_window() -> Iterator[bytes]:
    """The worker's window of a stream is 256 KiB, and the second item is larger, and not asked for."""
    native = [*REQUEST[:4], ("content-type", "application/vnd.dynamo.stream")]
    yield frame(HEADERS, END_HEADERS, 1, hpack.Encoder().encode(native))
    yield frame(DATA, 0, 1, struct.pack(">BI", 0, 1) + b"\xc0" + struct.pack(">BI", 0, 2**20))
    for _ in range(17):
        yield frame(DATA, 0, 1, bytes(16_384))


def other_protocol() -> Iterator[bytes]:
    yield b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


Attack = Callable[[], Iterator[bytes]]
ATTACKS: dict[Attack, CODES] = {
    rapid_reset: CODES.ENHANCE_YOUR_CALM,
    made_you_reset: CODES.PROTOCOL_ERROR,
    too_many_streams: CODES.PROTOCOL_ERROR,
    continuation_flood: CODES.PROTOCOL_ERROR,
    empty_continuation_flood: CODES.PROTOCOL_ERROR,
    header_flood: CODES.ENHANCE_YOUR_CALM,
    hpack_bomb: CODES.ENHANCE_YOUR_CALM,
    settings_flood: CODES.ENHANCE_YOUR_CALM,
    ping_flood: CODES.ENHANCE_YOUR_CALM,
    priority_flood: CODES.ENHANCE_YOUR_CALM,
    empty_data_flood: CODES.ENHANCE_YOUR_CALM,
    padding_flood: CODES.ENHANCE_YOUR_CALM,
    window_update_flood: CODES.ENHANCE_YOUR_CALM,
    unknown_frame_flood: CODES.ENHANCE_YOUR_CALM,
    oversized_frame: CODES.FRAME_SIZE_ERROR,
    oversized_frame_that_never_ends: CODES.FRAME_SIZE_ERROR,
    window_overflow: CODES.FLOW_CONTROL_ERROR,
    window_of_settings_overflow: CODES.FLOW_CONTROL_ERROR,
    more_than_the_window: CODES.FLOW_CONTROL_ERROR,
    other_protocol: CODES.PROTOCOL_ERROR,
}
