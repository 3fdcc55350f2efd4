"""The serving side of a runtime: what it serves, and the presence behind that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from attrs import Factory, frozen

from dynamo.core.canary import Activity, Canary
from dynamo.core.codec import encode
from dynamo.core.describing import describe
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
from dynamo.core.lifetime import Held, see_through
from dynamo.core.model import EndpointId, Instance, check_name, random_incarnation, random_instance_id
from dynamo.core.observing import Observing
from dynamo.core.opening import CLOSE_S, Adapters
from dynamo.core.ports.request_plane import IncomingCall, Server
from dynamo.core.ports.telemetry import NO_LABELS, Side
from dynamo.core.presence import Presence, appear
from dynamo.core.registrations import Registrations
from dynamo.core.serving import Served, unregister, withdraw

logger = logging.getLogger("dynamo.runtime")


@frozen(kw_only=True)
class ServeOptions:
    """How one endpoint is served; ``Endpoint.serve`` explains each."""

    name: str | None = None
    idempotent: bool = False
    max_inflight: int | None = None
    queue: int | None = None
    metadata: Mapping[str, Any] = Factory(dict)
    graceful: bool = True
    duplex: bool | None = None
    labels: Mapping[str, str] = NO_LABELS
    health_check_payload: Any = None


class Hosting:
    """Serves endpoints behind one server and one lease, both taken at the first ``serve``."""

    def __init__(self, adapters: Adapters, observing: Observing, *, shut_down: Callable[[], None]) -> None:
        self.served: dict[str, Served] = {}
        self.canaries: dict[str, Canary] = {}
        self._adapters, self._observing, self._shut_down = adapters, observing, shut_down
        self._settings = adapters.settings
        self._drawn_id, self._incarnation = random_instance_id(), random_incarnation()
        self._id_told = self._ended = False
        self._registered: set[str] = set()  # what was found by others once
        self._presence: Held[Presence] | None = None
        self._withdrawals: set[asyncio.Task[None]] = set()

    @property
    def instance_id(self) -> int:
        """Our id; before the first ``serve`` the drawn one, and who asks pins it."""
        if (presence := self.present) is not None:
            return presence.instance_id
        self._id_told = True
        return self._drawn_id

    @property
    def present(self) -> Presence | None:
        """What callers find, once it is there."""
        return None if self._presence is None else self._presence.value

    @property
    def registrations(self) -> Registrations | None:
        return None if (presence := self.present) is None else presence.registrations

    @property
    def trouble(self) -> DynamoError | None:
        """Why what is to be served is not registered; None where all is well."""
        if self._adapters.trouble is not None:
            return self._adapters.trouble
        if self._presence is not None and self._presence.trouble is not None:
            return self._presence.trouble
        return None if (registrations := self.registrations) is None else registrations.trouble

    def _hindrance(self) -> DynamoError | None:
        """What a registration waits for."""
        registrations = self.registrations
        return self.trouble or (None if registrations is None else registrations.pending)

    def health(self) -> Health:
        """UP while everything served is registered, or nothing is served."""
        trouble, status = self.trouble, Status.STALE
        if self.present is None and (self.served or trouble is not None):
            return Health(status=Status.DOWN, detail=f"starting: {trouble or 'not registered yet'}")
        if trouble is not None:
            if not isinstance(trouble, (UnavailableError, LeaseLostError)):  # another owner of our name
                status = Status.DOWN
            return Health(status=status, detail=f"not registered, trying again: {trouble}")
        for path, canary in self.canaries.items():
            if canary.trouble is not None:
                return Health(status=Status.DOWN, detail=f"{path}: {canary.trouble}")
        return Health(status=Status.UP, detail=f"serving {', '.join(self.served) or 'nothing'}")

    def endpoints(self) -> dict[EndpointId, Health]:
        """How each of them stands that is served, or is to be."""
        return {served.endpoint_id: self._standing(path, served) for path, served in self.served.items()}

    def _standing(self, path: str, served: Served) -> Health:
        registrations, canary = self.registrations, self.canaries.get(path)
        if served.leaving is not None:
            return Health(status=Status.DOWN, detail="draining: finishing what runs, taking nothing new")
        if path not in self._registered:
            return Health(status=Status.DOWN, detail=f"starting: {self._hindrance() or 'not registered yet'}")
        if canary is not None and canary.trouble is not None:
            return Health(status=Status.DOWN, detail=canary.trouble)
        if registrations is None or registrations.registered(served.endpoint_id):
            return Health(status=Status.UP)
        if registrations.wanted(served.endpoint_id) is None:
            return Health(status=Status.UP, detail="out of discovery, as its program asked")
        return Health(
            status=Status.STALE, detail=f"not registered: {self.trouble or 'being registered again'}"
        )

    def links(self) -> dict[str, Health]:
        """What the registrations hang on."""
        links = self._adapters.links()
        if (presence := self.present) is not None:
            where = ", ".join(presence.server.addresses)
            links["request_plane"] = Health(status=Status.UP, detail=f"listening on {where}")
            if presence.registrations.held:
                links["lease"] = Health(status=Status.UP)
            else:
                reason = presence.registrations.trouble or "not held yet"
                links["lease"] = Health(status=Status.STALE, detail=str(reason))
        return links

    @asynccontextmanager
    async def serve(
        self,
        endpoint_id: EndpointId,
        function: HandlerFunction,
        options: ServeOptions,
    ) -> AsyncGenerator[Instance]:
        """Reachable first, then registered; withdrawn in the end."""
        path = str(endpoint_id)
        if options.name is not None:
            check_name("instance", options.name)
        telemetry = self._observing.telemetry
        counted = None if telemetry is None else telemetry.endpoint(endpoint_id, Side.SERVER, options.labels)
        activity: Activity | None = None
        if options.health_check_payload is not None and self._settings.health_check_enabled:
            counted = activity = Activity(counted)
        served = Served(
            endpoint_id,
            read_handler(function, duplex=options.duplex),
            loop=asyncio.get_running_loop(),
            telemetry=counted,
            max_inflight=options.max_inflight,
            queue=options.queue,
            graceful=options.graceful,
        )
        if path in self.served:
            raise ConflictError(
                f"{path} is already served by this runtime: leave that block first, or make another runtime"
            )
        self.served[path] = served
        self._observing.of(endpoint_id).labels = dict(options.labels)
        try:
            instance = await self._adapters.patiently(self._register(served, options), self._hindrance)
            if served.leaving is not None:
                raise ClosedError(f"the runtime was shut down while {path} was being registered")
        except BaseException:
            await self._give_up(served)
            raise
        self._registered.add(path)
        try:
            if activity is not None:
                payload, limit = options.health_check_payload, options.max_inflight
                self.canaries[path] = Canary(path, payload, served.accept, activity, limit, self._settings)
            yield instance
        finally:
            self._silence(path)
            self._registered.discard(path)
            await self._leave(served)

    def _silence(self, path: str) -> None:
        if (canary := self.canaries.pop(path, None)) is not None:
            canary.close()

    async def _register(self, served: Served, options: ServeOptions) -> Instance:
        presence, url = await self._appear(served.endpoint_id), self._observing.url
        served.instance = Instance(
            endpoint_id=served.endpoint_id,
            instance_id=presence.instance_id,
            incarnation=self._incarnation,
            addresses=presence.server.addresses,
            name=options.name,
            idempotent=options.idempotent,
            metadata=options.metadata if url is None else {"status_url": url, **options.metadata},
            started=int(time.time()),
        )
        presence.registrations.want(served.instance)
        await presence.registrations.settled(served.endpoint_id)
        return served.instance

    async def _appear(self, first: EndpointId) -> Presence:
        discovery, plane = await self._adapters.discovery(), await self._adapters.serving_plane()
        if self._ended:
            raise ClosedError("the runtime was shut down before it could serve")
        if self._presence is None or self._presence.failed:
            enter = partial(
                appear,
                discovery=discovery,
                plane=plane,
                accept=self._accept,
                first=first,
                drawn_id=self._drawn_id,
                told=lambda: self._id_told,
                incarnation=self._incarnation,
                telemetry=self._observing.telemetry,
                lost=self._lease_lost,
            )
            self._presence = Held(asyncio.get_running_loop(), "the presence of this runtime", enter)
        return await self._presence.get()

    def _accept(self, call: IncomingCall) -> None:
        """Every call that reaches our server; its path finds the endpoint."""
        served = self.served.get(call.request.endpoint)
        if served is not None:
            served.accept(call)
            return
        if not call.request.endpoint:
            handlers = {path: served.handler for path, served in self.served.items()}
            call.send(encode(describe(handlers)), end=True)
            return
        known = ", ".join(self.served) or "nothing"
        call.refuse(UnknownEndpointError(f"{call.request.endpoint!r} is not served here; served: {known}"))

    def _lease_lost(self, reason: str) -> None:
        if self._settings.lease_loss == "shutdown":
            logger.error("shutting down, as DYN_LEASE_LOSS=shutdown says: %s", reason)
            self._shut_down()

    async def _give_up(self, served: Served) -> None:
        """Undo a serve that did not get as far as being known to be registered."""
        served.refuse()
        served.cut()
        try:
            if (registrations := self.registrations) is not None:
                await see_through(asyncio.ensure_future(unregister([served], registrations)))
        finally:
            self.served.pop(str(served.endpoint_id), None)

    async def _leave(self, served: Served) -> None:
        if (presence := self.present) is None:
            await self._give_up(served)
        elif served.leaving is None:
            await see_through(self._withdraw([served], presence))
        else:  # the whole runtime leaves
            await see_through(served.leaving)

    def _withdraw(
        self, leaving: list[Served], presence: Presence, server: Server | None = None
    ) -> asyncio.Task[None]:
        async def follow_the_order() -> None:
            try:
                await withdraw(leaving, presence.registrations, self._settings, server)
            finally:
                for served in leaving:
                    self.served.pop(str(served.endpoint_id), None)

        task = asyncio.ensure_future(follow_the_order())
        for served in leaving:
            served.leaving = task
            self._silence(str(served.endpoint_id))
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawals.discard)
        return task

    async def end(self) -> None:
        """Withdraw everything, and see what is being withdrawn already to its end; bounded.

        Nothing is served after it.
        """
        self._ended = True
        if (presence := self.present) is not None:
            staying = [served for served in self.served.values() if served.leaving is None]
            self._withdraw(staying, presence, presence.server)
        if self._withdrawals:
            await asyncio.wait(self._withdrawals)

    async def close(self) -> None:
        """End the lease and the server."""
        if self._presence is not None:
            await self._presence.close(2 * CLOSE_S)
        self.served.clear()

    async def announce(self, endpoint_id: EndpointId, *, announced: bool) -> None:
        """In or out of discovery, while it goes on being served."""
        served, registrations = self.served.get(str(endpoint_id)), self.registrations
        if served is None or served.instance is None or registrations is None:
            raise ConfigError(f"{endpoint_id} is not served by this runtime: it has no instance to register")
        if served.leaving is not None:
            raise DrainingError(f"{endpoint_id} is being withdrawn")
        if announced:
            registrations.want(served.instance)
        else:
            registrations.unwant(endpoint_id)
        await self._adapters.patiently(registrations.settled(endpoint_id), self._hindrance)
