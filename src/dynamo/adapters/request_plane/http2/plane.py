"""The plane itself: tcp's connections, their TLS, and how they are opened and closed, with HTTP/2 on them."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

from dynamo.adapters.request_plane.http2.addresses import HttpAddress, parse
from dynamo.adapters.request_plane.http2.connection import Http2Connection
from dynamo.adapters.request_plane.tcp import tls
from dynamo.adapters.request_plane.tcp.addresses import HostPort, UnixPath, is_loopback
from dynamo.adapters.request_plane.tcp.link import Link
from dynamo.adapters.request_plane.tcp.plane import TcpRequestPlane, with_options
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.ports.request_plane import Accept, Server
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.opening import Options
from dynamo.core.wire.stream import Stream

ALPN = ["h2"]


class Http2RequestPlane(TcpRequestPlane):
    """One connection per address and expected instance, shared by all calls to it; one that its peer wants no
    more calls on, such as a proxy's whose time is over, keeps those that it has.
    """

    schemes: ClassVar[tuple[str, ...]] = ("http", "https", "http2")
    address_type: ClassVar[type[HostPort]] = HttpAddress

    def _parse(self, address: str) -> HttpAddress:
        return parse(address)

    @asynccontextmanager
    async def serve(
        self, accept: Accept, *, instance_id: int, incarnation: int, address: str | None = None
    ) -> AsyncIterator[Server]:
        self._refuse_to_hear_the_token_in_the_clear()
        serving = super().serve(accept, instance_id=instance_id, incarnation=incarnation, address=address)
        async with serving as server:
            self._refuse_to_hear_the_token_in_the_clear(*server.addresses)
            yield server

    def _refuse_to_hear_the_token_in_the_clear(self, *addresses: str) -> None:
        """Callers would send it to there; what is bound counts as much as what is published."""
        settings = self._settings
        if not settings.auth_token or settings.tls_cert_path:
            return
        heard_at = {there: urlsplit(there).hostname or "" for there in addresses}
        if settings.tcp_bind:
            heard_at[settings.tcp_bind] = settings.tcp_bind
        for there, host in heard_at.items():
            if not is_loopback(host):
                raise ConfigError(
                    f"{settings.source('auth_token')} would come to {there} in the clear; serve with TLS "
                    f"({settings.source('tls_cert_path')}), on loopback "
                    f"({settings.source('tcp_host')}=127.0.0.1), or over tcp, which proves it"
                )

    def _dialling(self, options: Options, target: HostPort | UnixPath) -> Connection:
        assert isinstance(target, HttpAddress)
        if options.token and not (target.tls or is_loopback(target.host)):
            raise ConfigError(
                f"{self._settings.source('auth_token')} would be sent to {target} in the clear; serve with "
                f"TLS ({self._settings.source('tls_cert_path')}), or use tcp, which proves it"
            )
        return _driven(
            Http2Connection(options, self._budget, dialer=True, scheme=HttpAddress.SCHEMES[target.tls])
        )

    def _answering(self, options: Options, accept: Callable[[Stream], None]) -> Connection:
        return _driven(
            Http2Connection(options, self._budget, dialer=False, accept=cast(Callable[[Any], None], accept))
        )

    def _is_spent(self, link: Link) -> bool:
        connection = cast(Http2Connection, link.connection)
        return connection.closed or connection.spent

    def _client_context(self) -> ssl.SSLContext:
        context = tls.client_context(self._settings)
        context.set_alpn_protocols(ALPN)
        return context

    def _server_context(self) -> ssl.SSLContext | None:
        context = tls.server_context(self._settings)
        if context is not None:
            context.set_alpn_protocols(ALPN)
        return context


def _driven(connection: Http2Connection) -> Connection:
    """To the driver of connections it is one like the native protocol's: it has what a ``Link`` asks for."""
    return cast(Connection, connection)


@asynccontextmanager
async def open_http2(url: str, settings: Settings) -> AsyncIterator[Http2RequestPlane]:
    """Open the plane: ``http://``; its options host, port and bind win over ``DYN_TCP_RPC_*``."""
    plane = Http2RequestPlane(with_options(url, settings))
    try:
        yield plane
    finally:
        await plane.aclose()
