"""Sends requests to the API server, with credentials that are as young as the place where they are kept.

A token is replaced about every hour, and client certificates and authorities from time to time, while workers
run for weeks. What is kept is read again now and then, and at once where the server refused it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import aiohttp
import anyio
from kubernetes.aio.client import ApiClient, Configuration

from dynamo.adapters.discovery.kubernetes import credentials
from dynamo.adapters.discovery.kubernetes.configuration import KubernetesConfig
from dynamo.adapters.discovery.kubernetes.credentials import TOKEN
from dynamo.adapters.discovery.kubernetes.program import Programs
from dynamo.core.errors import ConfigError

REREAD_S = 10.0  # a service account's
REREAD_USER_S = 60.0  # a kubeconfig may name a program that makes tokens
PATIENCE_S = 1.0  # of a request, with such a program; then it goes with the credentials of before
IDLE_S = 30.0  # a connection without a request; the API server keeps it for 90 s
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}  # a dead link shows in 20 s
CLOSE_S, TURN_S = 1.0, 0.002

log = logging.getLogger(__name__)


class Way:
    """To one API server, as one user of it."""

    def __init__(self, config: KubernetesConfig, found: credentials.Found, programs: Programs) -> None:
        self.namespace = config.namespace or found.namespace
        self._config, self._context, self._programs = config, found.context, programs
        self._connections = Connections(found.configuration)
        self._former: list[Connections] = []  # with other certificates; what is under way there goes on
        self._renewals = 0
        self._read_at = time.monotonic()
        self._reading: asyncio.Task[None] | None = None

    @property
    def host(self) -> str:
        return str(self._connections.configuration.host)

    async def close(self) -> None:
        """Close all connections."""
        with anyio.move_on_after(CLOSE_S, shield=True):
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.wait((self._reading,))
            for connections in (self._connections, *self._former):
                await connections.close()

    async def send(
        self, method: str, path: str, query: Sequence[tuple[str, str]], body: Any, content_type: str
    ) -> aiohttp.ClientResponse:
        """The beginning of the answer, whatever it is. Raises aiohttp's and the system's errors."""
        reread_s = REREAD_S if self._config.kubeconfig is None else REREAD_USER_S
        if time.monotonic() - self._read_at > reread_s:
            await self._read_again(PATIENCE_S)
        renewals = self._renewals
        response = await self._connections.send(method, path, query, body, content_type)
        if response.status == 401:
            if renewals == self._renewals:  # else another request has seen to it meanwhile
                self._programs.forget()
                await self._read_again(self._config.answer_s / 2)
            if renewals != self._renewals:
                response.close()
                response = await self._connections.send(method, path, query, body, content_type)
        return response

    async def _read_again(self, wait_s: float) -> None:
        """One at a time: a program that hangs is not started again, and is waited for this long only."""
        self._read_at = time.monotonic()
        if self._reading is None or self._reading.done():
            reading = self._read()
            self._reading = asyncio.create_task(reading, name="dynamo: credentials of Kubernetes")
        await asyncio.wait((self._reading,), timeout=wait_s)

    async def _read(self) -> None:
        """Take on what is there now, where that is something else."""
        now = self._connections
        try:
            fresh = (await credentials.load(self._config, self._programs, self._context)).configuration
            with credentials.told(self._config):
                if fingerprint(fresh) == now.fingerprint:
                    if fresh.api_key == now.configuration.api_key:
                        return
                    now.configuration.api_key = fresh.api_key
                else:
                    self._connections = Connections(fresh)
                    self._former.append(now)
        except ConfigError as error:
            log.warning("reading the credentials again failed, going on with those from before: %s", error)
            return
        self._renewals += 1
        for connections in [one for one in self._former if one.unused]:
            self._former.remove(connections)
            await connections.close()


async def find(config: KubernetesConfig) -> Way:
    """Read what says where the server is. Raises ConfigError."""
    programs = Programs()
    found = await credentials.load(config, programs)
    with credentials.told(config):
        return Way(config, found, programs)


def fingerprint(configuration: Configuration) -> bytes:
    """Of what holds for a connection from its beginning: where to, and who both sides say they are."""
    files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    contents = [Path(file).read_bytes() if file else b"" for file in files]
    where = (configuration.host, configuration.proxy, configuration.tls_server_name, configuration.verify_ssl)
    return hashlib.sha256(repr((where, contents)).encode()).digest()


class Connections:
    """Those that were made under one configuration."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration, self.fingerprint = configuration, fingerprint(configuration)
        self.sockets: WeakSet[socket.socket] = WeakSet()
        self._beginning = 0  # requests that may have no socket yet
        self._client = ApiClient(configuration)
        self._client.user_agent = "dynamo-runtime"
        self._connector = aiohttp.TCPConnector(
            limit=0,  # watches keep theirs, and nothing is to wait for those
            ssl=self._client.rest_client.ssl_context,
            keepalive_timeout=IDLE_S,
            socket_factory=self._socket,
        )
        # Else aiohttp looks for a .netrc, on a thread, before each request.
        configuration.client_session_kwargs = {"connector": self._connector, "trust_env": False}

    @property
    def unused(self) -> bool:
        """Nothing is under way, and what was idle is closed."""
        return not self._beginning and not self._open

    @property
    def _open(self) -> bool:
        return any(one.fileno() >= 0 for one in self.sockets)

    async def send(
        self, method: str, path: str, query: Sequence[tuple[str, str]], body: Any, content_type: str
    ) -> aiohttp.ClientResponse:
        """The beginning of the answer."""
        self._beginning += 1
        try:
            request = await self._client.param_serialize(
                method,
                path,
                query_params=list(query),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=[TOKEN],
            )
            timeout = aiohttp.ClientTimeout(total=None)  # the default would end watches after 5 minutes
            answer = await self._client.call_api(*request, _request_timeout=timeout)
        finally:
            self._beginning -= 1
        response: aiohttp.ClientResponse = answer.response
        return response

    async def close(self) -> None:
        """Close them, which with TLS takes the loop some turns more than aiohttp waits for."""
        await self._client.close()
        await self._connector.close()
        while self._open:
            await asyncio.sleep(TURN_S)

    def _socket(self, address: Any) -> socket.socket:
        """One that notices when the other end is gone without a word."""
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)
        self.sockets.add(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                made.setsockopt(socket.IPPROTO_TCP, option, value)
        return made
