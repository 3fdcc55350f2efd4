"""The worker's end: sockets that listen, the connections that came in, and how they are told to leave."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

from dynamo.adapters.request_plane.carried import CarriedServer
from dynamo.adapters.request_plane.tcp import tls, unix
from dynamo.adapters.request_plane.tcp.addresses import ANY_HOST, HostPort, UnixPath, own_address
from dynamo.adapters.request_plane.tcp.arrivals import QUEUE, Arrivals, Door
from dynamo.adapters.request_plane.tcp.link import Link
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, ConflictError, UnsupportedError
from dynamo.core.ports.request_plane import Accept
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.stream import Stream

MAX_OPENING = 1024  # connections that have not said who they are; one more costs the oldest its place
WELCOME_S = 0.5  # for who connected at the very end to learn that nobody serves here any more
UNIX_ATTEMPTS = 5  # at a directory that the last of others has just removed
CLOSE_S = 1.5  # for connections to end by themselves when the server closes


class TcpServer(CarriedServer):
    """All connections of one serving runtime, whatever socket they came in by."""

    def __init__(self, accept: Accept, connection: Callable[[Callable[[Stream], None]], Connection]) -> None:
        super().__init__()
        self._connection = connection
        self._accept = cast("Callable[[Stream], None]", accept)  # its streams are Calls
        self._links: set[Link] = set()
        self._opening: dict[Link, None] = {}  # insertion order: the first is the oldest
        self._idle, self._all_known = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._all_known.set()
        self.addresses_: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.addresses_

    def abort(self) -> None:
        """Close every connection at once, as a killed process does."""
        for link in list(self._links):
            link.abort()

    async def welcomed(self) -> None:
        """Wait, bounded, until all who connected have said hello, and know whether they are served here."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WELCOME_S):
                await self._all_known.wait()

    async def close(self) -> None:
        """End every call and connection; those that do not leave in time are aborted."""
        for link in list(self._links):
            link.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._idle.wait()
        except TimeoutError:
            self.abort()

    def link(self, kind: type[Link] = Link) -> Link:
        """What asyncio makes for a connection that came in."""
        connection = self._connection(self._accept)
        link = kind(connection, "a caller", self._ended)
        connection.on_ready = lambda: self._ready(link)
        self._links.add(link)
        self._opening[link] = None
        self._idle.clear()
        self._all_known.clear()
        if len(self._opening) > MAX_OPENING:
            next(iter(self._opening)).abort()
        return link

    def _carrying(self) -> Iterable[Link]:
        return self._links

    def _ready(self, link: Link) -> None:
        self._known(link)
        self._greeted(link)

    def _ended(self, link: Link) -> None:
        self._links.discard(link)
        self._known(link)
        if not self._links:
            self._idle.set()

    def _known(self, link: Link) -> None:
        self._opening.pop(link, None)
        if not self._opening:
            self._all_known.set()


@asynccontextmanager
async def listening(
    server: TcpServer,
    settings: Settings,
    incarnation: int,
    declared: HostPort | None,
    context: ssl.SSLContext | None,
    address_type: type[HostPort] = HostPort,
) -> AsyncIterator[None]:
    """Listen for ``server`` on TCP or TLS and, where it can be had, on a Unix socket.

    ``address_type`` is what the published address is; only the native one has a Unix socket.
    """
    if declared is not None and declared.tls != (context is not None):
        have = "is set" if context else "is not set"
        raise ConfigError(f"the declared address {declared}, but {settings.source('tls_cert_path')} {have}")
    async with contextlib.AsyncExitStack() as stack:
        bound, published = await _bind(settings, declared, address_type, context)
        stack.callback(bound.close)
        addresses = [str(published)]
        beside: socket.socket | None = None
        if address_type is HostPort and not tls.is_mutual(settings):
            with contextlib.suppress(UnsupportedError):
                beside, path = stack.enter_context(_unix(incarnation))
                addresses.insert(0, str(path))
        arrivals = Arrivals(settings.connect_timeout_s)
        stack.push_async_callback(arrivals.aclose)
        arrivals.accept(Door(bound, server.link, context))
        if beside is not None:
            arrivals.accept(Door(beside, lambda: server.link(unix.UnixLink)))
        server.addresses_ = tuple(addresses)
        try:
            yield
        finally:
            server.refuse()
            arrivals.finish()
            await server.welcomed()


@contextmanager
def _unix(incarnation: int) -> Iterator[tuple[socket.socket, UnixPath]]:
    """The fast path for callers of this user on this boot. Raises UnsupportedError before it yields."""
    path, listener = _unix_listener(incarnation)
    try:
        yield listener, UnixPath(unix.boot_id() or "", path)
    finally:
        listener.close()
        unix.remove(path)


def _unix_listener(incarnation: int) -> tuple[str, socket.socket]:
    """Raises UnsupportedError."""
    attempts = 0
    while True:
        path = unix.socket_path(incarnation)
        try:
            return path, _listen_at(path)
        except OSError as error:
            attempts += 1
            gone = isinstance(error, FileNotFoundError)  # who left last took the directory along
            if not gone or attempts == UNIX_ATTEMPTS:
                raise UnsupportedError(f"no Unix socket at {path}: {error}") from error


def _listen_at(path: str) -> socket.socket:
    """It appears listening: one that refuses is taken for a dead one's. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fresh = f"{path}.new"
    try:
        listener.setblocking(False)
        listener.bind(fresh)
        os.chmod(fresh, 0o600)
        listener.listen(QUEUE)
        os.rename(fresh, path)
    except OSError:
        listener.close()
        unix.remove(fresh)
        raise
    return listener


async def _bind(
    settings: Settings,
    declared: HostPort | None,
    address_type: type[HostPort],
    context: ssl.SSLContext | None,
) -> tuple[socket.socket, HostPort]:
    """A listening socket, and the address that others dial."""
    host = declared.host if declared else settings.tcp_host or settings.pod_ip or own_address()
    port = declared.port if declared else settings.tcp_port
    if host in ANY_HOST:
        host, bind_host = settings.pod_ip or own_address(), host
    else:
        bind_host = host
    bind_host = settings.tcp_bind or bind_host
    shown = f"{bind_host}:{port}"
    source = settings.source("tcp_bind" if settings.tcp_bind else "tcp_host")
    asked = None if bind_host in ("", "*") else bind_host
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            asked, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot listen on {shown}: {source} does not resolve: {error}") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setblocking(False)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if bind_host == "::" else 1)
        listener.bind(address)
        listener.listen(QUEUE)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"port in use: {shown}; choose another {settings.source('tcp_port')}, or 0 for any free one"
            ) from error
        raise ConfigError(
            f"cannot listen on {shown}: {error.strerror}; set {source} to an address of this host"
        ) from error
    return listener, address_type(host, listener.getsockname()[1], context is not None)
