"""The runtime: a process's own side of a deployment. It owns the adapters, the lease, what is served, and
the shutdown.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakSet

from dynamo.core import signals
from dynamo.core.client import Client
from dynamo.core.config import Settings
from dynamo.core.endpoint import Endpoint, Namespace
from dynamo.core.errors import ClosedError, ConfigError
from dynamo.core.handlers import HandlerFunction
from dynamo.core.health import Health, Readiness, Status
from dynamo.core.hosting import Hosting, ServeOptions
from dynamo.core.lifetime import Ending, Owner, running_loop, see_through, within
from dynamo.core.membership import Membership, Memberships
from dynamo.core.metrics import EndpointMetrics
from dynamo.core.model import EndpointId, Instance, shown
from dynamo.core.observing import EngineRoute, Observing
from dynamo.core.opening import CLOSE_S, Adapters
from dynamo.core.ports.telemetry import Telemetry

RESPONSE_PLANES = ("tcp",)
SYNC_S = 1.0  # for discovery's first answer, so that a new client knows its instances


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
        telemetry: Telemetry | str | None = None,
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
        if event_loop is not None and not isinstance(event_loop, asyncio.AbstractEventLoop):
            raise ConfigError(
                f"event_loop={shown(event_loop)}: expected an event loop, or None for the running one; "
                "the adapters have names: DistributedRuntime(discovery=..., request_plane=...)"
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
            "telemetry": telemetry if isinstance(telemetry, str) else None,
        }
        settings.update({name: value for name, value in chosen.items() if value is not None})
        self.settings = Settings.from_env(**settings)
        self._adapters = Adapters(self.settings)
        self._owner = Owner("this runtime", event_loop)
        self._handle_signals = handle_signals
        self.observing = Observing(self.settings, None if isinstance(telemetry, str) else telemetry)
        self._hosting = Hosting(self._adapters, self.observing, shut_down=self._begin_end)
        self._opened = self._ended = False
        # The program's own word, or what is said in its place.
        self._ready: bool | None = True if self.settings.starting_health_status == "ready" else None
        self._memberships: Memberships | None = None
        self._clients: WeakSet[Client] = WeakSet()
        self._ending: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()
        self._answers = 0
        self._all_answered = asyncio.Event()

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
        return self._hosting.instance_id

    @property
    def serving(self) -> tuple[EndpointId, ...]:
        """What this runtime serves now."""
        return tuple(served.endpoint_id for served in self._hosting.served.values())

    def set_health_status(self, ready: bool) -> None:
        """The program's own word on its readiness: False makes ``health`` DOWN, whatever else is well.

        True is only needed by a program that serves nothing: for it ``/health`` is 503 until then.
        """
        self._ready = ready

    def system_status_server_url(self) -> str | None:
        """``http://host:port`` while the status server is open, which ``DYN_SYSTEM_PORT`` asks for."""
        return self.observing.url

    def register_engine_route(self, name: str, callback: EngineRoute) -> None:
        """``POST /engine/{name}`` on the status server awaits ``callback(body)`` with the JSON body and
        answers with the JSON value that it returns; what it raises is a 500 with its text.

        Raises ConfigError: a bad name, or one that is taken."""
        self.observing.add_route(name, callback)

    def health(self) -> Health:
        """What a probe wants to know: UP, STALE (serving on the last known state), or DOWN, and why, in one
        line.
        """
        self._owner.check_process()
        if self._ended:
            return Health(status=Status.DOWN, detail="closed")
        if self._ending is not None:
            return Health(status=Status.DOWN, detail="shutting down: finishing what runs, taking nothing new")
        if not self._opened:
            return Health(status=Status.DOWN, detail="not opened yet")
        if self._ready is False:
            return Health(status=Status.DOWN, detail="set_health_status(False)")
        health = self._hosting.health()
        if health.status is Status.UP and self._memberships is not None and self._memberships.stale:
            detail = f"routing on the last known instances: {self._memberships.stale}"
            return Health(status=Status.STALE, detail=detail)
        return health

    def readiness(self) -> Readiness:
        """Whether traffic should come here, and how each endpoint and each link stands: what ``/health``
        shows.

        A backend that is away leaves a runtime ready that serves on what it knows; a runtime that serves
        nothing is not, unless it said ``set_health_status(True)``.
        """
        health, endpoints, links = self.health(), self._hosting.endpoints(), self._hosting.links()
        if health.ok:
            reasons = [f"{path}: {one.detail}" for path, one in endpoints.items() if not one.ok]
            if not endpoints and self._ready is None:
                reasons.append(
                    "starting: nothing is served yet (a program that only calls says set_health_status(True))"
                )
            served, variable = {one.name for one in endpoints}, self.settings.source("health_endpoints")
            reasons += [
                f"starting: the endpoint {name!r}, which {variable} names, is not served"
                for name in self.settings.health_endpoints
                if name not in served
            ]
        else:
            reasons = [health.detail]
        if self._memberships is not None and (stale := self._memberships.stale) is not None:
            links["discovery"] = Health(status=Status.STALE, detail=stale)
        return Readiness(ready=not reasons, reasons=tuple(reasons), endpoints=endpoints, links=links)

    @property
    def watched(self) -> tuple[Membership, ...]:
        """The endpoints whose instances this runtime's clients follow."""
        return () if self._memberships is None else self._memberships.watched

    async def __aenter__(self) -> DistributedRuntime:
        self._enter()
        try:
            await self.observing.open(self)
        except BaseException:
            self.shutdown()
            if self._ending is not None:
                await see_through(self._ending)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
        if self._ending is not None:
            await see_through(self._ending)

    async def until_shutdown(self) -> None:
        """Wait until somebody told it to shut down: a signal where those are handled, or ``shutdown()``."""
        await self._begun.wait()

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
        return Ending(self._until_ended)

    # What endpoints ask for.

    def _enter(self) -> None:
        """Open if need be; ClosedError on another loop, in a fork, or after the end."""
        self._owner.check_process()
        if self._ended or self._ending is not None:
            raise ClosedError("this runtime is closed, or was told to shut down; make a new one")
        loop = self._owner.enter()
        if not self._opened:
            self._opened = True
            if self._handle_signals:
                signals.handle(self, loop, self._begin_end)

    async def _open(self) -> None:
        """``_enter``, and what watches this runtime."""
        self._enter()
        await self.observing.open(self)

    def _metrics(self, endpoint_id: EndpointId) -> EndpointMetrics:
        return self.observing.of(endpoint_id)

    @asynccontextmanager
    async def _serve(
        self, endpoint_id: EndpointId, function: HandlerFunction, options: ServeOptions
    ) -> AsyncGenerator[Instance]:
        await self._open()
        async with self._hosting.serve(endpoint_id, function, options) as instance:
            yield instance

    async def _announce(self, endpoint_id: EndpointId, *, announced: bool) -> None:
        await self._open()
        await self._hosting.announce(endpoint_id, announced=announced)

    async def _client(self, endpoint_id: EndpointId, **options: Any) -> Client:
        await self._open()
        memberships = await self._adapters.patiently(self._find_out(), lambda: None)
        membership = memberships.of(endpoint_id)
        client = Client(
            endpoint_id,
            membership=membership,
            dial=self._adapters.dial,
            settings=self.settings,
            telemetry=self.observing.telemetry,
            **options,
        )
        self._clients.add(client)
        await within(SYNC_S, membership.wait_for(lambda m: m.synced or m.stale is not None))
        return client

    async def _find_out(self) -> Memberships:
        discovery = await self._adapters.discovery()
        await self._adapters.serving_plane()  # which is mostly the one to dial by
        if self._memberships is None:
            self._memberships = Memberships(discovery, self.observing.telemetry)
        return self._memberships

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """A request that came another way than ours: the end of this runtime waits for it, as for a call in
        flight, before it closes clients and adapters.
        """
        self._answers += 1
        try:
            yield
        finally:
            self._answers -= 1
            if not self._answers:
                self._all_answered.set()

    # The end.

    def _begin_end(self) -> None:
        if self._ending is None and not self._ended:
            self._ending = asyncio.ensure_future(self._end())
            self._begun.set()

    async def _end(self) -> None:
        try:
            await self._hosting.end()
            if self._answers:
                self._all_answered.clear()
                await within(self.settings.graceful_shutdown_timeout_s, self._all_answered.wait())
        finally:
            self._ended = True
            for client in list(self._clients):
                await client.aclose()
            if self._memberships is not None:
                await within(CLOSE_S, self._memberships.aclose())
            await self._hosting.close()
            await self._adapters.close()
            await self.observing.close()
            signals.release(self)

    async def _until_ended(self) -> None:
        if not self._ended:
            self._owner.enter()
            await self._begun.wait()
        if self._ending is not None:
            await asyncio.shield(self._ending)
