"""What attackers send over HTTP/2 costs them their connection, and nobody else anything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from dynamo.adapters.request_plane.http2 import open_http2
from dynamo.adapters.request_plane.http2.frames import PREFACE
from dynamo.core.config import Settings
from dynamo.core.ports.request_plane import IncomingCall, Request
from unit.http2.attacks import ATTACKS, CODES, Attack, frame, other_protocol
from unit.http2.caller import Caller, Handler
from unit.http2.odd import change
from unit.http2.test_connection import connection
from unit.http2.test_sequences import RIGHT

pytestmark = pytest.mark.anyio


async def goodbye_after(port: int, attack: Iterator[bytes], *, preface: bool) -> int:
    """The error code of the GOAWAY that it ends with; the connection is closed then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if preface:
        writer.write(PREFACE + frame(4, 0, 0))
    for piece in attack:
        writer.write(piece)
    answer = await reader.read()
    writer.close()
    return goodbyes(answer)[-1]


def goodbyes(answer: bytes) -> list[int]:
    """The codes of the GOAWAY frames."""
    codes = []
    while answer:
        length = int.from_bytes(answer[:3])
        if answer[3] == 7:
            codes.append(int.from_bytes(answer[13:17]))
        answer = answer[9 + length :]
    return codes


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_ends_its_connection_and_no_other(attack: Attack) -> None:
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
        code = await goodbye_after(port, attack(), preface=attack is not other_protocol)
        assert code == ATTACKS[attack]
        held[0].send(b"\x02", end=True)
        while not ours.ended:
            ours.receive_nowait()
            await ours.wait()
        assert (ours.error, ours.received) == (None, 2)
        assert server.calls == 0


@pytest.mark.parametrize(
    "count", [60, pytest.param(5000, marks=(pytest.mark.soak, pytest.mark.timeout(1800)))]
)
async def test_sequences_with_mistakes_end_their_connection_and_no_other(count: int) -> None:
    """The 100,000 of them run against the connection itself; these against a socket, some at a time."""
    ours = Handler()
    endings = {"goodbye": 0, "went on": 0}
    async with (
        open_http2("http2://", Settings(tcp_host="127.0.0.1")) as plane,
        plane.serve(ours.accept, instance_id=1, incarnation=1) as server,  # type: ignore[arg-type]
    ):
        (address,) = server.addresses
        held = b"\x81\xa2do\xa4hold"
        neighbour = plane.call(address, Request(endpoint="a.b.c", request_id="r", payload=held, end=False))

        async def one(seed: int) -> None:
            draw = random.Random(seed)
            caller = Caller(connection(dialer=True), Handler())
            said = b"".join(caller.step(draw.choice(RIGHT), draw.randrange(256)) for _ in range(20))
            places = [
                (
                    draw.randrange(2**16),
                    draw.choice(["flip", "set", "cut", "double", "insert"]),
                    draw.randrange(256),
                )
                for _ in range(draw.choice([1, 3]))
            ]
            reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
            writer.write(PREFACE + frame(4, 0, 0) + change(said, places))
            writer.write_eof()
            codes = goodbyes(await reader.read())
            assert set(codes) <= set(CODES), f"seed {seed}"
            endings["goodbye" if any(codes) else "went on"] += 1
            writer.close()

        for batch in range(0, count, 20):
            async with asyncio.timeout(20):
                await asyncio.gather(*(one(seed) for seed in range(batch, batch + 20)))
                neighbour.send(bytes([batch % 128]))
                while neighbour.receive_nowait() is None:
                    ours.turn()
                    await asyncio.sleep(0)
        print(f"\n{count:,} sequences over sockets: {endings}")
        assert all(endings.values())
        neighbour.kill()
