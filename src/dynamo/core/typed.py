"""Plain values into the types that a function declares: builtins, attrs, dataclasses, TypedDict, pydantic.

msgspec converts, strictly: text is no number, and true is no integer. A pydantic model validates itself, with
or without msgspec. Keys that an attrs class, a dataclass or a TypedDict does not have are refused.
"""

from __future__ import annotations

import difflib
import enum
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dynamo.core.errors import BadPayloadError, ConfigError, MissingExtraError

_WITH_PATH = re.compile(r"(.*) - at (`key` in )?`\$([^`]*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_STEP = re.compile(r"\.([^.\[]+)|\[[^]]*\]")

Look = Callable[[Any, str], None]
"""Raises ValueError if the value, found at that place, has a key that its type does not know."""


def build(model: Any, value: Any) -> Any:
    """Make a ``model`` of what arrived: what a Converter takes, or a JSON text of a class's fields.

    Raises BadPayloadError, a ValueError, that begins with "Invalid request".
    """
    if model is Any or (_is_record(model) and isinstance(value, model)):
        return value
    try:
        if isinstance(value, str) and _is_record(model):
            value = json.loads(value)
        return converter(model)(value)
    except (ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise BadPayloadError(f"Invalid request: {error}") from error


def _is_record(model: Any) -> bool:
    return isinstance(model, type) and any(
        hasattr(model, mark) for mark in ("__attrs_attrs__", "__dataclass_fields__", "model_validate")
    )


@functools.lru_cache(maxsize=1024)
def converter(model: Any) -> Converter:
    """The converter into ``model``, made once. Raises ConfigError, MissingExtraError."""
    return Converter(model)


class Converter:
    """Converts into one type; what does not fit is a ValueError of one line: ``place: expected x, got y``.

    With ``lax``, text is taken for the number, boolean or null that it spells, as in a configuration.
    Making one raises ConfigError for a type that nothing can be converted into, and MissingExtraError where
    msgspec is needed and not installed.
    """

    __slots__ = ("_convert", "_info", "_look", "model")

    def __init__(self, model: Any) -> None:
        self.model = model
        self._info: Any = None
        self._look: Look | None = None
        self._convert: Callable[..., Any] | None = None
        if model in (Any, object) or hasattr(model, "model_validate"):
            return
        try:
            import msgspec
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"converting payloads into {named(model)} needs msgspec: "
                "pip install 'dynamo-runtime-py[services]'"
            ) from error
        try:
            self._info = msgspec.inspect.type_info(model)
        except Exception as error:  # whatever resolving the annotations of users' classes raises
            raise ConfigError(f"{named(model)}: {error}") from error
        self._look = _look(self._info, {})
        self._convert = functools.partial(msgspec.convert, type=model, dec_hook=_own, str_keys=True)

    def __call__(self, value: Any, *, lax: bool = False) -> Any:
        if self._convert is None:
            return value if self.model in (Any, object) else _own(self.model, value)
        import msgspec

        try:
            made = self._convert(value, strict=not lax)
        except msgspec.ValidationError as error:
            raise ValueError(self._told(str(error), value)) from error
        if self._look is not None:
            self._look(value, "")
        return made

    def _told(self, text: str, value: Any) -> str:
        """msgspec's message, with the place first, and the choices where there are some."""
        found = _WITH_PATH.fullmatch(text)
        text, in_key, path = (found[1], found[2], found[3]) if found else (text, None, "")
        if text.startswith("Invalid enum value") and (choices := _choices(_at(self._info, path))):
            got = text.removeprefix("Invalid enum value ")
            text = f"expected one of {', '.join(map(repr, choices))}, got {got}"
        if missing := _MISSING.fullmatch(text):
            path, text = f"{path}.{missing[1]}", "missing"
        text = text.replace("`", "")
        text = text[:1].lower() + text[1:]
        if not found and text.startswith("expected"):
            text = f"{text} {value!r:.60}" if isinstance(value, (str, int, float)) else text
        place = f"{'a key of ' if in_key else ''}{path.removeprefix('.')}".rstrip()
        return f"{place}: {text}" if place else text


def named(model: Any) -> str:
    """A type for a message."""
    return model.__qualname__ if isinstance(model, type) and not hasattr(model, "__origin__") else str(model)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word."""
    known = list(known)
    if close := difflib.get_close_matches(word, known, n=1):
        return f"did you mean {close[0]!r}? known: {', '.join(known)}"
    return f"known: {', '.join(known)}" if known else "there is none"


def _own(model: Any, value: Any) -> Any:
    """What msgspec does not know: pydantic's models, and classes that only an instance of them fits."""
    validate = getattr(model, "model_validate", None)
    if validate is None:
        origin = getattr(model, "__origin__", model)
        if isinstance(value, origin):
            return value
        raise ValueError(f"Expected `{named(model)}`, got `{type(value).__name__}`")
    try:
        return validate(value)
    except ValueError as error:
        if (errors := getattr(error, "errors", None)) is None:
            raise
        raise ValueError("; ".join(map(_one_line, errors()))) from error


def _one_line(error: Mapping[str, Any]) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {error['msg']}" if place else str(error["msg"])


def _look(info: Any, known: dict[int, list[Look | None]]) -> Look | None:
    """What finds unknown keys in values of this type; None where there can be none."""
    import msgspec.inspect as types

    match info:
        case types.DataclassType() | types.TypedDictType():
            if (seen := known.get(id(info.cls))) is not None:  # a class that contains itself
                return lambda value, place: None if seen[0] is None else seen[0](value, place)
            mine: list[Look | None] = [None]
            known[id(info.cls)] = mine
            fields = {field.encode_name: _look(field.type, known) for field in info.fields}
            mine[0] = functools.partial(_look_into, fields)
            return mine[0]
        case types.ListType() | types.VarTupleType() | types.SetType() | types.FrozenSetType():
            each = _look(info.item_type, known)
            return None if each is None else functools.partial(_look_at_items, each)
        case types.DictType():
            each = _look(info.value_type, known)
            return None if each is None else functools.partial(_look_at_values, each)
        case types.StructType():
            inner = {field.encode_name: look for field in info.fields if (look := _look(field.type, known))}
            return functools.partial(_look_at_fields, inner) if inner else None
        case types.CustomType():
            kind = info.cls
            if not hasattr(kind, "model_validate") and kind is not object:
                raise ConfigError(
                    f"nothing is known that makes a {named(kind)} of a payload: use builtins, attrs, "
                    "dataclasses, TypedDict, msgspec or pydantic models"
                )
        case types.UnionType():
            looks = [look for one in info.types if (look := _look(one, known)) is not None]
            return looks[0] if len(looks) == 1 else None
    return None


def _look_into(fields: Mapping[str, Look | None], value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in fields:
                at = f"{place.removeprefix('.')}: " if place else ""
                raise ValueError(f"{at}unknown field {key!r}; {did_you_mean(str(key), fields)}")
            if (look := fields[key]) is not None:
                look(item, f"{place}.{key}")


def _look_at_fields(looks: Mapping[str, Look], value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, look in looks.items():
            if key in value:
                look(value[key], f"{place}.{key}")


def _look_at_items(look: Look, value: Any, place: str) -> None:
    if isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            look(item, f"{place}[{number}]")


def _look_at_values(look: Look, value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            look(item, f"{place}[{key!r}]")


def _at(info: Any, path: str) -> Any:
    """The type at a place of a type, as msgspec writes places; None where that is ambiguous."""
    for step in _STEP.finditer(path):
        options = [info, *getattr(info, "types", ())]
        if (name := step[1]) is not None:
            found = [
                field.type
                for one in options
                for field in getattr(one, "fields", ())
                if field.encode_name == name
            ]
        else:
            found = [
                inner
                for one in options
                for inner in (getattr(one, "item_type", None), getattr(one, "value_type", None))
                if inner is not None
            ]
        if len(found) != 1:
            return None
        info = found[0]
    return info


def _choices(info: Any) -> list[Any]:
    choices: list[Any] = []
    for one in (info, *getattr(info, "types", ())):
        choices += getattr(one, "values", ())
        kind = getattr(one, "cls", None)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            choices += [member.value for member in kind]
    return choices
