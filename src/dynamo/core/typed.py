"""Plain values into the types that a handler declares: builtins, attrs, dataclasses, and pydantic models."""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

import attrs

from dynamo.core.errors import BadPayloadError


def build(model: Any, value: Any) -> Any:
    """Make a ``model`` of what arrived: an instance of it, a mapping of its fields, or a JSON text of that.

    Fields of attrs classes and dataclasses are built by their annotations, nested ones too; unknown fields
    are refused. A pydantic model validates itself. Raises BadPayloadError, a ValueError, that begins with
    "Invalid request".
    """
    try:
        if isinstance(value, str) and (_fields(model) is not None or hasattr(model, "model_validate")):
            value = json.loads(value)
        return _build(model, value, "")
    except (ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
        raise BadPayloadError(f"Invalid request: {error}") from error


def _build(model: Any, value: Any, where: str) -> Any:
    if model is Any or (model is None and value is None):
        return value
    origin, arguments = get_origin(model), get_args(model)
    if origin in (Union, types.UnionType):
        return _first(arguments, value, where)
    if origin is typing.Annotated:
        return _build(arguments[0], value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(
                f"{where or 'value'}: expected one of {', '.join(map(repr, arguments))}, got {value!r}"
            )
        return value
    if origin in (list, tuple, set, frozenset) and arguments:
        _expect(isinstance(value, (list, tuple)), origin, value, where)
        each = (
            arguments if origin is tuple and arguments[-1] is not Ellipsis else (arguments[0],) * len(value)
        )
        if len(each) != len(value):
            raise ValueError(f"{where or 'value'}: expected {len(each)} values, got {len(value)}")
        return origin(
            _build(kind, item, f"{where}[{n}]")
            for n, (kind, item) in enumerate(zip(each, value, strict=True))
        )
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping) and arguments:
        _expect(isinstance(value, Mapping), dict, value, where)
        return {
            _build(arguments[0], key, f"{where} key"): _build(arguments[1], item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(origin, type):
        model = origin
    if not isinstance(model, type) or (
        isinstance(value, model) and (type(value) is not bool or model is not int)
    ):
        return value
    if (validate := getattr(model, "model_validate", None)) is not None:
        return validate(value)
    fields = _fields(model)
    if fields is not None:
        return _from_mapping(model, fields, value, where)
    if model is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if issubclass(model, (tuple, set, frozenset)) and isinstance(value, list):
        return model(value)  # MessagePack has only one kind of list
    _expect(False, model, value, where)


def _from_mapping(model: type, fields: Mapping[str, tuple[str, Any]], value: Any, where: str) -> Any:
    _expect(isinstance(value, Mapping), model, value, where)
    if unknown := [key for key in value if key not in fields]:
        raise ValueError(
            f"{where or model.__name__}: unknown field {unknown[0]!r}; known: {', '.join(fields)}"
        )
    given = {
        fields[key][0]: _build(fields[key][1], item, f"{where}.{key}".lstrip("."))
        for key, item in value.items()
    }
    return model(**given)


def _first(models: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in models:
        return None
    reason: Exception | None = None
    for model in models:
        try:
            return _build(model, value, where)
        except (ValueError, TypeError) as error:
            reason = reason or error
    raise reason or ValueError(f"{where or 'value'}: {value!r} fits nothing")


def _expect(holds: bool, model: Any, value: Any, where: str) -> None:
    if not holds:
        name = getattr(model, "__name__", str(model))
        raise ValueError(f"{where or 'value'}: expected {name}, got {type(value).__name__} {value!r:.60}")


@functools.lru_cache(maxsize=256)
def _fields(model: Any) -> Mapping[str, tuple[str, Any]] | None:
    """Field name to (parameter of __init__, type), for attrs classes and dataclasses; None for anything
    else.
    """
    if not isinstance(model, type):
        return None
    if attrs.has(model):
        hints = _hints(model)
        return {
            field.name: (field.alias or field.name, hints.get(field.name, Any))
            for field in attrs.fields(model)
            if field.init
        }
    if dataclasses.is_dataclass(model):
        hints = _hints(model)
        return {
            field.name: (field.name, hints.get(field.name, Any))
            for field in dataclasses.fields(model)
            if field.init
        }
    return None


def _hints(model: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(model)
    except NameError:  # a name that exists only for type checkers: those fields are taken as they come
        return {}
