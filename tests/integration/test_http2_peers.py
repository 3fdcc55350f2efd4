"""Peers on h2: what their SETTINGS allow is kept, GOAWAY drains both ways, and silence is noticed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from dynamo.adapters.request_plane.http2 import Http2RequestPlane
from dynamo.core.errors import (
    DrainingError,
    RemoteError,
    Retry,
    StreamBrokenError,
    TooLargeError,
    UnavailableError,
)
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall, Request
from dynamo.testing.proxy import FaultProxy
from integration.http2_peers import Heard, Setting, client, serving
from integration.http2_worker import calling, greetings, working
from unit.http2.attacks import GOAWAY, frame, u32

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


def start(plane: Http2RequestPlane, address: str, payload: bytes = b"\x07", **more: Any) -> OutgoingCall:
    return plane.call(address, Request(endpoint="a.b.c", request_id="r", payload=payload, end=True, **more))


async def ends(call: OutgoingCall) -> list[bytes]:
    items = []
    while not call.ended:
        while (item := call.receive_nowait()) is not None:
            items.append(bytes(item))
        await call.wait()
    if call.error is not None:
        raise call.error
    return items


async def test_a_server_that_takes_one_call_at_a_time_gets_one_at_a_time() -> None:
    async with serving({Setting.MAX_CONCURRENT_STREAMS: 1}) as (address, servers), calling() as plane:
        calls = [start(plane, address) for _ in range(20)]
        assert await asyncio.gather(*map(ends, calls)) == [[b"\x07"]] * 20
        (server,) = servers
        assert (server.wrong, server.most_open) == (None, 1)


async def test_what_is_sent_to_a_server_fits_its_frames_windows_and_table() -> None:
    settings = {Setting.INITIAL_WINDOW_SIZE: 1000, Setting.HEADER_TABLE_SIZE: 0}
    async with serving(settings) as (address, servers), calling() as plane:
        large = b"\xc6\x00\x03\x0d\x40" + bytes(200_000)
        assert await ends(start(plane, address, large)) == [large[:1]]
        assert await ends(start(plane, address, metadata={"a": "b"})) == [b"\x07"]
        (server,) = servers
        assert server.wrong is None
        assert 0 < server.largest_frame <= 16_384


async def test_a_server_with_room_for_few_fields_is_not_sent_more() -> None:
    async with serving({Setting.MAX_HEADER_LIST_SIZE: 1000}) as (address, servers), calling() as plane:
        for _ in range(2):
            assert await ends(start(plane, address, timeout_s=60.0)) == [b"\x07"]
        with pytest.raises(TooLargeError, match="metadata"):
            start(plane, address, metadata={"a": "b" * 1000})
        assert servers[0].wrong is None


async def test_calls_in_flight_outlive_the_goaway_of_a_server_whose_connection_is_then_left() -> None:
    async with serving({}) as (address, servers), calling() as plane:
        assert await ends(start(plane, address)) == [b"\x07"]
        running = plane.call(address, Request(endpoint="a.b.c", request_id="r", end=False))
        (server,) = servers
        while 3 not in server.open:
            await asyncio.sleep(0)
        server.transport.write(frame(GOAWAY, 0, 0, u32(3) + u32(0)))  # h2's own would be its end
        while not all(link.connection.draining for link in plane._links.values()):
            await asyncio.sleep(0)
        for _ in range(3):  # the server is still there: it was about that connection
            assert await ends(start(plane, address)) == [b"\x07"]
        assert len(servers) == 2
        running.send(b"\x08", end=True)
        assert await ends(running) == [b"\x08"]
        await server.lost.wait()
        assert await ends(start(plane, address)) == [b"\x07"]
        assert len(servers) == 2


async def test_a_server_that_wants_no_calls_on_a_new_connection_either_is_draining() -> None:
    async with serving({}) as (address, servers), calling() as plane:
        assert await ends(start(plane, address)) == [b"\x07"]
        running = []
        for number in range(2):  # a connection of which calls were answered, and a new one
            running.append(plane.call(address, Request(endpoint="a.b.c", request_id="r", end=False)))
            while len(servers) <= number or not servers[number].open:
                await asyncio.sleep(0)
            servers[number].transport.write(frame(GOAWAY, 0, 0, u32(3) + u32(0)))
            while not all(link.connection.draining for link in plane._links.values()):
                await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(DrainingError) as refused:
                await ends(start(plane, address))
            assert refused.value.retry is Retry.SAFE
        assert len(servers) == 2
        for call in running:
            call.send(b"\x08", end=True)
            assert await ends(call) == [b"\x08"]


async def test_a_plane_that_closes_leaves_no_connection_that_was_replaced() -> None:
    async with serving({}) as (address, servers):
        running: list[OutgoingCall] = []
        async with calling() as plane:
            for number in range(2):
                assert await ends(start(plane, address)) == [b"\x07"]
                running.append(plane.call(address, Request(endpoint="a.b.c", request_id="r", end=False)))
                while not servers[number].open:
                    await asyncio.sleep(0)
                servers[number].transport.write(frame(GOAWAY, 0, 0, u32(3) + u32(0)))
                while not all(link.connection.draining for link in plane._links.values()):
                    await asyncio.sleep(0)
        assert isinstance(running[-1].error, StreamBrokenError)
        for server in servers:
            await server.lost.wait()


async def heard(asked: Heard) -> list[Any]:
    await asked.ended.wait()
    return [json.loads(line) for line in asked.data.splitlines()]


async def test_what_is_sent_to_a_client_fits_its_frames_windows_table_and_fields() -> None:
    settings = {
        Setting.INITIAL_WINDOW_SIZE: 1000,
        Setting.HEADER_TABLE_SIZE: 0,
        Setting.MAX_HEADER_LIST_SIZE: 600,
        Setting.MAX_CONCURRENT_STREAMS: 1,
    }
    failing = RemoteError("x" * 10_000, type_name="ValueError", detail="y" * 10_000)

    def fail(call: IncomingCall) -> None:
        call.send(b"\x01")
        call.fail(failing)

    name = "x" * 16_000
    async with working() as worker, client(worker.address, settings) as peer:
        for _ in range(2):
            assert await heard(peer.ask(json.dumps({"name": name}).encode())) == greetings(name)
        assert peer.wrong is None
        assert 0 < peer.largest_frame <= 16_384
    async with working(accept=fail) as worker, client(worker.address, settings) as peer:
        asked = peer.ask(b"{}")
        assert len(await heard(asked)) == 2
        assert peer.wrong is None
        assert asked.trailers["dynamo-end"] == "RemoteError"


async def test_a_client_that_went_silent_is_noticed_and_let_go(tmp_path: Any) -> None:
    async with working(keepalive_s=0.2) as worker:
        host, _, port = worker.address.partition("://")[2].rpartition(":")
        async with FaultProxy(host, int(port)) as proxy, client(f"http://{proxy.address}", {}) as peer:
            running = peer.ask(b'{"name": "waits"}')
            while not running.data:
                await asyncio.sleep(0)
            await asyncio.sleep(4 * 0.2)  # h2 answers PING by itself: it is not silent yet
            assert not worker.calls[0].killed
            proxy.black_hole()
            while worker.server.calls:
                await asyncio.sleep(0.01)
            assert worker.calls[0].killed


async def test_a_worker_that_went_silent_is_noticed() -> None:
    async with working() as worker, calling(keepalive_s=0.2, connect_timeout_s=0.5) as plane:
        host, _, port = worker.address.partition("://")[2].rpartition(":")
        async with FaultProxy(host, int(port)) as proxy:
            name = b"\x81\xa4name\xa5waits"
            running = start(plane, f"http://{proxy.address}", name)
            await running.wait()
            running.receive_nowait()
            proxy.black_hole()
            with pytest.raises(StreamBrokenError, match="DYN_KEEPALIVE_S") as told:
                await ends(running)
            assert told.value.received == 1
            late = start(plane, f"http://{proxy.address}", name)
            with pytest.raises(UnavailableError):
                await ends(late)
