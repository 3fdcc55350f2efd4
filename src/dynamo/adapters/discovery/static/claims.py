"""Which declared address this process takes on."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from urllib.parse import urlsplit

from dynamo.adapters.discovery.static.declaration import WITH_PORT, Declaration
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.model import EndpointId
from dynamo.core.ports.discovery import Identity

_taken: set[str] = set()  # by the runtimes of this process
_lock = threading.Lock()


class Claims:
    """The addresses that one runtime took on.

    One that it got but could not bind stays taken, so that it gets the next; ``release`` frees all.
    """

    def __init__(self, declaration: Declaration, settings: Settings) -> None:
        self._declaration, self._settings = declaration, settings
        self._ours: list[str] = []

    async def next(self, endpoint_id: EndpointId) -> Identity:
        """The first address declared for the endpoint that is ours and free.

        Raises ConfigError that tells why none is.
        """
        declared = self._declaration.of(endpoint_id)
        refused: list[str] = []
        for address in self._choice(endpoint_id, list(declared)):
            reason = await self._unusable(address)
            if not reason and not self._take(address):
                reason = "taken by this process"
            if not reason:
                return Identity(instance_id=declared[address], address=address)
            refused.append(f"{address} ({reason})")
        raise ConfigError(
            f"this process can take on none of the addresses declared for {endpoint_id} in "
            f"{self._declaration.source}: {', '.join(refused)}; declare one of this host that is free"
        )

    def release(self) -> None:
        """Leave the addresses to others."""
        with _lock:
            _taken.difference_update(self._ours)
        self._ours.clear()

    def _take(self, address: str) -> bool:
        with _lock:
            if address in _taken:
                return False
            _taken.add(address)
        self._ours.append(address)
        return True

    def _choice(self, endpoint_id: EndpointId, declared: list[str]) -> list[str]:
        """Those that agree with what the settings say of our host and port."""
        settings = self._settings
        asked = {"tcp_host": settings.tcp_host, "tcp_port": settings.tcp_port or None}
        said = " and ".join(f"{settings.source(name)}={value}" for name, value in asked.items() if value)
        found = [address for address in declared if _agrees(address, settings.tcp_host, settings.tcp_port)]
        if not found:
            raise ConfigError(
                f"none of the addresses declared for {endpoint_id} in {self._declaration.source} has {said}: "
                f"{', '.join(declared)}"
            )
        hosts = {urlsplit(address).hostname for address in found if _has_port(address)}
        if settings.tcp_bind and len(hosts) > 1:
            raise ConfigError(
                f"{settings.source('tcp_bind')} says where to listen, not which of {', '.join(found)} "
                "that is: set DYN_TCP_RPC_HOST to the one that is ours"
            )
        return found

    async def _unusable(self, address: str) -> str:
        """Why we could not listen there; nothing if we could, as far as one can try without doing it."""
        if not _has_port(address):
            return ""
        parts = urlsplit(address)
        host = self._settings.tcp_bind or parts.hostname
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, parts.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )
        except TimeoutError:
            return f"{host} did not resolve in {self._settings.connect_timeout_s:g} s"
        except OSError as error:
            return f"{host} does not resolve: {error.strerror or error}"
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":  # as a server does, or connections of its predecessor would be in the way
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(target)
            except OSError as error:
                known = {errno.EADDRINUSE: "in use", errno.EADDRNOTAVAIL: "not an address of this host"}
                return known.get(error.errno or 0, error.strerror or str(error))
        return ""


def _has_port(address: str) -> bool:
    return address.partition("://")[0] in WITH_PORT


def _agrees(address: str, host: str | None, port: int) -> bool:
    if not _has_port(address):
        return True
    parts = urlsplit(address)
    return (not host or parts.hostname == host.lower()) and (not port or parts.port == port)
