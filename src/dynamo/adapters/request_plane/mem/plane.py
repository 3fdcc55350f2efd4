"""The plane, its servers, and the table in which the runtimes of one process find each other."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import perf_counter
from urllib.parse import urlsplit
from weakref import ref

from dynamo.adapters.request_plane.mem.calls import Call
from dynamo.adapters.request_plane.mem.end import ITEM_COST, Budget, End, check_size, snapshot
from dynamo.core.config import Settings
from dynamo.core.errors import (
    ClosedError,
    ConfigError,
    ConflictError,
    DrainingError,
    DynamoError,
    OverloadedError,
    UnavailableError,
    WrongInstanceError,
)
from dynamo.core.health import Health, Status
from dynamo.core.ports.request_plane import (
    Accept,
    Capability,
    OutgoingCall,
    Request,
    RequestPlane,
    Server,
)
from dynamo.core.registry import url_options

QUIET_S = 100e-6  # without handing over: nothing is likely to come soon
HOLD_S = 1e-3  # an item of a stream waits at most so long, and a tick, for those that come after it

_servers: dict[str, ref[MemServer]] = {}
_counter = itertools.count(1)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_servers.clear)  # their loops stayed in the parent


class MemServer(Server):
    """What ``serve`` yields; ``break_links`` and ``abort`` are for tests of what happens to others."""

    def __init__(
        self, plane: MemRequestPlane, accept: Accept, address: str, instance_id: int, incarnation: int
    ) -> None:
        self.plane, self.accept, self.running = plane, accept, set[Call]()
        self._address, self._instance_id, self._incarnation = address, instance_id, incarnation
        self.draining = self._refusing = self._closed = False

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    @property
    def calls(self) -> int:
        return len(self.running)

    def drain(self) -> None:
        self.draining = True

    def refuse(self) -> None:
        self._refusing = True

    def break_links(self) -> None:
        """Break every call, as a cut cable would; new ones are taken."""
        for call in list(self.running):
            call.break_off(f"the link to {self._address} was cut")

    def abort(self) -> None:
        """Vanish, as a killed process would: every call breaks and the address is free."""
        self._closed = True
        if _server_at(self._address) is self:
            del _servers[self._address]
        for call in list(self.running):
            call.break_off(f"the server at {self._address} was closed")

    def reason_to_refuse(self, request: Request, instance_id: int, incarnation: int) -> DynamoError | None:
        """Why a call may not start here, or None."""
        if self._closed:
            return UnavailableError(f"the server at {self._address} was closed")
        if instance_id not in (0, self._instance_id) or incarnation not in (0, self._incarnation):
            return WrongInstanceError(
                f"{self._address} is instance {self._instance_id} (incarnation {self._incarnation:x}), "
                f"not {instance_id} ({incarnation:x})"
            )
        if self._refusing:
            return DrainingError(f"{self._address} is shutting down and takes no new call")
        if (payload := request.payload) is not None:
            size = len(payload) + ITEM_COST - self.plane.window_bytes
            if size > 0 and not self.plane.budget.fits(size):
                return OverloadedError(
                    f"{self._address} has no room for a request of {size} bytes past its window"
                )
        return None


class MemRequestPlane(RequestPlane):
    """Belongs to the event loop that opened it."""

    def __init__(self, name: str, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.budget, self.calls = loop, Budget(settings.receive_budget_bytes), set[Call]()
        self._name, self._closed = name, False
        self._servers: set[MemServer] = set()
        self.posting: list[End] = []  # what has something to hand over
        self._posting_since = self._flushed_at = 0.0
        self._held = 0  # items that were not handed over at the end of the last tick
        self.urgent = False  # more than items is to be handed over
        self.window_bytes, self.half_window = settings.window_bytes, settings.window_bytes // 2
        self.max_message_bytes = settings.max_message_bytes
        self._capability = Capability(
            schemes=("mem",),
            cross_process=False,
            cross_host=False,
            window_bytes=settings.window_bytes,
            max_message_bytes=settings.max_message_bytes,
        )

    @property
    def capability(self) -> Capability:
        return self._capability

    @asynccontextmanager
    async def serve(
        self, accept: Accept, *, instance_id: int, incarnation: int, address: str | None = None
    ) -> AsyncGenerator[MemServer]:
        self._check_open()
        if address is None:
            address = f"mem://{self._name}-{next(_counter)}" if self._name else f"mem://{next(_counter)}"
        _check_address(address)
        server = MemServer(self, accept, address, instance_id, incarnation)
        mine = ref(server)
        if _servers.setdefault(address, mine)() is not server:
            if _server_at(address) is not None:
                raise ConflictError(f"{address} is already served in this process; leave that `serve` first")
            _servers[address] = mine  # its loop was dropped, and it with that
        self._servers.add(server)
        try:
            yield server
        finally:
            self._servers.discard(server)
            server.abort()

    def call(
        self, address: str, request: Request, *, instance_id: int = 0, incarnation: int = 0
    ) -> OutgoingCall:
        if self._closed or asyncio.get_running_loop() is not self.loop:
            self._check_open()
        server = _server_at(address)
        if server is None or server.plane.loop.is_closed():
            _check_address(address)
            return self._nowhere(request, UnavailableError(f"nobody serves {address} in this process"))
        if server.draining:
            return self._nowhere(request, DrainingError(f"{address} is draining and takes no new call"))
        other = server.plane
        copied = self._copy(request, other)
        call = Call(self, other, request)
        self.calls.add(call)
        call.start(server, copied, (instance_id, incarnation))
        return call

    def _nowhere(self, request: Request, error: DynamoError) -> Call:
        call = Call(self, self, request)
        self.calls.add(call)
        call.give_up(error)
        return call

    def _copy(self, request: Request, other: MemRequestPlane) -> Request:
        payload = request.payload
        limit = min(self.max_message_bytes, other.max_message_bytes)
        if payload is not None and (type(payload) is not bytes or len(payload) > limit):
            check_size(payload, limit)
            payload = snapshot(payload)
        return Request(
            request.endpoint, request.request_id, payload, request.end, request.attempt, request.timeout_s,
            dict(request.metadata), request.priority,
        )  # fmt: skip

    async def check(self, address: str) -> Health:
        if _server_at(address) is not None:
            return Health(status=Status.UP, detail=f"{address} is served in this process")
        return Health(status=Status.DOWN, detail=f"nobody serves {address} in this process")

    def flush_soon(self) -> None:
        """The first end is about to be in ``posting``: they hand over at the end of the tick, or of one of
        the next.
        """
        self._posting_since = perf_counter()
        self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Right after others items wait for those of the next tick, while each brings more, so that their
        readers wake less often; whatever else there is waits for nothing.
        """
        if not self.urgent and self._posting_since - self._flushed_at < QUIET_S:
            waiting = sum([end.waiting for end in self.posting])
            if waiting > self._held and perf_counter() - self._posting_since < HOLD_S:
                self._held = waiting
                self.loop.call_soon(self._flush)
                return
        posting, self.posting = self.posting, []
        self._held, self.urgent = 0, False
        for end in posting:
            end.flush()
        self._flushed_at = perf_counter()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this mem request plane was closed: its `async with` block was left")
        if asyncio.get_running_loop() is not self.loop:
            raise ClosedError(
                "this mem request plane was opened on another event loop; open one on this loop too"
            )

    def close(self) -> None:
        """End all calls and servers."""
        self._closed = True
        for call in list(self.calls):
            call.leave(ClosedError("the request plane was closed while the call ran"))
        for server in list(self._servers):
            server.abort()


def _server_at(address: str) -> MemServer | None:
    reference = _servers.get(address)
    return None if reference is None else reference()


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme != "mem" or not parts.netloc or parts.path or parts.query:
        raise ConfigError(f"{address!r} is not an address of the mem request plane; expected mem://<name>")


@asynccontextmanager
async def open_mem(url: str, settings: Settings) -> AsyncGenerator[MemRequestPlane]:
    """``mem://``, or ``mem://<name>`` to see in addresses which deployment they belong to."""
    url_options(url, ())
    plane = MemRequestPlane(urlsplit(url).netloc, settings, asyncio.get_running_loop())
    try:
        yield plane
    finally:
        plane.close()
