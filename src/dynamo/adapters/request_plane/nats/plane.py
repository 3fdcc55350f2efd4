"""The plane itself: what it serves, and which sessions its calls take."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ClassVar, TypeAlias, cast

from dynamo.adapters.request_plane.carried import CarriedPlane
from dynamo.adapters.request_plane.nats import addresses
from dynamo.adapters.request_plane.nats.broker import Broker
from dynamo.adapters.request_plane.nats.claim import HERE, answer, claimed
from dynamo.adapters.request_plane.nats.group import Group
from dynamo.adapters.request_plane.nats.link import HEAD, SessionLink
from dynamo.adapters.request_plane.nats.server import NatsServer
from dynamo.adapters.request_plane.nats.sessions import Sessions
from dynamo.adapters.request_plane.tcp.link import Call
from dynamo.core.config import Settings
from dynamo.core.errors import ClosedError
from dynamo.core.ports.request_plane import Accept, OutgoingCall, Request, Server
from dynamo.core.wire.connection import Connection

Way: TypeAlias = tuple[str, str, int, int]  # address, endpoint, expected instance and incarnation


def _nothing(_: SessionLink) -> None:
    pass


class NatsRequestPlane(CarriedPlane):
    """One session per address, endpoint and expected instance, shared by all calls; a few for a group."""

    schemes: ClassVar[tuple[str, ...]] = ("nats",)

    def __init__(self, settings: Settings, broker: Broker) -> None:
        super().__init__(settings)
        self._broker = broker
        self._sessions = Sessions(broker)
        self._links: dict[Way, SessionLink] = {}
        self._groups: dict[Way, Group] = {}

    async def start(self) -> None:
        """Connect. Raises UnavailableError, AuthError."""
        await self._sessions.start()

    @asynccontextmanager
    async def serve(
        self, accept: Accept, *, instance_id: int, incarnation: int, address: str | None = None
    ) -> AsyncIterator[Server]:
        target = addresses.parse(address or f"{addresses.SCHEME}{instance_id:016x}")
        name = target.name or f"{incarnation:016x}"
        self._instance_id, self._incarnation = instance_id, incarnation
        broker = self._broker
        server = NatsServer(accept, target.address)

        def receive(_: str, reply: str, data: bytes, nobody: bool) -> None:
            if len(data) < HEAD.size:
                if reply and data:
                    broker.send(answer(reply, HERE))
                return
            session, sequence = HEAD.unpack_from(data)
            link = self._sessions.served(session)
            if link is None and sequence == 0 and reply and server.open:
                link = self._greet(server, session, reply)
            if link is not None:
                link.received(sequence, memoryview(data)[HEAD.size :])

        claim = claimed(broker, name, incarnation, self._settings)
        async with claim if target.name else contextlib.nullcontext():
            alone = await broker.subscribe(addresses.pattern(name), receive)
        held = [alone]
        try:
            if target.group:
                shared = await broker.subscribe(f"dyn.{target.group}", receive, addresses.QUEUE)
                held.append(shared)
                server.withdraw = lambda: broker.withdraw(shared)
            yield server
        finally:
            server.refuse()
            await server.close()  # noqa: ASYNC102 - bounded inside
            for one in held:
                await broker.drop(one)  # noqa: ASYNC102 - bounded inside
            await server.close()  # noqa: ASYNC102 - sessions that came meanwhile; bounded too

    def call(
        self, address: str, request: Request, *, instance_id: int = 0, incarnation: int = 0
    ) -> OutgoingCall:
        return cast(
            Call, self._link((address, request.endpoint, instance_id, incarnation)).connection.open(request)
        )

    def _probe(self, address: str, closed: Callable[[], None]) -> SessionLink:
        return self._dial((address, addresses.PROBE, 0, 0), lambda _: closed())

    async def aclose(self) -> None:
        """End every call and every session, and leave NATS."""
        self._closed = True
        await self._sessions.aclose()

    def _greet(self, server: NatsServer, session: int, inbox: str) -> SessionLink:
        """Take the session that a caller opens."""
        connection = Connection(
            self._options("a caller"), self._budget, dialer=False, accept=server.accept, stream_type=Call
        )
        link = self._sessions.serve(connection, session, inbox, server.ended)
        server.began(link)
        return link

    def _link(self, way: Way) -> SessionLink:
        """The session for a call."""
        if (group := self._groups.get(way)) is not None:
            return group.next(self._loop.time())
        link = self._links.get(way)
        if link is None or link.connection.closed or link.retired:
            if addresses.parse(way[0]).group:
                group = self._groups[way] = Group(lambda: self._dial(way))
                return group.next(self._loop.time())
            link = self._links[way] = self._dial(way, lambda link: self._forget(way, link))
        return link

    def _forget(self, way: Way, link: SessionLink) -> None:
        if self._links.get(way) is link:
            del self._links[way]

    def _dial(self, way: Way, closed: Callable[[SessionLink], None] = _nothing) -> SessionLink:
        """Open a session; calls are taken at once and sent when there is a way to NATS."""
        address, endpoint, instance_id, incarnation = way
        if self._closed:
            raise ClosedError(f"cannot call {address}: this request plane is closed")
        target = addresses.parse(address)
        subject = target.subject(endpoint)
        connection = Connection(
            self._options(address, instance_id, incarnation), self._budget, dialer=True, stream_type=Call
        )

        def pinned(peer: int) -> str:
            return addresses.subject(endpoint, f"{peer:016x}")

        return self._sessions.dial(connection, subject, closed, pinned if target.group else None)


@asynccontextmanager
async def open_nats(url: str, settings: Settings) -> AsyncIterator[NatsRequestPlane]:
    """Open the plane: ``nats://``, or ``nats://host:port,...`` which wins over ``NATS_SERVER``."""
    if url.partition("://")[2].strip("/"):
        settings = settings.replaced(settings.source("request_plane"), nats_server=url)
    plane = NatsRequestPlane(settings, Broker(settings))
    try:
        await plane.start()
        yield plane
    finally:
        await plane.aclose()
