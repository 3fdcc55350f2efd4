"""What ``@api`` makes of endpoints, for a server that offers them over HTTP: routes and JSON schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from dynamo.core.codec import _plain
from dynamo.core.context import Context
from dynamo.core.describing import schemas
from dynamo.core.errors import EncodeError
from dynamo.sdk.signature import Parameter
from dynamo.sdk.spec import ServiceMethod, ServiceSpec


@frozen(kw_only=True)
class Route:
    """One endpoint over HTTP.

    ``call(payload, context)`` takes plain JSON data and gives an async iterator of items where
    ``is_streaming``, else an awaitable of the one item; BadPayloadError comes before the method runs. It
    makes ``context`` that of the running task, so requests run in tasks of their own, or one after the
    other. It is a call of the method and nothing more: ``max_inflight`` and ``queue`` are the server's.
    """

    service: str
    endpoint: str
    name: str
    http_method: str = "POST"
    path: str
    description: str
    is_streaming: bool
    parameters: Mapping[str, Parameter]
    request_type: Any
    item_type: Any
    max_inflight: int | None
    queue: int | None
    call: Callable[[Any, Context], Any]


@frozen(kw_only=True)
class RouteSchemas:
    """JSON schemas (2020-12) by path, and what they refer to as ``#/components/schemas/...``."""

    requests: Mapping[str, Any]
    items: Mapping[str, Any]
    components: Mapping[str, Any]


def routes_of(spec: ServiceSpec, instance: Any, *, namespace: str) -> tuple[Route, ...]:
    """The routes of a service, calling ``instance``."""
    return tuple(
        _route(spec, method, instance, namespace, path)
        for method in spec.methods
        if (path := method.path) is not None
    )


def _route(spec: ServiceSpec, method: ServiceMethod, instance: Any, namespace: str, path: str) -> Route:
    return Route(
        service=spec.name,
        endpoint=f"{namespace}.{spec.name}.{method.name}",
        name=method.name,
        path=path,
        description=method.description,
        is_streaming=method.streaming,
        parameters=method.parameters,
        request_type=method.signature.request_type,
        item_type=method.item_type,
        max_inflight=method.mark.max_inflight,
        queue=method.mark.queue,
        call=method.bound(instance),
    )


def route_schemas(routes: Iterable[Route]) -> RouteSchemas:
    """The schemas of what each route takes and gives."""
    routes = list(routes)
    found, components = schemas(kind for route in routes for kind in (route.request_type, route.item_type))
    paths = [route.path for route in routes]
    return RouteSchemas(
        requests=dict(zip(paths, found[::2], strict=True)),
        items=dict(zip(paths, found[1::2], strict=True)),
        components=components,
    )


def encode_json(item: Any) -> bytes:
    """An item as JSON, in the shape that it has on the wire. Raises EncodeError."""
    import msgspec

    try:
        return msgspec.json.encode(item, enc_hook=_plain)
    except Exception as error:  # code of the item's own classes runs in here
        raise EncodeError(f"cannot write {type(item).__name__} as JSON: {error}") from error
