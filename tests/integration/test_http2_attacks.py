"""What attackers send over HTTP/2 costs them their connection, and nobody else anything."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator

import h2.errors
import hpack
import pytest

from dynamo.adapters.request_plane.http2 import open_http2
from dynamo.adapters.request_plane.http2.frames import PREFACE
from dynamo.core.config import Settings
from dynamo.core.ports.request_plane import IncomingCall, Request

pytestmark = pytest.mark.anyio
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "x"),
    (":path", "/a/b/c"),
    ("content-type", "application/json"),
]


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def rapid_reset() -> Iterator[bytes]:
    encoder = hpack.Encoder()
    for number in range(5000):
        stream = 2 * number + 1
        yield frame(1, 4, stream, encoder.encode(HEADERS)) + frame(3, 0, stream, struct.pack(">I", 8))


def continuation_flood() -> Iterator[bytes]:
    yield frame(1, 0, 1, hpack.Encoder().encode(HEADERS))
    for _ in range(5000):
        yield frame(9, 0, 1, b"\x00\x01a\x01b")


def header_flood() -> Iterator[bytes]:
    block = hpack.Encoder().encode([*HEADERS, *((f"x-{number}", "y" * 100) for number in range(1000))])
    yield frame(1, 0, 1, block[:16000])
    for at in range(16000, len(block), 16000):
        yield frame(9, 4 if at + 16000 >= len(block) else 0, 1, block[at : at + 16000])


def settings_flood() -> Iterator[bytes]:
    for _ in range(5000):
        yield frame(4, 0, 0)


def ping_flood() -> Iterator[bytes]:
    for _ in range(5000):
        yield frame(6, 0, 0, bytes(8))


def empty_data_flood() -> Iterator[bytes]:
    yield frame(1, 4, 1, hpack.Encoder().encode(HEADERS))
    for _ in range(5000):
        yield frame(0, 0, 1)


def oversized_frame() -> Iterator[bytes]:
    yield frame(0, 0, 1, bytes(20_000))


def window_overflow() -> Iterator[bytes]:
    yield frame(8, 0, 0, struct.pack(">I", 2**31 - 1))


def other_protocol() -> Iterator[bytes]:
    yield b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


CODES = h2.errors.ErrorCodes
ATTACKS = {
    rapid_reset: CODES.ENHANCE_YOUR_CALM,
    continuation_flood: CODES.PROTOCOL_ERROR,
    header_flood: CODES.ENHANCE_YOUR_CALM,
    settings_flood: CODES.ENHANCE_YOUR_CALM,
    ping_flood: CODES.ENHANCE_YOUR_CALM,
    empty_data_flood: CODES.ENHANCE_YOUR_CALM,
    oversized_frame: CODES.FRAME_SIZE_ERROR,
    window_overflow: CODES.FLOW_CONTROL_ERROR,
    other_protocol: CODES.PROTOCOL_ERROR,
}


async def goodbye_after(port: int, attack: Iterator[bytes], *, preface: bool) -> int:
    """The error code of the GOAWAY that it ends with; the connection is closed then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if preface:
        writer.write(PREFACE + frame(4, 0, 0))
    for piece in attack:
        writer.write(piece)
    answer = await reader.read()
    writer.close()
    codes = []
    while answer:
        length = int.from_bytes(answer[:3])
        if answer[3] == 7:
            codes.append(int.from_bytes(answer[13:17]))
        answer = answer[9 + length :]
    return codes[-1]


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_ends_its_connection_and_no_other(attack: object) -> None:
    def echo(call: IncomingCall) -> None:
        if call.request.request_id == "ours":
            call.send(b"\x01", end=False)
            held.append(call)

    held: list[IncomingCall] = []
    async with (
        asyncio.timeout(20),
        open_http2("http2://", Settings(tcp_host="127.0.0.1")) as plane,
        plane.serve(echo, instance_id=1, incarnation=1) as server,
    ):
        (address,) = server.addresses
        ours = plane.call(address, Request(endpoint="a.b.c", request_id="ours", payload=b"\xc0"))
        await ours.wait()
        port = int(address.rpartition(":")[2])
        code = await goodbye_after(port, attack(), preface=attack is not other_protocol)  # type: ignore[operator]
        assert code == ATTACKS[attack]  # type: ignore[index]
        held[0].send(b"\x02", end=True)
        while not ours.ended:
            ours.receive_nowait()
            await ours.wait()
        assert (ours.error, ours.received) == (None, 2)
        assert server.calls == 0
