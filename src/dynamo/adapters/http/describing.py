"""What a server offers, for people and programs: ``GET /`` and ``GET /openapi.json`` (OpenAPI 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dynamo.adapters.http.media import STREAMED, WHOLE, Form
from dynamo.adapters.http.problems import MEDIA_TYPE
from dynamo.adapters.http.reading import REQUEST_ID, TIMEOUT
from dynamo.sdk.routes import Route, route_schemas

_PROBLEM = "dynamo.Problem"
_STATUSES = {
    "400": "The body is not JSON, or does not fit.",
    "429": "Overloaded: again after Retry-After.",
    "500": "The method failed.",
    "502": "A service behind this one failed.",
    "503": "Draining, or a service behind this one is away: again after Retry-After.",
    "504": "The deadline passed.",
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "error": {"type": "string", "description": "The class of what was raised, where something was."},
    },
    "required": ["type", "title", "status", "detail", "request_id"],
}


def index_of(routes: Sequence[Route], prefix: str) -> dict[str, Any]:
    """The routes with their schemas, to read."""
    schemas = route_schemas(routes)
    return {
        "routes": [
            {
                "method": route.http_method,
                "path": prefix + route.path,
                "endpoint": route.endpoint,
                "description": route.description,
                "streams": route.is_streaming,
                "gives": [form.value for form in _forms(route)],
                "request": schemas.requests[route.path],
                "item": schemas.items[route.path],
            }
            for route in routes
        ],
        "openapi": f"{prefix}/openapi.json",
        "components": {"schemas": dict(schemas.components)},
    }


def openapi_of(routes: Sequence[Route], prefix: str) -> dict[str, Any]:
    """The OpenAPI document of routes that are served below ``prefix``."""
    schemas = route_schemas(routes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": ", ".join(dict.fromkeys(route.service for route in routes)) or "dynamo",
            "version": _version(),
        },
        "servers": [{"url": prefix or "/"}],
        "paths": {
            route.path: {
                route.http_method.lower(): _operation(
                    route, schemas.requests[route.path], schemas.items[route.path]
                )
            }
            for route in routes
        },
        "components": {
            "schemas": {**schemas.components, _PROBLEM: _PROBLEM_SCHEMA},
            "parameters": {
                "timeout": _header(TIMEOUT, "Seconds until the deadline.", {"type": "number"}),
                "request_id": _header(REQUEST_ID, "The id to log the request under.", {"type": "string"}),
                "traceparent": _header("traceparent", "W3C Trace Context.", {"type": "string"}),
            },
            "responses": {
                status: {
                    "description": text,
                    "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{_PROBLEM}"}}},
                }
                for status, text in _STATUSES.items()
            },
        },
    }


def _operation(route: Route, request: Any, item: Any) -> dict[str, Any]:
    summary, _, more = route.description.partition("\n")
    return {
        "operationId": route.endpoint,
        **({"summary": summary} if summary else {}),
        **({"description": more.strip()} if more.strip() else {}),
        "tags": [route.service],
        "parameters": [
            {"$ref": f"#/components/parameters/{name}"} for name in ("timeout", "request_id", "traceparent")
        ],
        "requestBody": {
            "required": any(parameter.required for parameter in route.parameters.values()),
            "content": {Form.JSON.value: {"schema": request}},
        },
        "responses": {
            "200": {
                "description": "The items, as they come." if route.is_streaming else "The one item.",
                "content": {form.value: {"schema": _body(route, form, item)} for form in _forms(route)},
            },
            **{status: {"$ref": f"#/components/responses/{status}"} for status in _STATUSES},
        },
    }


def _body(route: Route, form: Form, item: Any) -> dict[str, Any]:
    if form is not Form.JSON:
        one = "one a line" if form is Form.LINES else "the data of one event each"
        return {"type": "string", "description": f"Items, {one}.", "contentSchema": item}
    return {"type": "array", "items": item} if route.is_streaming else item


def _forms(route: Route) -> tuple[Form, ...]:
    return STREAMED if route.is_streaming else WHOLE


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _version() -> str:
    try:
        return version("dynamo-runtime-py")
    except PackageNotFoundError:  # run from its sources
        return "0"
