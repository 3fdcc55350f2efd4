"""What a process serves, for people and programs to read: endpoints, and JSON schemas of types."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from dynamo.core.handlers import Handler

REFERENCE = "#/components/schemas/{name}"
_WRAPPERS = (  # of the item, in what a handler says that it returns
    collections.abc.AsyncGenerator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncIterator,
    collections.abc.Awaitable,
    collections.abc.Coroutine,
)


def describe(handlers: Mapping[str, Handler]) -> dict[str, Any]:
    """By path what each endpoint takes and gives, as far as its handler's annotations tell.

    Without msgspec no schemas.
    """
    known = [
        (path, what, kind)
        for path, handler in handlers.items()
        for what, kind in _types(handler).items()
        if kind is not Any and _has_schema(kind)
    ]
    endpoints: dict[str, dict[str, Any]] = {path: {} for path in handlers}
    components: dict[str, Any] = {}
    if known:
        found, components = schemas(kind for _, _, kind in known)
        for (path, what, _), schema in zip(known, found, strict=True):
            endpoints[path][what] = schema
    return {"endpoints": endpoints, "components": {"schemas": components}}


def _has_schema(kind: Any) -> bool:
    try:
        schemas([kind])
    except Exception:  # of a user's type, or there is no msgspec: calls are served all the same
        return False
    return True


def schemas(types: Iterable[Any]) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """JSON schemas (2020-12) of these types, and by name of what they refer to. Needs msgspec."""
    import msgspec

    own: dict[str, Any] = {}

    def of_pydantic(model: Any) -> dict[str, Any]:
        if (describing := getattr(model, "model_json_schema", None)) is None:
            return {}
        schema: dict[str, Any] = describing(ref_template=REFERENCE.replace("name", "model"))
        own.update(schema.pop("$defs", {}))
        return schema

    found, components = msgspec.json.schema_components(types, schema_hook=of_pydantic, ref_template=REFERENCE)
    return found, {**components, **own}


def _types(handler: Handler) -> dict[str, Any]:
    """Of its request, and of one item of its answer."""
    try:
        hints = get_type_hints(handler.function)
    except Exception:  # names that are known elsewhere only
        return {}
    item = hints.pop("return", Any)
    if get_origin(item) in _WRAPPERS:
        arguments = get_args(item)
        item = arguments[-1 if get_origin(item) is collections.abc.Coroutine else 0] if arguments else Any
    first = next((kind for name, kind in hints.items() if name not in ("context", "self")), Any)
    return {"request": Any if handler.duplex else first, "item": item}
