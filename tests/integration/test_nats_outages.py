"""The way to NATS while it is away, comes back, or is something else: nothing of what is wanted is lost."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dynamo.adapters.request_plane.nats import open_nats
from dynamo.adapters.request_plane.nats.broker import Broker
from dynamo.adapters.request_plane.nats.carrier import Carrier
from dynamo.adapters.request_plane.nats.link import HEAD, LAST_SEQUENCE, SessionLink
from dynamo.adapters.request_plane.nats.server import MAX_OPENING
from dynamo.core.config import Settings
from dynamo.core.errors import UnavailableError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.opening import Options
from integration.nats_calls import answer, both, configured, nats, outcome, start, works
from nats_server import NatsServer

pytestmark = pytest.mark.anyio

LOOPS = ["asyncio", *(["uvloop"] if find_spec("uvloop") else [])]


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@asynccontextmanager
async def saying(data: bytes) -> AsyncIterator[str]:
    """Something that listens and says that."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as listener:
        yield f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    "data",
    [b"x" * 100_000, b'INFO {"connect_urls": 5}\r\n', b"INFO []\r\n"],
    ids=["long", "bad list", "no map"],
)
async def test_a_server_that_is_none_is_passed_over(server: NatsServer, data: bytes) -> None:
    async with asyncio.timeout(10), saying(data) as other:
        assert await works(Settings.from_env({}, nats_server=f"{other},{server.url}", connect_timeout_s=1.0))


