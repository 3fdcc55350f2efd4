"""The plane itself: what it dials, what it serves, and the connections that it keeps."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import attrs

from dynamo.adapters.request_plane.carried import CarriedPlane
from dynamo.adapters.request_plane.tcp import tls, unix
from dynamo.adapters.request_plane.tcp.addresses import HostPort, UnixPath, parse
from dynamo.adapters.request_plane.tcp.link import Call, Link
from dynamo.adapters.request_plane.tcp.server import TcpServer, listening
from dynamo.core.config import Settings
from dynamo.core.errors import (
    AuthError,
    ClosedError,
    ConfigError,
    DynamoError,
    UnavailableError,
    UnsupportedError,
)
from dynamo.core.health import Health, Status
from dynamo.core.ports.request_plane import Accept, OutgoingCall, Request, Server
from dynamo.core.registry import url_options
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.opening import Options
from dynamo.core.wire.stream import Stream

_X509_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH of OpenSSL
_X509_WRONG_TIME = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID and _CERT_HAS_EXPIRED


class TcpRequestPlane(CarriedPlane):
    """One connection per address and expected instance, shared by all calls to it."""

    schemes: ClassVar[tuple[str, ...]] = ("tcp", "tcps", "unix")
    address_type: ClassVar[type[HostPort]] = HostPort

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._links: dict[tuple[str, int, int], Link] = {}
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
        try:
            async with listening(server, self._settings, incarnation, declared, context, self.address_type):
                yield server
        finally:
            await server.close()

    def call(
        self, address: str, request: Request, *, instance_id: int = 0, incarnation: int = 0
    ) -> OutgoingCall:
        link = self._links.get((address, instance_id, incarnation))
        if link is None or link.connection.closed:
            link = self._silent(instance_id, incarnation) or self._dial(address, instance_id, incarnation)
        return cast(Call, link.connection.open(request))

    def _silent(self, instance_id: int, incarnation: int) -> Link | None:
        """A link to that instance which has stalled: a frozen process answers at no other address either."""
        for (_, *known), link in self._links.items():
            if instance_id and known == [instance_id, incarnation] and link.connection.stalled:
                return link
        return None

    async def check(self, address: str) -> Health:
        try:
            link = self._dial(address, 0, 0, keep=False)
        except DynamoError as error:
            return Health(status=Status.DOWN, detail=str(error))
        ready: asyncio.Future[DynamoError | None] = self._loop.create_future()

        def settle(_: Link | None = None) -> None:
            if not ready.done():
                ready.set_result(link.connection.error)

        link.connection.on_ready = settle
        link.on_closed = settle
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s * 2):
                problem = await ready
        except TimeoutError:
            return Health(status=Status.DOWN, detail=f"no answer from {address}")
        finally:
            link.on_closed = None
            link.close()
        return Health(status=Status.UP if problem is None else Status.DOWN, detail=str(problem or address))

    async def aclose(self) -> None:
        """End every call and every connection that was dialled."""
        self._closed = True
        for task in self._connecting:
            task.cancel()
        for link in list(self._links.values()):
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
            if self._links.get(key) is link:
                del self._links[key]

        link = Link(connection, address, closed, _silent_hint(target))
        connection.on_idle = lambda: self._idle(link)
        if keep:
            self._links[key] = link
        task = self._loop.create_task(self._connect(link, address, target))
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

    def _client_context(self) -> ssl.SSLContext:
        return tls.client_context(self._settings)

    def _server_context(self) -> ssl.SSLContext | None:
        return tls.server_context(self._settings)

    def _idle(self, link: Link) -> None:
        if link.connection.draining:
            self._loop.call_soon(self._leave, link)

    def _leave(self, link: Link) -> None:
        if not link.connection.open_streams:
            link.close()

    async def _connect(self, link: Link, address: str, target: HostPort | UnixPath) -> None:
        timeout_s = self._settings.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self._open_transport(link, target)
        except TimeoutError:
            link.fail(
                UnavailableError(
                    f"no connection to {address} within {timeout_s:g} s "
                    f"({self._settings.source('connect_timeout_s')})"
                )
            )
        except ssl.SSLCertVerificationError as error:
            problem = f"{address} has no certificate that we trust: {error.verify_message.rstrip('.')}"
            link.fail(_because(AuthError(f"{problem}; {self._way_out(error)}"), error))
        except (ssl.SSLError, ConnectionResetError, EOFError) as error:
            hint = ""
            if isinstance(target, HostPort) and target.tls:
                hint = f"; is it a plain {target.SCHEMES[0]}:// port, without DYN_TCP_TLS_CERT_PATH?"
            reason = str(error) or "it closed the connection during the handshake"
            link.fail(_because(UnavailableError(f"cannot connect to {address}: {reason}{hint}"), error))
        except OSError as error:
            reason = (
                os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            )
            link.fail(_because(UnavailableError(f"cannot connect to {address}: {reason}"), error))
        except DynamoError as error:
            link.fail(error)
        except asyncio.CancelledError:
            link.abort()
            raise

    def _way_out(self, error: ssl.SSLCertVerificationError) -> str:
        if error.verify_code in _X509_WRONG_NAME:
            return f"set {self._settings.source('tls_server_name')} to a name that is in it"
        if error.verify_code in _X509_WRONG_TIME:
            return "renew it, or set this host's clock"
        return f"set {self._settings.source('tls_ca_cert_path')} to its authority"

    async def _open_transport(self, link: Link, target: HostPort | UnixPath) -> None:
        if isinstance(target, UnixPath):
            transport, _ = await self._loop.create_unix_connection(lambda: link, target.path)
            if not unix.same_user(transport.get_extra_info("socket")):
                raise UnavailableError(f"the process at {target} belongs to another user")
        elif target.tls:
            if self._tls is None:
                self._tls = self._client_context()
            await self._loop.create_connection(
                lambda: link,
                target.host,
                target.port,
                ssl=self._tls,
                server_hostname=self._settings.tls_server_name or target.host,
                ssl_handshake_timeout=self._settings.connect_timeout_s,
            )
        else:
            await self._loop.create_connection(lambda: link, target.host, target.port)


def _silent_hint(target: HostPort | UnixPath) -> str:
    """What it may mean that a connection was closed before a word came from the other side."""
    if isinstance(target, UnixPath):
        return "it closed the connection before it said anything"
    if target.tls:
        return (
            "it closed the connection after the TLS handshake, before it said anything; if it demands client "
            "certificates, set DYN_TCP_TLS_CLIENT_CERT_PATH and DYN_TCP_TLS_CLIENT_KEY_PATH to one it trusts"
        )
    return (
        "it closed the connection before it said anything; if it listens with TLS (DYN_TCP_TLS_CERT_PATH), "
        f"its address is {target.SCHEMES[1]}://"
    )


def _because(error: DynamoError, cause: BaseException) -> DynamoError:
    error.__cause__ = cause
    return error


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
    for name, value in url_options(url, ("host", "port", "bind")).items():
        try:
            settings = attrs.evolve(settings, **{f"tcp_{name}": cast(Any, value)})
        except ConfigError as error:
            raise ConfigError(f"{url}: {error}") from error
    return settings
