"""The way to the API server and who we are there, as ``kubernetes`` reads kubeconfigs and service accounts.

What of it is trusted: reading those, with client certificates, programs that make tokens, and proxies. A
token is read again where it is kept, for it is replaced about every hour; ``load_kube_config`` reads it once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

import aiohttp
import anyio
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import list_kube_config_contexts, load_kube_config
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from dynamo.adapters.discovery.kubernetes.configuration import SERVICE_ACCOUNT, KubernetesConfig
from dynamo.core.errors import ConfigError

log = logging.getLogger(__name__)

REREAD_S = 10.0  # a service account's
REREAD_USER_S = 60.0  # a kubeconfig may name a program that makes tokens
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}  # a dead link shows in 20 s
TOKEN = "BearerToken"
CLOSE_S, TURN_S = 1.0, 0.002


class Way:
    """Sends requests, with a token that is as young as the place where it is kept."""

    def __init__(self, config: KubernetesConfig, configuration: Configuration, namespace: str) -> None:
        self.namespace = namespace
        self._config, self._configuration = config, configuration
        self._read_at = time.monotonic()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._client = ApiClient(configuration)
        self._client.user_agent = "dynamo-runtime"
        self._connector = aiohttp.TCPConnector(
            limit=0,  # watches keep theirs, and nothing is to wait for those
            ssl=self._client.rest_client.ssl_context,
            socket_factory=self._socket,
        )
        # Else aiohttp looks for a .netrc, on a thread, before each request.
        configuration.client_session_kwargs = {"connector": self._connector, "trust_env": False}

    @property
    def host(self) -> str:
        return str(self._configuration.host)

    async def close(self) -> None:
        """Close all connections, which with TLS takes the loop some turns more than aiohttp waits for."""
        with anyio.move_on_after(CLOSE_S, shield=True):
            await self._client.close()
            await self._connector.close()
            while any(one.fileno() >= 0 for one in self._sockets):
                await asyncio.sleep(TURN_S)

    def _socket(self, address: Any) -> socket.socket:
        """One that notices when the other end is gone without a word."""
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)
        self._sockets.add(made)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if (option := getattr(socket, name, None)) is not None:
                made.setsockopt(socket.IPPROTO_TCP, option, value)
        return made

    async def send(
        self, method: str, path: str, query: Sequence[tuple[str, str]], body: Any, content_type: str
    ) -> aiohttp.ClientResponse:
        """The beginning of the answer, whatever it is. Raises aiohttp's and the system's errors."""
        reread_s = REREAD_S if self._config.kubeconfig is None else REREAD_USER_S
        if time.monotonic() - self._read_at > reread_s:
            await self.renew()
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
        response: aiohttp.ClientResponse = answer.response
        return response

    async def renew(self) -> bool:
        """Read the token again; whether it is another one."""
        self._read_at = time.monotonic()
        try:
            fresh, _ = await load(self._config)
        except ConfigError as error:
            log.warning("reading the credentials again failed, going on with those from before: %s", error)
            return False
        before, now = self._configuration.api_key.get(TOKEN), fresh.api_key.get(TOKEN)
        self._configuration.api_key = fresh.api_key
        return bool(now != before)


async def find(config: KubernetesConfig) -> Way:
    """Read what says where the server is. Raises ConfigError."""
    configuration, namespace = await load(config)
    with _told(config):
        return Way(config, configuration, config.namespace or namespace)


async def load(config: KubernetesConfig) -> tuple[Configuration, str]:
    """The configuration, and the namespace that it names. Raises ConfigError."""
    configuration, namespace = Configuration(), "default"
    with _told(config):
        if config.kubeconfig is None:
            _load_service_account(configuration)
        else:
            namespace = await _load_kubeconfig(config.kubeconfig, configuration)
    configuration.disable_strict_ssl_verification = True  # as kubectl: authorities of clusters are plain
    if configuration.proxy is None:
        configuration.proxy = _proxy(str(configuration.host))
    if token := configuration.api_key.get(TOKEN):
        kind, _, secret = token.partition(" ")
        configuration.api_key[TOKEN] = f"{kind} {secret.strip()}"  # files end in newlines
    return configuration, namespace


@contextmanager
def _told(config: KubernetesConfig) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a kubeconfig of another shape raises whatever comes of that
        what = f"the kubeconfig {config.kubeconfig}" if config.kubeconfig else "the pod's service account"
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{what} ({config.source}) cannot be used: {said}") from error


def _load_service_account(configuration: Configuration) -> None:
    InClusterConfigLoader(
        token_filename=str(SERVICE_ACCOUNT / "token"),
        cert_filename=str(SERVICE_ACCOUNT / "ca.crt"),
        try_refresh_token=False,
    ).load_and_set(configuration)


async def _load_kubeconfig(paths: str, configuration: Configuration) -> str:
    if not any(_is_file(path) for path in paths.split(os.pathsep)):
        raise FileNotFoundError("no such file")
    await load_kube_config(paths, client_configuration=configuration, persist_config=False)
    _, current = list_kube_config_contexts(paths)
    return str(current["context"].get("namespace") or "default")


def _proxy(server: str) -> str | None:
    """What ``https_proxy`` and ``no_proxy`` say of it, or the system where those are unknown."""
    parts = urlsplit(server)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _is_file(path: str) -> bool:
    return os.path.isfile(os.path.expanduser(path))