class Relay:
    """Passes on what the two sides say; the answers of a connection may be held at its second PING."""

    def __init__(self, server: NatsServer) -> None:
        self.server, self.connections = server, 0
        self.hold = self.cut = False  # from the next connection on
        self.held, self.release = asyncio.Event(), asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        hold, cut, pings = self.hold, self.cut, 0
        there, back = await asyncio.open_connection(self.server.host, self.server.port)
        self.writers += [writer, back]

        async def answers() -> None:
            while data := await there.read(65536):
                if hold and pings > 1:
                    self.held.set()
                    await self.release.wait()
                writer.write(data)
                if cut and pings > 1:
                    await writer.drain()
                    break
            writer.close()
            back.close()

        answering = asyncio.create_task(answers())
        with suppress(OSError):
            while data := await reader.read(65536):
                pings += data.count(b"PING\r\n")
                back.write(data)
        back.close()
        with suppress(OSError):
            await answering

    def drop(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


@asynccontextmanager
async def relay(server: NatsServer) -> AsyncIterator[tuple[Relay, Settings]]:
    between = Relay(server)
    async with await asyncio.start_server(between.connected, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        try:
            yield between, Settings.from_env({}, nats_server=f"nats://127.0.0.1:{port}")
        finally:
            between.release.set()
            between.drop()


@pytest.mark.parametrize("leaves", [False, True])
async def test_what_is_subscribed_or_left_while_the_way_comes_back_is_so_when_it_is_there(
    server: NatsServer, leaves: bool
) -> None:
    heard: list[bytes] = []

    def receive(subject: str, reply: str, data: bytes, nobody: bool) -> None:
        heard.append(data)

    async with asyncio.timeout(10), relay(server) as (between, settings):
        broker = Broker(settings)
        await broker.start()
        try:
            first = await broker.subscribe("first", receive)
            second = await broker.subscribe("second", receive)
            between.hold = True
            between.drop()
            await between.held.wait()
            third = await broker.subscribe("third", receive)
            if leaves:
                await broker.drop(second)
                await broker.drop(first)
            between.release.set()
            while not broker.up:
                await asyncio.sleep(0.01)
            stranger = await Carrier.open(server.url, settings, {})
            stranger.send([b"PUB second 1\r\n2\r\n", b"PUB third 1\r\n3\r\n"])
            await stranger.heard(settings)
            await stranger.leave()
            while b"3" not in heard:
                await asyncio.sleep(0.01)
            assert heard == ([b"3"] if leaves else [b"2", b"3"])
            await broker.drop(third)
        finally:
            await broker.aclose()


async def test_a_server_that_lets_nobody_stay_is_not_asked_all_the_time(server: NatsServer) -> None:
    async with asyncio.timeout(10), relay(server) as (between, settings):
        broker = Broker(settings)
        await broker.start()
        try:
            between.cut = True
            between.drop()
            await asyncio.sleep(1.0)  # so long it tries
            assert 1 < between.connections < 15
            between.cut = False
            while not broker.up:
                await asyncio.sleep(0.01)
        finally:
            await broker.aclose()


async def test_calls_that_end_while_nats_is_away_leave_nothing(server: NatsServer) -> None:
    settings = nats(server, connect_timeout_s=0.2)
    async with asyncio.timeout(10), open_nats("nats://", settings) as caller:
        server.kill()
        while caller._broker.up:
            await asyncio.sleep(0.01)
        sessions = weakref.WeakSet[SessionLink]()
        for number in range(5):
            ending = outcome(start(caller, f"nats:///nobody-{number}"))
            sessions |= set(caller._sessions._links.values())
            assert isinstance(await ending, UnavailableError)
        gc.collect()
        assert not sessions


async def test_a_call_that_is_not_allowed_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    may = 'publish: {deny: ["dyn.a.b.c.nobody"]}'
    users = f"users: [{{user: me, password: secret, permissions: {{ {may} }} }}]"
    with configured(tmp_path, f"authorization {{ {users} }}") as server:
        settings = nats(server, nats_auth_username="me", nats_auth_password="secret", connect_timeout_s=0.5)
        async with asyncio.timeout(10), open_nats("nats://", settings) as plane:
            assert isinstance(await outcome(start(plane, "nats:///nobody")), Exception)
            async with plane.serve(answer, instance_id=1, incarnation=1) as served:
                assert await outcome(start(plane, served.addresses[0])) is None


async def test_who_opens_sessions_and_says_no_more_holds_a_bounded_number(server: NatsServer) -> None:
    settings = nats(server)
    stranger = await Carrier.open(server.url, settings, {})
    try:
        async with (
            asyncio.timeout(10),
            open_nats("nats://", settings) as worker,
            worker.serve(answer, instance_id=1, incarnation=1) as served,
        ):
            name = served.addresses[0].removeprefix("nats:///").encode()
            for number in range(MAX_OPENING + 200):
                first = HEAD.pack(number, 0) + b"\x89"
                stranger.send(
                    [b"PUB dyn.a.b.c.%b nobody.%d %d\r\n" % (name, number, len(first)), first, b"\r\n"]
                )
            await stranger.heard(settings)
            assert await outcome(start(worker, served.addresses[0])) is None
            assert MAX_OPENING <= len(worker._sessions._links) <= MAX_OPENING + 2
    finally:
        await stranger.leave()


async def test_what_is_no_text_is_none_of_our_messages(server: NatsServer) -> None:
    escaped: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
    settings = nats(server)
    stranger = await Carrier.open(server.url, settings, {})
    try:
        async with both(settings) as (caller, address):
            assert await outcome(start(caller, address)) is None
            name = address.removeprefix("nats:///").encode()
            stranger.send([b"PUB dyn.a.b.\xff." + name + b" r 12\r\n" + bytes(12) + b"\r\n"])
            stranger.send([b"PUB dyn.a.b.c." + name + b" r.\xff 12\r\n" + bytes(12) + b"\r\n"])
            await stranger.heard(settings)
            assert await outcome(start(caller, address)) is None
    finally:
        await stranger.leave()
    assert not escaped


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": loop == "uvloop"}) for loop in LOOPS])
async def test_what_is_sent_in_the_moment_of_a_loss_raises_nothing(server: NatsServer) -> None:
    carrier = await Carrier.open(server.url, nats(server), {})
    carrier.abort()
    while carrier.is_connected:
        carrier.send([b"PUB a 0\r\n\r\n"])
        carrier.unsubscribe_from(1)
        await asyncio.sleep(0)
    await carrier.leave()


@pytest.mark.parametrize("left", [0, 1, 3])
async def test_a_session_ends_before_its_numbers_do(left: int) -> None:
    connection = Connection(Options(), ReceiveBudget(2**28), dialer=True)
    for _ in range(3):
        connection.open(Request(endpoint="a.b.c", request_id="r", payload=bytes(100_000)))
    link = SessionLink(connection, 1, "there", "here", lambda _: None, lambda _: None)
    link._sent = LAST_SEQUENCE - left
    connection.on_output = lambda: None
    connection._become_ready()  # as after the HELLO of the other side
    said: list[bytes] = []
    while not link.closed:
        said += [b"".join(command) for command in link.commands(60_000)]
    assert len(said) == left + 2
    assert said[-1].endswith(b"12\r\n" + HEAD.pack(1, 2**32 - 1) + b"\r\n")  # the end of the session
    assert connection.open_streams == 0
