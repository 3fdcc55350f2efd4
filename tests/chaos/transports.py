"""Runtimes inside the test's process, on a request plane whose links and servers the test can hurt.

An error that one of them logs fails the test.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self
from urllib.parse import urlsplit

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.health import Health
from dynamo.core.ports.request_plane import (
    Accept,
    Capability,
    OutgoingCall,
    Request,
    RequestPlane,
    Server,
)
from dynamo.runtime import DistributedRuntime
from dynamo.testing.proxy import FaultProxy

TRANSPORTS = ("mem", "tcp", "unix")
BOUND_S = 10.0

_numbers = itertools.count(1)


class Seat(Server):
    """What one runtime serves on, published by one address only; over TCP with a fault proxy before it."""

    def __init__(self, server: Any, address: str, proxy: FaultProxy | None) -> None:
        self._server, self.proxy = server, proxy
        self._address = address

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    @property
    def calls(self) -> int:
        calls: int = self._server.calls
        return calls

    def drain(self) -> None:
        self._server.drain()

    def refuse(self) -> None:
        self._server.refuse()

    def cut(self, *, reset: bool = False) -> None:
        """Break what runs now; whoever comes next gets through."""
        if self.proxy is not None:
            self.proxy.reset() if reset else self.proxy.cut()
        elif hasattr(self._server, "break_links"):
            self._server.break_links()
        else:
            self._server.abort()  # the listener stays

    def vanish(self) -> None:
        """End as a killed process does; who tries to connect is refused where the proxy can do that."""
        self._server.abort()
        if self.proxy is not None:
            self.proxy.cut()
            self.proxy.refuse()


class TappedPlane(RequestPlane):
    """The adapter itself, with its seats in reach of the test."""

    def __init__(self, transport: str, plane: Any, seats: list[Seat]) -> None:
        self._transport, self.plane, self._seats = transport, plane, seats

    @property
    def capability(self) -> Capability:
        capability: Capability = self.plane.capability
        return capability

    @asynccontextmanager
    async def serve(
        self, accept: Accept, *, instance_id: int, incarnation: int, address: str | None = None
    ) -> AsyncIterator[Server]:
        async with self.plane.serve(
            accept, instance_id=instance_id, incarnation=incarnation, address=address
        ) as server:
            (own,) = (url for url in server.addresses if urlsplit(url).scheme == self._transport)
            if self._transport != "tcp":
                seat = Seat(server, own, None)
                self._seats.append(seat)
                yield seat
                return
            parts = urlsplit(own)
            assert parts.hostname is not None
            assert parts.port is not None
            async with FaultProxy(parts.hostname, parts.port) as proxy:
                seat = Seat(server, f"tcp://{proxy.address}", proxy)
                self._seats.append(seat)
                yield seat

    def call(
        self, address: str, request: Request, *, instance_id: int = 0, incarnation: int = 0
    ) -> OutgoingCall:
        call: OutgoingCall = self.plane.call(
            address, request, instance_id=instance_id, incarnation=incarnation
        )
        return call

    async def check(self, address: str) -> Health:
        health: Health = await self.plane.check(address)
        return health


class Complaints(logging.Handler):
    """Errors that runtimes logged, but for those that handlers raised on purpose."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.getMessage().startswith("the handler of"):
            self.heard.append(self.format(record))


class Neighbourhood:
    """Runtimes that find each other, on one transport; all of them end with the block."""

    def __init__(self, transport: str, **settings: Any) -> None:
        self.transport = transport
        self.seats: list[Seat] = []
        self.planes: list[TappedPlane] = []
        self.runtimes: list[DistributedRuntime] = []
        self._name = f"tapped-{next(_numbers)}"
        self._settings = settings
        self._complaints = Complaints(logging.ERROR)

    async def __aenter__(self) -> Self:
        registry.request_plane.register(self._name, self._open)
        logging.getLogger("dynamo").addHandler(self._complaints)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            ends = [runtime.shutdown() for runtime in self.runtimes]
            for end in ends:
                await end
        finally:
            registry.request_plane.unregister(self._name)
            logging.getLogger("dynamo").removeHandler(self._complaints)
        if kind is None:
            assert not self._complaints.heard

    def _open(self, url: str, settings: Settings) -> AbstractAsyncContextManager[RequestPlane]:
        @asynccontextmanager
        async def open_tapped() -> AsyncIterator[RequestPlane]:
            scheme = "mem" if self.transport == "mem" else "tcp"
            async with registry.request_plane.open(scheme, settings) as plane:
                tapped = TappedPlane(self.transport, plane, self.seats)
                self.planes.append(tapped)
                yield tapped

        return open_tapped()

    def runtime(self, **settings: Any) -> DistributedRuntime:
        """One more runtime, open from its first use to the end of the block."""
        runtime = DistributedRuntime(
            discovery=f"mem://{self._name}",
            request_plane=self._name,
            **{"tcp_host": "127.0.0.1", "drain_grace_s": 0.0, **self._settings, **settings},
        )
        self.runtimes.append(runtime)
        return runtime

    @property
    def used_bytes(self) -> int:
        """What all planes hold of their receive budgets."""
        return sum(tapped.plane.budget.used for tapped in self.planes)


async def until(condition: Callable[[], bool], what: Callable[[], str] = str) -> None:
    """Wait for what has no event of its own, for a bounded time."""
    try:
        async with asyncio.timeout(BOUND_S):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"not within {BOUND_S:g} s: {what()}") from None
