"""What watches a runtime: its telemetry, its status server, and what both show beside the runtime's own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.lifetime import Held
from dynamo.core.metrics import EndpointMetrics
from dynamo.core.model import EndpointId
from dynamo.core.ports.telemetry import Telemetry

if TYPE_CHECKING:
    from dynamo.core.distributed import DistributedRuntime

EngineRoute: TypeAlias = Callable[[Any], Awaitable[Any]]

CLOSE_S = 5.0


class Observing:
    """Telemetry is the object given, else the adapter that ``DYN_TELEMETRY`` names (``none``: none), else
    ``prometheus`` where the status server is on. Making it loads what will be needed, and opens nothing.
    """

    def __init__(self, settings: Settings, given: Telemetry | None) -> None:
        self.telemetry = given
        self.url: str | None = None
        self.routes: dict[str, EngineRoute] = {}
        self.metrics: dict[EndpointId, EndpointMetrics] = {}
        self.began_at = time.monotonic()
        self._settings, self._kinds = settings, dict[str, str]()
        self._adapter = settings.telemetry or (None if settings.system_port is None else "prometheus")
        if given is not None or self._adapter == "none":
            self._adapter = None
        if settings.system_port is not None:
            registry.status_server.factory("telemetry")
        if self._adapter is not None:
            registry.telemetry.factory(self._adapter.partition("://")[0])
        self._held: Held[None] | None = None

    def of(self, endpoint_id: EndpointId) -> EndpointMetrics:
        """The program's own metrics of that endpoint."""
        if (metrics := self.metrics.get(endpoint_id)) is None:
            metrics = self.metrics[endpoint_id] = EndpointMetrics(endpoint_id, self._kinds)
        return metrics

    def add_route(self, name: str, callback: EngineRoute) -> None:
        """Raises ConfigError for a name that is no path, or that is taken."""
        route = name.strip("/") if isinstance(name, str) else ""
        if not route or not callable(callback):
            raise ConfigError(f"register_engine_route({name!r}): expected a name, and a function to call")
        if route in self.routes:
            raise ConfigError(f"engine route {route!r} is registered already")
        self.routes[route] = callback

    async def open(self, runtime: DistributedRuntime) -> None:
        """Open what the settings ask for, once. Raises ConflictError: the port is in use."""
        if self._adapter is None and self._settings.system_port is None:
            return
        if self._held is None or self._held.failed:

            async def enter(stack: AsyncExitStack, held: Held[None]) -> None:
                if self._adapter is not None:
                    self.telemetry = await stack.enter_async_context(
                        registry.telemetry.open(self._adapter, self._settings)
                    )
                if self._settings.system_port is not None:
                    serve = registry.status_server.factory("telemetry")
                    self.url = await stack.enter_async_context(serve(runtime))
                    stack.callback(self._unpublish)

            self._held = Held(asyncio.get_running_loop(), "the system status server", enter)
        await self._held.get()

    def _unpublish(self) -> None:
        self.url = None

    async def close(self) -> None:
        """Bounded."""
        if self._held is not None:
            await self._held.close(CLOSE_S)
