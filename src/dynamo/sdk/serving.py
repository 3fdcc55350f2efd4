"""Running services in a process: start, serve, drain, shut down; and clients of services for all others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar, cast

from dynamo.core.client import Client
from dynamo.core.distributed import DistributedRuntime
from dynamo.core.endpoint import Endpoint
from dynamo.core.errors import ConfigError
from dynamo.core.model import shown
from dynamo.core.routing import Strategy
from dynamo.sdk.calling import ServiceClient
from dynamo.sdk.configuring import RawConfig
from dynamo.sdk.graph import PlannedService, ServiceGraph
from dynamo.sdk.routes import Route, routes_of
from dynamo.sdk.spec import ServiceMethod, ServiceSpec

T = TypeVar("T")

logger = logging.getLogger("dynamo.sdk")


class ServedServices:
    """The services that run in this process; ``served[Middle]`` is the instance."""

    def __init__(self, runtime: DistributedRuntime) -> None:
        self._runtime = runtime
        self._instances: dict[type[Any], Any] = {}
        self.routes: tuple[Route, ...] = ()

    def __getitem__(self, cls: type[T]) -> T:
        return cast(T, self._instances[cls])

    async def until_shutdown(self) -> None:
        """Wait until the runtime was told to shut down: then it is time to leave the block."""
        await self._runtime.until_shutdown()


@asynccontextmanager
async def serve_services(
    runtime: DistributedRuntime,
    *services: type[Any],
    config: RawConfig | None = None,
    graph: ServiceGraph | None = None,
) -> AsyncGenerator[ServedServices]:
    """Serve exactly these services in this process for the block; what they depend on may be elsewhere.

    Each, dependencies first: constructed, configured and given its clients, ``on_start``, then its endpoints
    are served. Leaving goes the other way round: drained, then ``on_shutdown``, bounded by
    ``DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS``. ``config`` is what ``read_config`` gives, for
    these services and what they depend on; a ``graph`` of more services has its own. Raises ConfigError
    before anything starts, what ``on_start`` raises, and what ``Endpoint.serve`` raises.
    """
    if not isinstance(runtime, DistributedRuntime):
        raise ConfigError(f"serve_services takes the runtime first, then services, not {shown(runtime)}")
    if not services:
        raise ConfigError("serve_services was given no service")
    graph = ServiceGraph.of(*services, config=config) if graph is None else graph
    chosen = {graph.of_class(one).name for one in services}
    planned = [one for one in graph if one.name in chosen]
    for one in planned:
        one.check()
    served = ServedServices(runtime)
    async with AsyncExitStack() as stack:
        for one in planned:
            await stack.enter_async_context(_served(runtime, one, graph, served))
        yield served


@asynccontextmanager
async def _served(
    runtime: DistributedRuntime, planned: PlannedService, graph: ServiceGraph, served: ServedServices
) -> AsyncGenerator[None]:
    spec = planned.service
    async with AsyncExitStack() as stack:
        instance = planned.make()
        for dependency in spec.depends:
            target = graph.of_class(dependency.target(spec.cls))
            client = await stack.enter_async_context(_client(runtime, target, dependency.strategy))
            dependency.give(instance, client)
        for kind, attribute in spec.hooks:
            if kind == "on_start":
                await getattr(instance, attribute)()
        stack.push_async_callback(_shut_down, runtime, spec, instance)
        await stack.enter_async_context(_endpoints(runtime, planned, instance))
        served._instances[spec.cls] = instance
        served.routes += routes_of(spec, instance, namespace=_namespace(runtime, planned))
        yield


async def _shut_down(runtime: DistributedRuntime, spec: ServiceSpec, instance: Any) -> None:
    """Run its hooks, each bounded; one that fails or hangs is logged, and the others run all the same."""
    for kind, attribute in spec.hooks:
        if kind == "on_shutdown":
            try:
                async with asyncio.timeout(runtime.settings.graceful_shutdown_timeout_s):
                    await getattr(instance, attribute)()
            except Exception:
                logger.exception("%s.%s failed while the service shut down", spec.name, attribute)


@asynccontextmanager
async def _endpoints(
    runtime: DistributedRuntime, planned: PlannedService, instance: Any
) -> AsyncGenerator[None]:
    """Serve them side by side: in and out of discovery together, with one grace for all."""
    leave = asyncio.Event()
    ready = [asyncio.get_running_loop().create_future() for _ in planned.service.methods]
    tasks = [
        asyncio.create_task(_endpoint(_path(runtime, planned, method), method, instance, known, leave))
        for method, known in zip(planned.service.methods, ready, strict=True)
    ]
    try:
        for task, known in zip(tasks, ready, strict=True):
            await asyncio.wait((task, known), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        yield
    finally:
        leave.set()
        for known, task in zip(ready, tasks, strict=True):
            if not known.done():
                task.cancel()
        results = await _all_ended(tasks)
        for error, known in zip(results, ready, strict=True):
            if isinstance(error, Exception) and known.done():  # else it is what the caller is told
                logger.error("an endpoint of %s was not withdrawn as it should be: %r", planned.name, error)


async def _all_ended(tasks: list[asyncio.Task[None]]) -> list[BaseException | None]:
    gathered = asyncio.gather(*tasks, return_exceptions=True)
    try:
        return await asyncio.shield(gathered)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await gathered
        raise


async def _endpoint(
    endpoint: Endpoint,
    method: ServiceMethod,
    instance: Any,
    ready: asyncio.Future[None],
    leave: asyncio.Event,
) -> None:
    mark = method.mark
    async with endpoint.serve(
        method.bound(instance), idempotent=mark.idempotent, max_inflight=mark.max_inflight, queue=mark.queue
    ):
        ready.set_result(None)
        await leave.wait()


def _namespace(runtime: DistributedRuntime, planned: PlannedService) -> str:
    return planned.namespace or runtime.settings.namespace


def _path(runtime: DistributedRuntime, planned: PlannedService, method: ServiceMethod) -> Endpoint:
    return runtime.namespace(planned.namespace).component(planned.name).endpoint(method.name)


@asynccontextmanager
async def _client(
    runtime: DistributedRuntime, planned: PlannedService, strategy: str | Strategy
) -> AsyncGenerator[ServiceClient]:
    clients = await _clients(runtime, planned, strategy)
    try:
        yield _service_client(runtime, planned, clients)
    finally:
        for client in clients:
            await client.aclose()


async def _clients(
    runtime: DistributedRuntime, planned: PlannedService, strategy: str | Strategy
) -> list[Client]:
    methods = planned.service.methods
    opening = (_path(runtime, planned, method).client(strategy=strategy) for method in methods)
    return list(await asyncio.gather(*opening))


def _service_client(
    runtime: DistributedRuntime, planned: PlannedService, clients: list[Client]
) -> ServiceClient:
    opened: Mapping[str, tuple[ServiceMethod, Client]] = {
        method.attribute: (method, client)
        for method, client in zip(planned.service.methods, clients, strict=True)
    }
    return ServiceClient(f"{_namespace(runtime, planned)}.{planned.name}", opened, {})


async def service_client(
    runtime: DistributedRuntime,
    service: type[T],
    *,
    strategy: str | Strategy = "round_robin",
    graph: ServiceGraph | None = None,
) -> T:
    """A client of a service, for who is no service: what ``depends`` gives, until the runtime closes.

    A ``graph`` knows the namespace that a configuration gave it.
    Raises ConfigError, UnavailableError, ClosedError.
    """
    planned = (graph or ServiceGraph.of(service)).of_class(service)
    clients = await _clients(runtime, planned, strategy)
    return cast(T, _service_client(runtime, planned, clients))
