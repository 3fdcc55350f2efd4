"""Names on the way to a call: namespace, component, endpoint. Values that do no I/O; the runtime does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from dynamo.core.errors import ClosedError, ConfigError
from dynamo.core.handlers import HandlerFunction
from dynamo.core.hosting import ServeOptions
from dynamo.core.metrics import EndpointMetrics
from dynamo.core.model import EndpointId, Instance, check_name, shown
from dynamo.core.routing import Strategy

if TYPE_CHECKING:
    from dynamo.core.client import Client
    from dynamo.core.distributed import DistributedRuntime


def _by_name(labels: Mapping[str, str] | Iterable[tuple[str, str]] | None) -> dict[str, str]:
    try:
        named = dict(labels or ())
    except (TypeError, ValueError):
        named = None
    if named is None or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"labels={shown(labels)}: expected a map, or pairs, such as [('model', 'tiny')]")
    return named


class Namespace:
    """One pipeline, usually one model; isolates deployments."""

    __slots__ = ("_runtime", "name")

    def __init__(self, runtime: DistributedRuntime, name: str) -> None:
        self._runtime, self.name = runtime, check_name("namespace", name)

    def component(self, name: str) -> Component:
        """Raises ConfigError on a bad name."""
        return Component(self._runtime, self.name, name)

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"


class Component:
    """A load-balanced service of a pipeline."""

    __slots__ = ("_runtime", "name", "namespace")

    def __init__(self, runtime: DistributedRuntime, namespace: str, name: str) -> None:
        self._runtime, self.namespace, self.name = runtime, namespace, check_name("component", name)

    def endpoint(self, name: str) -> Endpoint:
        """Raises ConfigError on a bad name."""
        return Endpoint(self._runtime, EndpointId(namespace=self.namespace, component=self.name, name=name))

    def __repr__(self) -> str:
        return f"Component({self.namespace + '.' + self.name!r})"


class Endpoint:
    """One function of a component: serve it here, or make a client that calls whoever serves it."""

    __slots__ = ("_runtime", "id")

    def __init__(self, runtime: DistributedRuntime, endpoint_id: EndpointId) -> None:
        self._runtime, self.id = runtime, endpoint_id

    def serve(
        self,
        handler: HandlerFunction,
        *,
        name: str | None = None,
        idempotent: bool = False,
        max_inflight: int | None = None,
        queue: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        graceful_shutdown: bool = True,
        duplex: bool | None = None,
        health_check_payload: Any = None,
    ) -> AbstractAsyncContextManager[Instance]:
        """Serve it for the block, which gets the registered instance: reachable first, then registered.

        ``name`` is unique in the endpoint and lets callers say ``direct``; ``idempotent`` lets them try
        again what may have started. At most ``max_inflight`` handlers run and ``queue`` calls wait (as many
        again unless said); beyond that a call is refused as overloaded. ``metadata`` is small and static,
        ``labels`` go into it, and onto the endpoint's metrics. With ``duplex`` the handler gets a
        RequestStream; None lets its annotation decide.
        ``health_check_payload`` is a request that the handler is asked with while nobody else asks, where
        ``DYN_HEALTH_CHECK_ENABLED`` says so; without an answer in time ``/health`` is 503.

        Leaving the block withdraws the endpoint: draining, grace, refuse, finish, cancel, unregister, each
        bounded; without ``graceful_shutdown`` open streams are cancelled instead of finished. Entering
        waits for discovery. Raises UnavailableError after ``DYN_STARTUP_TIMEOUT_S``, ConflictError,
        ConfigError, ClosedError."""
        named = _by_name(labels)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise ConfigError(f"metadata={shown(metadata)}: expected a map, such as {{'zone': 'a'}}")
        options = ServeOptions(
            name=name,
            idempotent=idempotent,
            max_inflight=max_inflight,
            queue=queue,
            metadata={**(metadata or {}), **({"labels": named} if named else {})},
            graceful=graceful_shutdown,
            duplex=duplex,
            labels=named,
            health_check_payload=health_check_payload,
        )
        return self._runtime._serve(self.id, handler, options)

    async def serve_endpoint(
        self,
        handler: HandlerFunction,
        graceful_shutdown: bool = True,
        metrics_labels: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        health_check_payload: Any = None,
        **options: Any,
    ) -> None:
        """Serve until the runtime shuts down; cancelling withdraws the endpoint.

        ``options`` and errors are those of ``serve``; ``metrics_labels`` are its labels.
        """
        begun = self._runtime._begun
        if begun.is_set():
            raise ClosedError("this runtime was told to shut down, and serves nothing any more")
        try:
            async with self.serve(
                handler,
                labels=metrics_labels,
                graceful_shutdown=graceful_shutdown,
                health_check_payload=health_check_payload,
                **options,
            ):
                await begun.wait()
        except ClosedError:
            if (
                not begun.is_set()
            ):  # else the shutdown came before it was registered: there was nothing to serve
                raise

    async def serve_bidirectional_endpoint(
        self,
        handler: HandlerFunction,
        graceful_shutdown: bool = True,
        metrics_labels: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        **options: Any,
    ) -> None:
        """``serve_endpoint`` for a duplex handler, which gets a RequestStream."""
        await self.serve_endpoint(handler, graceful_shutdown, metrics_labels, duplex=True, **options)

    async def register_endpoint_instance(self) -> None:
        """Wake: back into discovery. Doing it twice is fine. Raises ConfigError if it is not served here."""
        await self._runtime._announce(self.id, announced=True)

    async def unregister_endpoint_instance(self) -> None:
        """Sleep: out of discovery while still serving who knows the address. Doing it twice is fine."""
        await self._runtime._announce(self.id, announced=False)

    async def client(
        self,
        router_mode: Any = None,
        *,
        strategy: str | Strategy = "round_robin",
        instance: int | str | None = None,
        endpoint_id: int | str | None = None,
    ) -> Client:
        """A client of this endpoint; all clients of one endpoint in a runtime share one watch.

        ``router_mode`` is Dynamo's word for a strategy: its enum, or a name in any spelling; ``endpoint_id``
        is its first generation's word for ``instance``, the id or name that strategy ``direct`` asks. Waits
        until the discovery adapter is open, not for instances. Raises UnavailableError, ConfigError,
        ClosedError.
        """
        if router_mode is not None:
            strategy = getattr(router_mode, "name", router_mode)
        return await self._runtime._client(self.id, strategy=strategy, instance=instance or endpoint_id)

    @property
    def metrics(self) -> EndpointMetrics:
        """The program's own metrics of this endpoint: shown at ``/metrics`` with its labels."""
        return self._runtime._metrics(self.id)

    def connection_id(self) -> int:
        """The instance id of this runtime."""
        return self._runtime.connection_id()

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"Endpoint({str(self.id)!r})"
