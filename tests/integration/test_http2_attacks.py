"""What attackers send over HTTP/2 costs them their connection, and nobody else anything."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from dynamo.adapters.request_plane.http2 import open_http2
from dynamo.adapters.request_plane.http2.frames import PREFACE
from dynamo.core.config import Settings
from dynamo.core.ports.request_plane import IncomingCall, Request
from unit.http2.attacks import ATTACKS, Attack, frame, other_protocol

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
    codes = []
    while answer:
        length = int.from_bytes(answer[:3])
        if answer[3] == 7:
            codes.append(int.from_bytes(answer[13:17]))
        answer = answer[9 + length :]
    return codes[-1]


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
