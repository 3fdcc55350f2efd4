"""The nats request plane keeps the contract, with a real server: plain and with a token of our own.

Plain on asyncio's own loop and, where it is installed, on uvloop; with the token on the latter alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from typing import Any, cast

import pytest

from dynamo.adapters.request_plane.nats import NatsRequestPlane, open_nats
from dynamo.adapters.request_plane.nats.server import NatsServer
from dynamo.core.config import Settings
from dynamo.core.ports.request_plane import Server
from dynamo.testing.proxy import FaultProxy
from dynamo.testing.request_plane import Link, RequestPlaneContract, RequestPlaneHarness
from nats_server import shared

LOOPS = ["asyncio", *(["uvloop"] if find_spec("uvloop") else [])]


def backend(loop: str) -> tuple[str, dict[str, Any]]:
    """What anyio takes."""
    return "asyncio", {"use_uvloop": loop == "uvloop"}


class NatsLink(Link):
    """All ways to NATS that the harness opened, which a partition closes; an abort is the worker's alone."""

    def __init__(self, server: Server, proxies: list[FaultProxy]) -> None:
        self.address = server.addresses[0]
        self._server, self._proxies = server, proxies

    def fault(self, kind: str) -> None:
        if kind == "abort":
            cast(NatsServer, self._server).abort()
            return
        for proxy in self._proxies:
            match kind:
                case "partition":
                    proxy.refuse()
                    proxy.reset()
                case "silence":
                    proxy.black_hole()
                case _:
                    raise AssertionError(kind)


class NatsHarness(RequestPlaneHarness):
    """Each plane comes to the server through a proxy of its own."""

    def __init__(self, **settings: Any) -> None:
        self._settings, self._port = settings, shared().port
        self._proxies: list[FaultProxy] = []

    def open_plane(self, **settings: Any) -> AbstractAsyncContextManager[NatsRequestPlane]:
        return self._open(Settings(**self._settings, **settings))

    @asynccontextmanager
    async def _open(self, settings: Settings) -> AsyncIterator[NatsRequestPlane]:
        async with FaultProxy("127.0.0.1", self._port) as proxy:
            self._proxies.append(proxy)
            try:
                async with open_nats(f"nats://{proxy.address}", settings) as plane:
                    yield plane
            finally:
                self._proxies.remove(proxy)

    @asynccontextmanager
    async def link(self, server: Server) -> AsyncIterator[Link]:
        yield NatsLink(server, self._proxies)


class TestNats(RequestPlaneContract):
    faults = ("partition", "silence", "abort")

    @pytest.fixture(params=LOOPS)
    def anyio_backend(self, request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
        return backend(request.param)

    @pytest.fixture
    def harness(self) -> NatsHarness:
        return NatsHarness()


class TestNatsWithToken(RequestPlaneContract):
    faults = ("abort",)

    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, Any]]:
        return backend(LOOPS[-1])

    @pytest.fixture
    def harness(self) -> NatsHarness:
        return NatsHarness(auth_token="a shared secret")
