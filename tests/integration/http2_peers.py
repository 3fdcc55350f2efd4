"""A server and a client on h2, which is strict about what the other side may do, without anything of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
from attrs import define, field

Setting = h2.settings.SettingCodes
HEAD = [(":status", "200"), ("content-type", "application/vnd.dynamo.stream")]


@define(eq=False)
class Heard:
    """Of one stream."""

    fields: dict[str, str] = field(factory=dict)
    data: bytearray = field(factory=bytearray)
    trailers: dict[str, str] = field(factory=dict)
    ended: asyncio.Event = field(factory=asyncio.Event)
    reset: int | None = None


class Peer(asyncio.Protocol):
    """What h2 raises about the other side is in ``wrong``."""

    def __init__(self, settings: dict[Setting, int], *, client: bool) -> None:
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
        )
        self.h2.local_settings = h2.settings.Settings(client=client, initial_values=settings)
        self.h2.decoder.max_header_list_size = settings.get(Setting.MAX_HEADER_LIST_SIZE, 2**16)
        self.wrong: Exception | None = None
        self.heard: dict[int, Heard] = {}
        self.largest_frame = 0
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.h2.initiate_connection()
        self.write()

    def write(self) -> None:
        if data := self.h2.data_to_send():
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            for event in self.h2.receive_data(data):
                self.on_event(event)
        except Exception as error:
            self.wrong = error
            self.transport.abort()
        self.write()

    def connection_lost(self, exc: Exception | None) -> None:
        for heard in self.heard.values():
            heard.ended.set()
        self.lost.set()

    def on_event(self, event: h2.events.Event) -> None:
        stream = getattr(event, "stream_id", 0) or 0
        heard = self.heard.setdefault(stream, Heard())
        match event:
            case h2.events.RequestReceived() | h2.events.ResponseReceived():
                heard.fields = dict(event.headers or [])  # type: ignore[arg-type]
            case h2.events.TrailersReceived():
                heard.trailers = dict(event.headers or [])  # type: ignore[arg-type]
            case h2.events.DataReceived():
                self.largest_frame = max(self.largest_frame, event.flow_controlled_length or 0)
                heard.data += event.data or b""
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            case h2.events.StreamReset():
                heard.reset = int(event.error_code or 0)
                heard.ended.set()
            case h2.events.StreamEnded():
                heard.ended.set()


class Server(Peer):
    """Sends back what the first message holds, in the turn after it came, and counts calls at a time."""

    def __init__(self, settings: dict[Setting, int], servers: list[Server]) -> None:
        super().__init__(settings, client=False)
        self.open, self.most_open = set[int](), 0
        servers.append(self)

    def on_event(self, event: h2.events.Event) -> None:
        super().on_event(event)
        stream = getattr(event, "stream_id", 0) or 0
        match event:
            case h2.events.RequestReceived():
                self.open.add(stream)
                self.most_open = max(self.most_open, len(self.open))
            case h2.events.DataReceived() if stream in self.open:
                data = self.heard[stream].data
                if len(data) >= 5 + int.from_bytes(data[1:5]):
                    asyncio.get_running_loop().call_soon(self.answer, stream)
            case h2.events.StreamReset():
                self.open.discard(stream)

    def answer(self, stream: int) -> None:
        if stream in self.open:
            self.open.discard(stream)
            data = bytes(self.heard[stream].data)
            self.h2.send_headers(stream, HEAD)
            self.h2.send_data(stream, b"\x00\x00\x00\x00\x01" + data[5:6])
            self.h2.send_headers(stream, [("dynamo-end", "ok")], end_stream=True)
            if not self.heard[stream].ended.is_set():
                self.h2.reset_stream(stream, h2.errors.ErrorCodes.NO_ERROR)
            self.write()


@asynccontextmanager
async def serving(settings: dict[Setting, int]) -> AsyncIterator[tuple[str, list[Server]]]:
    """Its address, and one of it for each connection."""
    servers: list[Server] = []
    listener = await asyncio.get_running_loop().create_server(
        lambda: Server(settings, servers), "127.0.0.1", 0
    )
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", servers
        for server in servers:
            server.transport.abort()
            await server.lost.wait()


class Client(Peer):
    def ask(self, body: bytes, *fields: tuple[str, str], end: bool = True) -> Heard:
        stream = self.h2.get_next_available_stream_id()
        heard = self.heard.setdefault(stream, Heard())
        head = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "x"),
            (":path", "/demo/HelloService/greet"),
        ]
        self.h2.send_headers(stream, [*head, ("content-type", "application/json"), *fields])
        self.h2.send_data(stream, body, end_stream=end)
        self.write()
        return heard


@asynccontextmanager
async def client(address: str, settings: dict[Setting, int]) -> AsyncIterator[Client]:
    host, _, port = address.partition("://")[2].rpartition(":")
    loop = asyncio.get_running_loop()
    _, peer = await loop.create_connection(lambda: Client(settings, client=True), host, int(port))
    try:
        yield peer
    finally:
        peer.transport.abort()
        await peer.lost.wait()
