"""The plane itself: its one inbox, the sessions that it opened, and those that it serves."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import attrs
from nats.aio.msg import Msg

from dynamo.adapters.request_plane.nats import addresses
from dynamo.adapters.request_plane.nats.broker import Broker
from dynamo.adapters.request_plane.nats.link import HEAD, SessionLink
from dynamo.adapters.request_plane.nats.server import NatsServer
from dynamo.adapters.request_plane.tcp.link import Call
from dynamo.core.config import Settings
from dynamo.core.errors import ClosedError, ConflictError, DynamoError
from dynamo.core.health import Health, Status
from dynamo.core.ports.request_plane import Accept, Capability, OutgoingCall, Request, RequestPlane, Server
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.opening import Options

NO_RESPONDERS = "503"
LINGER_S = 1.0  # for a caller to hear that a worker closed its session
CLOSE_S = 1.0  # for what closing sessions still say to be sent


class NatsRequestPlane(RequestPlane):
    """One session per address, endpoint and expected instance, shared by all calls to it."""

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self._settings = settings
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._budget = ReceiveBudget(settings.receive_budget_bytes)
        self._inbox = f"_INBOX.dyn.{secrets.token_hex(11)}"
        self._links: dict[tuple[str, str, int, int], SessionLink] = {}
        # Dialled and (True) served: a process that calls itself has both ends of one session.
        self._sessions: dict[tuple[bool, int], SessionLink] = {}
        self._ready: deque[SessionLink] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._pump_task: asyncio.Task[None] | None = None
        self._instance_id = self._incarnation = 0  # ours, once serving
        self._closed = False
        self._capability = Capability(
            schemes=("nats",),
            cross_process=True,
            cross_host=True,
            window_bytes=settings.window_bytes,
            max_message_bytes=settings.max_message_bytes,
        )

    @property
    def capability(self) -> Capability:
        return self._capability

    @property
    def budget(self) -> ReceiveBudget:
        """What this plane may hold of items larger than a window; ``used`` is 0 when nothing is in flight."""
        return self._budget

    async def start(self) -> None:
        """Connect, and open the inbox."""
        self._broker.on_up = self._resume
        await self._broker.subscribe(f"{self._inbox}.>", self._receive)
        await self._broker.start()
        self._pump_task = self._loop.create_task(self._pump())

    @asynccontextmanager
    async def serve(
        self, accept: Accept, *, instance_id: int, incarnation: int, address: str | None = None
    ) -> AsyncIterator[Server]:
        name = f"{instance_id:016x}" if address is None else addresses.parse(address)
        published = addresses.SCHEME + name
        probe = addresses.subject(addresses.PROBE, name)
        taken = await self._broker.ask(probe, self._settings.connect_timeout_s)
        if taken is not None:
            raise ConflictError(f"{published} is served by another process; choose another name")
        self._instance_id, self._incarnation = instance_id, incarnation
        server = NatsServer(accept, published)

        def receive(message: Msg) -> None:
            if len(message.data) < HEAD.size:
                if message.reply:
                    self._loop.create_task(self._broker.publish(message.reply, b"here", ""))
                return
            session, sequence = HEAD.unpack_from(message.data)
            link = self._sessions.get((True, session))
            if link is None and sequence == 0 and message.reply and server.open:
                connection = Connection(
                    self._options("a caller"),
                    self._budget,
                    dialer=False,
                    accept=server.accept,
                    stream_type=Call,
                )
                link = self._link(connection, session, message.reply, server)
            if link is not None:
                link.received(sequence, memoryview(message.data)[HEAD.size :])

        subscription = await self._broker.subscribe(addresses.pattern(name), receive)
        try:
            yield server
        finally:
            server.refuse()
            await server.close()
            await self._broker.drop(subscription)

    def call(
        self, address: str, request: Request, *, instance_id: int = 0, incarnation: int = 0
    ) -> OutgoingCall:
        key = (address, request.endpoint, instance_id, incarnation)
        link = self._links.get(key)
        if link is None or link.connection.closed:
            link = self._dial(address, request.endpoint, instance_id, incarnation)
            self._links[key] = link
        return cast(Call, link.connection.open(request))

    async def check(self, address: str) -> Health:
        try:
            link = self._dial(address, addresses.PROBE, 0, 0)
        except DynamoError as error:
            return Health(status=Status.DOWN, detail=str(error))
        ready: asyncio.Future[DynamoError | None] = self._loop.create_future()

        def settle(_: SessionLink | None = None) -> None:
            if not ready.done():
                ready.set_result(link.connection.error)

        forget = link.on_closed

        def closed(_: SessionLink) -> None:
            settle()
            if forget is not None:
                forget(link)

        link.connection.on_ready = settle
        link.on_closed = closed
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s * 2):
                problem = await ready
        except TimeoutError:
            return Health(status=Status.DOWN, detail=f"no answer from {address}")
        finally:
            link.close()
        return Health(status=Status.UP if problem is None else Status.DOWN, detail=str(problem or address))

    async def aclose(self) -> None:
        """End every call and every session, and leave NATS."""
        self._closed = True
        for link in list(self._sessions.values()):
            link.close()
        try:
            async with asyncio.timeout(CLOSE_S if self._broker.up else 0):
                await self._idle_now()
        except TimeoutError:
            pass
        for link in list(self._sessions.values()):
            link.finish()
        if (task := self._pump_task) is not None:
            while not task.done():  # nats-py swallows a cancellation here and there
                task.cancel()
                await asyncio.wait((task,), timeout=0.1)
        await self._broker.aclose()

    async def _idle_now(self) -> None:
        while self._sessions:
            self._idle.clear()
            await self._idle.wait()

    def _options(self, peer: str, instance_id: int = 0, incarnation: int = 0) -> Options:
        settings = self._settings
        return Options(
            instance_id=self._instance_id,
            incarnation=self._incarnation,
            expected_instance_id=instance_id,
            expected_incarnation=incarnation,
            window_bytes=settings.window_bytes,
            max_message_bytes=settings.max_message_bytes,
            token=settings.auth_token,
            keepalive_s=settings.keepalive_s,
            opening_s=settings.connect_timeout_s,
            peer=peer,
        )

    def _dial(self, address: str, endpoint: str, instance_id: int, incarnation: int) -> SessionLink:
        """Open a session; calls are taken at once and sent when there is a way to NATS."""
        if self._closed:
            raise ClosedError(f"cannot call {address}: this request plane is closed")
        target = addresses.subject(endpoint, addresses.parse(address))
        connection = Connection(
            self._options(address, instance_id, incarnation), self._budget, dialer=True, stream_type=Call
        )
        link = self._link(connection, secrets.randbits(64), target)
        connection.on_idle = lambda: self._left(link)
        return link

    def _left(self, link: SessionLink) -> None:
        """Its last call ended: a session whose worker drains is over."""
        if link.connection.draining:
            self._loop.call_soon(self._leave, link)

    def _leave(self, link: SessionLink) -> None:
        if not link.connection.open_streams:
            link.close()

    def _link(
        self, connection: Connection, session: int, target: str, server: NatsServer | None = None
    ) -> SessionLink:
        key = (server is not None, session)

        def closed(link: SessionLink) -> None:
            del self._sessions[key]
            for way, known in list(self._links.items()):
                if known is link:
                    del self._links[way]
            if server is not None:
                server.ended(link)
            self._idle.set()

        link = SessionLink(
            connection,
            session,
            target,
            f"{self._inbox}.{'caller' if server is None else 'worker'}.{session:016x}",
            self._queue,
            closed,
            linger_s=0 if server is None else LINGER_S,
        )
        self._sessions[key] = link
        if server is not None:
            server.began(link)
        return link

    def _receive(self, message: Msg) -> None:
        """What came to the inbox: responses, and word of messages that nobody took."""
        if message.headers and message.headers.get("Status") == NO_RESPONDERS:
            *_, whose, hex_session, which = message.subject.split(".")
            link = self._sessions.get((whose == "worker", int(hex_session, 16)))
            if link is not None:
                link.nobody(first=which == "0")
        elif len(message.data) >= HEAD.size:
            session, sequence = HEAD.unpack_from(message.data)
            if (link := self._sessions.get((False, session))) is not None:
                link.received(sequence, memoryview(message.data)[HEAD.size :])

    def _queue(self, link: SessionLink) -> None:
        self._ready.append(link)
        self._wake.set()

    def _resume(self) -> None:
        for link in list(self._sessions.values()):
            link.resumed()
        self._wake.set()

    async def _pump(self) -> None:
        """Publish what sessions have to say, in turns; while NATS is away it stays in their windows."""
        broker, ready = self._broker, self._ready
        while True:
            await self._wake.wait()
            self._wake.clear()
            while ready and broker.up:
                link = ready.popleft()
                link.queued = False
                for reply, data in link.messages(broker.max_payload):
                    await broker.publish(link.target, data, reply)
                if link.connection.has_output and not link.queued and not link.closed:
                    link.queued = True
                    ready.append(link)


@asynccontextmanager
async def open_nats(url: str, settings: Settings) -> AsyncIterator[NatsRequestPlane]:
    """Open the plane: ``nats://``, or ``nats://host:port,...`` which wins over ``NATS_SERVER``."""
    if url.partition("://")[2].strip("/"):
        settings = attrs.evolve(settings, nats_server=url)
    plane = NatsRequestPlane(settings, Broker(settings))
    try:
        await plane.start()
        yield plane
    finally:
        await plane.aclose()
