"""The plane itself: what it dials, what it serves, and the connections that it keeps."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import attrs

from dynamo.adapters.request_plane.carried import CarriedPlane
from dynamo.adapters.request_plane.tcp import tls, unix
from dynamo.adapters.request_plane.tcp.addresses import HostPort, UnixPath, parse
from dynamo.adapters.request_plane.tcp.dialling import connect, silent_hint
from dynamo.adapters.request_plane.tcp.link import Call, Link
from dynamo.adapters.request_plane.tcp.server import TcpServer, listening
from dynamo.core.config import Settings
from dynamo.core.errors import ClosedError, ConfigError, UnsupportedError
from dynamo.core.ports.request_plane import Accept, OutgoingCall, Request, Server
from dynamo.core.registry import url_options
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.opening import Options
from dynamo.core.wire.stream import Stream

WITH_TLS = ("tcps", "https")  # chosen by name to serve on


class TcpRequestPlane(CarriedPlane):
    """One connection per address and expected instance, shared by all calls to it."""

    schemes: ClassVar[tuple[str, ...]] = ("tcp", "tcps", "unix")
    address_type: ClassVar[type[HostPort]] = HostPort

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._links: dict[tuple[str, int, int], Link] = {}  # that take the calls
        self._open: set[Link] = set()  # all that were dialled
        self._connecting: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None

    @asynccontextmanager
    async def serve(
        self, accept: Accept, *, instance_id: int, incarnation: int, address: str | None = None
    ) -> AsyncIterator[Server]:
        declared = None if address is None else self._parse(address)
        if isinstance(declared, UnixPath):
            raise ConfigError(
                f"cannot serve at {address}: declare tcp://host:port; the Unix socket comes by itself"
            )
        self._instance_id, self._incarnation = instance_id, incarnation

        def connection(accept_stream: Callable[[Stream], None]) -> Connection:
            return self._answering(self._options("a caller"), accept_stream)

        server = TcpServer(accept, connection)
        context = self._server_context()
        wanted = self._settings.request_plane.partition("://")[0]
        if context is None and wanted in WITH_TLS:
            raise ConfigError(
                f"{self._settings.source('request_plane')}={wanted} is TLS, which needs a certificate: set "
                f"{self._settings.source('tls_cert_path')}"
            )
        try:
            async with listening(server, self._settings, incarnation, declared, context, self.address_type):
                yield server
        finally:
            await server.close()

    def call(
        self, address: str, request: Request, *, instance_id: int = 0, incarnation: int = 0
    ) -> OutgoingCall:
        link = self._links.get((address, instance_id, incarnation))
        if link is None or self._is_spent(link):
            link = self._silent(instance_id, incarnation) or self._dial(address, instance_id, incarnation)
        return link.open(request)

    def _silent(self, instance_id: int, incarnation: int) -> Link | None:
        """A link to that instance which has stalled: a frozen process answers at no other address either."""
        for (_, *known), link in self._links.items():
            if instance_id and known == [instance_id, incarnation] and link.connection.stalled:
                return link
        return None

    def _probe(self, address: str, closed: Callable[[], None]) -> Link:
        link = self._dial(address, 0, 0, keep=False)

        def gone(link: Link) -> None:
            self._open.discard(link)
            closed()

        link.on_closed = gone
        return link

    async def aclose(self) -> None:
        """End every call and every connection that was dialled."""
        self._closed = True
        for task in self._connecting:
            task.cancel()
        for link in list(self._open):
            link.close()
            link.abort()
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def _dial(self, address: str, instance_id: int, incarnation: int, *, keep: bool = True) -> Link:
        """Start connecting; calls are taken at once and sent when there is a connection."""
        if self._closed:
            raise ClosedError(f"cannot call {address}: this request plane is closed")
        target = self._parse(address)
        if isinstance(target, UnixPath) and not unix.usable(target.boot_id, target.path):
            raise UnsupportedError(f"{address} cannot be reached from this process")
        options = self._options(address, instance_id, incarnation)
        connection = self._dialling(options, target)
        key = (address, instance_id, incarnation)

        def closed(link: Link) -> None:
            self._open.discard(link)
            if self._links.get(key) is link:
                del self._links[key]

        kind = unix.UnixLink if isinstance(target, UnixPath) else Link
        link = kind(connection, address, closed, silent_hint(target))
        connection.on_idle = lambda: self._idle(link)
        self._open.add(link)
        if keep:
            self._links[key] = link
        task = self._loop.create_task(connect(link, target, self._settings, self._context))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return link

    # What another protocol on the same kind of connections does its own way.

    def _parse(self, address: str) -> HostPort | UnixPath:
        return parse(address)

    def _dialling(self, options: Options, target: HostPort | UnixPath) -> Connection:
        return Connection(options, self._budget, dialer=True, stream_type=Call)

    def _answering(self, options: Options, accept: Callable[[Stream], None]) -> Connection:
        return Connection(options, self._budget, dialer=False, accept=accept, stream_type=Call)

    def _is_spent(self, link: Link) -> bool:
        """Calls need another connection."""
        return link.connection.closed

    def _client_context(self) -> ssl.SSLContext:
        return tls.client_context(self._settings)

    def _server_context(self) -> ssl.SSLContext | None:
        return tls.server_context(self._settings)

    def _context(self) -> ssl.SSLContext:
        if (context := self._tls) is None:
            context = self._client_context()
            if context.cert_store_stats()[
                "x509_ca"
            ]:  # OpenSSL does not say that it could not read the system's
                self._tls = context
        return context

    def _idle(self, link: Link) -> None:
        if link.connection.draining:
            self._loop.call_soon(self._leave, link)

    def _leave(self, link: Link) -> None:
        if not link.connection.open_streams:
            link.close()


@asynccontextmanager
async def open_tcp(url: str, settings: Settings) -> AsyncIterator[TcpRequestPlane]:
    """Open the plane: ``tcp://``; its options host, port and bind win over ``DYN_TCP_RPC_*``."""
    plane = TcpRequestPlane(with_options(url, settings))
    try:
        yield plane
    finally:
        await plane.aclose()


def with_options(url: str, settings: Settings) -> Settings:
    """The settings with what the URL says of where to listen. Raises ConfigError."""
    scheme, _, rest = url.partition("://")
    if rest.partition("?")[0]:
        raise ConfigError(
            f"{url}: where to listen is said by options, as {scheme}://?host=10.0.0.1&port=7000, or by "
            f"{settings.source('tcp_host')} and {settings.source('tcp_port')}"
        )
    for name, value in url_options(url, ("host", "port", "bind")).items():
        try:
            settings = attrs.evolve(settings, **{f"tcp_{name}": cast(Any, value)})
        except ConfigError as error:
            raise ConfigError(f"{url}: {error}") from error
    return settings
