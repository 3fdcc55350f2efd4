"""The runtime: a process's own side of a deployment. It owns the adapters, the lease, what is served, and
the shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from dynamo.core import signals
from dynamo.core.client import Client
from dynamo.core.config import Settings
from dynamo.core.endpoint import Endpoint, Namespace
from dynamo.core.errors import (
    ClosedError,
    ConfigError,
    ConflictError,
    DrainingError,
    DynamoError,
    LeaseLostError,
    UnavailableError,
    UnknownEndpointError,
)
from dynamo.core.handlers import HandlerFunction, read_handler
from dynamo.core.health import Health, Status
from dynamo.core.lifetime import Held, Owner, running_loop, see_through, within
from dynamo.core.membership import Memberships
from dynamo.core.model import EndpointId, Instance, check_name, random_incarnation, random_instance_id
from dynamo.core.opening import CLOSE_S, Adapters
from dynamo.core.ports.request_plane import IncomingCall
from dynamo.core.ports.telemetry import Side, Telemetry
from dynamo.core.presence import Presence, appear
from dynamo.core.serving import Served, withdraw

logger = logging.getLogger("dynamo.runtime")

T = TypeVar("T")

RESPONSE_PLANES = ("tcp",)


class DistributedRuntime:
    """Composes itself from the environment and keyword arguments, which win over it; their names are those
    of ``Settings``.

    Construction does no I/O. ``async with`` opens and closes; without it the runtime opens at its first
    await, on that loop, and ``shutdown`` closes it. It is a guest in its process: several can live in one,
    and none installs a signal handler, configures logging or exits the process, unless
    ``handle_signals=True`` asks for the first. Use from another loop, or after a fork, is a ClosedError.
    """

    def __init__(
        self,
        event_loop: asyncio.AbstractEventLoop | None = None,
        discovery_backend: str | None = None,
        request_plane: str | None = None,
        enable_nats: bool | None = None,
        *,
        event_plane: str | None = None,
        response_plane: str | None = None,
        discovery: str | None = None,
        telemetry: Telemetry | None = None,
        handle_signals: bool = False,
        **settings: Any,
    ) -> None:
        """Raises ConfigError: an unknown adapter or option, a bad value."""
        if enable_nats is not None:
            warnings.warn(
                "enable_nats is deprecated and changes nothing: the planes say whether NATS is used",
                DeprecationWarning,
                stacklevel=2,
            )
        if discovery is not None and discovery_backend is not None:
            raise ConfigError("discovery and discovery_backend are two names of one option; give one")
        if response_plane is not None and response_plane.lower() not in RESPONSE_PLANES:
            raise ConfigError(
                f"response_plane={response_plane!r}: responses travel on the request plane; leave it out"
            )
        chosen = {
            "discovery_backend": discovery if discovery is not None else discovery_backend,
            "request_plane": request_plane,
            "event_plane": event_plane,
        }
        settings.update({name: value for name, value in chosen.items() if value is not None})
        self.settings = Settings.from_env(**settings)
        self._adapters = Adapters(self.settings)
        self._owner = Owner("this runtime", event_loop)
        self._telemetry, self._handle_signals = telemetry, handle_signals
        self._instance_id, self._incarnation = random_instance_id(), random_incarnation()
        self._id_told = False
        self._ready = True
        self._opened = self._ended = False
        self._served: dict[str, Served] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._presence: Held[Presence] | None = None
        self._memberships: Memberships | None = None
        self._ending: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    @classmethod
    def from_env(cls, **options: Any) -> DistributedRuntime:
        """A runtime as the environment says; the same as the constructor, in words."""
        return cls(**options)

    @classmethod
    def detached(cls) -> DistributedRuntime:
        """A new runtime from the environment, with an id of its own, on the running loop."""
        return cls(asyncio.get_running_loop())

    def namespace(self, name: str | None = None) -> Namespace:
        """``DYN_NAMESPACE`` unless named. Raises ConfigError on a bad name."""
        return Namespace(self, self.settings.namespace if name is None else name)

    def endpoint(self, path: str) -> Endpoint:
        """The endpoint at ``ns.component.endpoint`` or ``dyn://ns.component.endpoint``. Raises ConfigError,
        a ValueError.
        """
        return Endpoint(self, EndpointId.parse(path))

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it belongs to: the running one, if it had none. Raises ClosedError outside a loop."""
        return self._owner.loop or self._owner.enter()

    def connection_id(self) -> int:
        """The instance id of all that this runtime serves.

        Where the backend gives ids (Kubernetes, static) it is known once something is served: asked before,
        the first serve fails with a ConfigError rather than under another id."""
        if (presence := self._present) is None:
            self._id_told = True
            return self._instance_id
        return presence.instance_id

    @property
    def serving(self) -> tuple[EndpointId, ...]:
        """What this runtime serves now."""
        return tuple(served.endpoint_id for served in self._served.values())

    def set_health_status(self, ready: bool) -> None:
        """The program's own word on its readiness: False makes ``health`` DOWN, whatever else is well."""
        self._ready = ready

    def health(self) -> Health:
        """What a probe wants to know: UP, STALE (serving on the last known state), or DOWN, and why, in one
        line.
        """
        self._owner.check_process()
        presence, present = self._presence, self._present
        if self._ended:
            return Health(status=Status.DOWN, detail="closed")
        if self._ending is not None:
            return Health(status=Status.DOWN, detail="shutting down: finishing what runs, taking nothing new")
        if not self._ready:
            return Health(status=Status.DOWN, detail="set_health_status(False)")
        if presence is not None and present is None and self._served:
            return Health(status=Status.DOWN, detail=f"starting: {self._trouble() or 'not registered yet'}")
        if present is not None and (trouble := present.registrations.trouble) is not None:
            away = isinstance(trouble, (UnavailableError, LeaseLostError))
            status = Status.STALE if away else Status.DOWN
            return Health(status=status, detail=f"not registered, trying again: {trouble}")
        return Health(status=Status.UP, detail=f"serving {len(self._served)} endpoints")

    async def __aenter__(self) -> DistributedRuntime:
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
        if self._ending is not None:
            await see_through(self._ending)

    def shutdown(self) -> Awaitable[None]:
        """Start to drain, at once and from any thread; the result, which need not be awaited, ends with it.

        Draining, a grace in which callers learn of it, then in-flight calls finish, bounded by
        ``DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS``; what runs on is cancelled, and everything is closed.
        Doing it again changes nothing."""
        self._owner.check_process()
        loop = self._owner.loop
        if loop is None or loop.is_closed():
            self._ended = True
            self._begun.set()
        elif running_loop() is loop:
            self._begin_end()
        elif running_loop() is None:
            loop.call_soon_threadsafe(self._begin_end)
        else:
            self._owner.enter()  # raises: another loop
        return Shutdown(self._until_ended)

    # What endpoints, and the machinery below, ask for.

    def _enter(self) -> asyncio.AbstractEventLoop:
        """Open if need be; ClosedError on another loop, in a fork, or after the end."""
        if self._ended or self._ending is not None:
            self._owner.check_process()
            raise ClosedError("this runtime is closed, or was told to shut down; make a new one")
        loop = self._owner.enter()
        if not self._opened:
            self._opened = True
            if self._handle_signals:
                signals.handle(self, loop, self._begin_end)
        return loop

    @asynccontextmanager
    async def _serve(
        self,
        endpoint_id: EndpointId,
        function: HandlerFunction,
        *,
        name: str | None,
        idempotent: bool,
        max_inflight: int | None,
        queue: int | None,
        metadata: Mapping[str, Any],
        graceful: bool,
        duplex: bool | None,
    ) -> AsyncGenerator[Instance]:
        loop, path = self._enter(), str(endpoint_id)
        telemetry = self._telemetry
        served = Served(
            endpoint_id,
            read_handler(function, duplex=duplex),
            loop=loop,
            telemetry=None if telemetry is None else telemetry.endpoint(endpoint_id, Side.SERVER),
            max_inflight=max_inflight,
            queue=queue,
            graceful=graceful,
        )
        if path in self._served:
            raise ConflictError(
                f"{path} is already served by this runtime: leave that block first, or make another runtime"
            )
        self._served[path] = served
        try:
            instance = await self._patiently(self._register(served, name, idempotent, metadata))
        except BaseException:
            self._abandon(served)
            raise
        try:
            yield instance
        finally:
            await self._leave(served)

    async def _register(
        self, served: Served, name: str | None, idempotent: bool, metadata: Mapping[str, Any]
    ) -> Instance:
        presence = await self._appear()
        served.instance = Instance(
            endpoint_id=served.endpoint_id,
            instance_id=presence.instance_id,
            incarnation=self._incarnation,
            addresses=presence.server.addresses,
            name=None if name is None else check_name("instance", name),
            idempotent=idempotent,
            metadata=metadata,
        )
        presence.registrations.want(served.instance)
        await presence.registrations.settled(served.endpoint_id)
        return served.instance

    def _abandon(self, served: Served) -> None:
        """Undo a serve that did not get as far as being registered."""
        if (presence := self._present) is not None:
            presence.registrations.unwant(served.endpoint_id)
        self._served.pop(str(served.endpoint_id), None)
        served.refuse()
        served.cut()

    async def _leave(self, served: Served) -> None:
        if self._ending is None and (presence := self._present) is not None:
            leaving = asyncio.ensure_future(withdraw([served], presence.registrations, self.settings))
            self._leaving.add(leaving)
            served.leaving = True
            try:
                await see_through(leaving)
            finally:
                self._leaving.discard(leaving)
                self._served.pop(str(served.endpoint_id), None)
        elif self._ending is not None:
            await see_through(self._ending)

    async def _announce(self, endpoint_id: EndpointId, *, announced: bool) -> None:
        self._enter()
        served, presence = self._served.get(str(endpoint_id)), self._present
        if served is None or served.instance is None or presence is None:
            raise ConfigError(f"{endpoint_id} is not served by this runtime: it has no instance to register")
        if served.leaving:
            raise DrainingError(f"{endpoint_id} is being withdrawn")
        if announced:
            presence.registrations.want(served.instance)
        else:
            presence.registrations.unwant(endpoint_id)
        await self._patiently(presence.registrations.settled(endpoint_id))

    async def _client(self, endpoint_id: EndpointId, **options: Any) -> Client:
        self._enter()
        discovery = await self._patiently(self._adapters.discovery())
        await self._adapters.serving_plane()
        if self._memberships is None:
            self._memberships = Memberships(discovery, self._telemetry)
        return Client(
            endpoint_id,
            membership=self._memberships.of(endpoint_id),
            dial=self._adapters.dial,
            settings=self.settings,
            telemetry=self._telemetry,
            **options,
        )

    async def _shutdown_begun(self) -> None:
        await self._begun.wait()

    # The machinery.

    @property
    def _present(self) -> Presence | None:
        return None if self._presence is None else self._presence.value

    async def _appear(self) -> Presence:
        discovery, plane = await self._adapters.discovery(), await self._adapters.serving_plane()
        held = self._presence
        if held is None or held.failed:
            enter = partial(
                appear,
                discovery=discovery,
                plane=plane,
                accept=self._accept,
                drawn_id=self._instance_id,
                told=lambda: self._id_told,
                incarnation=self._incarnation,
                telemetry=self._telemetry,
                lost=self._lease_lost,
            )
            held = self._presence = Held(asyncio.get_running_loop(), "the presence of this runtime", enter)
        return await held.get()

    def _accept(self, call: IncomingCall) -> None:
        """Every call of this runtime's server; the path finds the endpoint."""
        served = self._served.get(call.request.endpoint)
        if served is not None:
            served.accept(call)
        else:
            known = ", ".join(self._served) or "nothing"
            call.refuse(
                UnknownEndpointError(f"{call.request.endpoint!r} is not served here; served: {known}")
            )

    def _trouble(self) -> DynamoError | None:
        if self._adapters.trouble is not None or self._presence is None:
            return self._adapters.trouble
        if self._presence.trouble is not None or (presence := self._presence.value) is None:
            return self._presence.trouble
        return presence.registrations.trouble

    async def _patiently(self, waiting: Awaitable[T]) -> T:
        return await self._adapters.patiently(waiting, self._trouble)

    def _lease_lost(self, reason: str) -> None:
        if self.settings.lease_loss == "shutdown":
            logger.error("shutting down: %s, and DYN_LEASE_LOSS=shutdown", reason)
            self._begin_end()

    def _begin_end(self) -> None:
        if self._ending is None and not self._ended:
            self._ending = asyncio.ensure_future(self._end())
            self._begun.set()

    async def _end(self) -> None:
        try:
            if (presence := self._present) is not None:
                staying = [served for served in self._served.values() if not served.leaving]
                await withdraw(staying, presence.registrations, self.settings, presence.server)
            if self._leaving:  # blocks that were being left already
                await asyncio.wait(self._leaving)
        finally:
            self._ended = True
            if self._memberships is not None:
                await within(CLOSE_S, self._memberships.aclose())
            if self._presence is not None:
                await self._presence.close(2 * CLOSE_S)
            await self._adapters.close()
            self._served.clear()
            signals.release(self)

    async def _until_ended(self) -> None:
        if self._ending is not None:
            self._owner.enter()
            await asyncio.shield(self._ending)


class Shutdown(Awaitable[None]):
    """The end of a shutdown that is under way already."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()
