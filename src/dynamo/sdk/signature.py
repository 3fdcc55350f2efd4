"""What a service method takes and gives: payloads into arguments, arguments into a request."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Any, Final, get_args, get_origin

from attrs import frozen

from dynamo.core.context import Context
from dynamo.core.errors import BadPayloadError, ConfigError, MissingExtraError
from dynamo.core.typed import Converter, converter, did_you_mean, named

REQUIRED: Final = inspect.Parameter.empty
_PLAIN = (type(None), bool, int, float, str)
_STREAMS = (AsyncIterator, AsyncGenerator, AsyncIterable)


@frozen
class Parameter:
    """One argument of a method; ``default`` is ``REQUIRED`` where there is none."""

    name: str
    type: Any
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


class Signature:
    """A method as its callers see it. ``request_type`` is a msgspec Struct of its parameters.

    Raises ConfigError, beginning with ``where``, for what no payload could be bound to.
    """

    def __init__(self, function: Callable[..., Any], *, owner: type, where: str, request_name: str) -> None:
        self._where = where
        hints = resolved(function, owner, where)
        self.context_name: str | None = None
        self.parameters: dict[str, Parameter] = {}
        shown: list[inspect.Parameter] = []
        for one in list(inspect.signature(function).parameters.values())[1:]:
            kind = hints.get(one.name, Any)
            if _is_context(one.name, kind):
                self.context_name = one.name
                shown.append(one.replace(default=None if one.default is REQUIRED else one.default))
                continue
            if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                raise ConfigError(
                    f"{where}: parameter {one.replace(annotation=one.empty)}: arguments come by name, "
                    "so each has a name of its own"
                )
            shown.append(one)
            self.parameters[one.name] = Parameter(one.name, kind, one.default)
        self.item_type = self._item_type(function, hints)
        self.request_type = self._request_type(request_name)
        self._convert = self._converter(self.request_type)
        self.item = self._converter(self.item_type)
        self._calling = inspect.Signature(_after_required(shown))
        by_place = [one for one in shown if one.kind is one.POSITIONAL_OR_KEYWORD]
        self._by_place = tuple(one.name for one in by_place)
        required = [one for one in self._calling.parameters.values() if one.default is REQUIRED]
        self._fewest = len(required)
        self._only_by_place = all(one.kind is one.POSITIONAL_OR_KEYWORD for one in required)

    def bind(self, payload: Any) -> dict[str, Any]:
        """The keyword arguments in ``payload``. Raises BadPayloadError that names the field and the type."""
        if len(self.parameters) == 1:
            return self._bind_one(payload)
        if payload is None:
            payload = {}
        if not isinstance(payload, dict):
            takes = f"an object with {', '.join(self.parameters)}" if self.parameters else "no arguments"
            raise BadPayloadError(f"{self._where} takes {takes}, got {_kind(payload)}")
        return self._by_name(payload)

    def _bind_one(self, payload: Any) -> dict[str, Any]:
        """By name, or the bare value; by name is tried first, for so typed clients send it."""
        ((name, parameter),) = self.parameters.items()
        refused: BadPayloadError | None = None
        if isinstance(payload, dict) and (
            (name in payload and len(payload) == 1) or (not payload and not parameter.required)
        ):
            try:
                return self._by_name(payload)
            except BadPayloadError as error:
                refused = error
        try:
            return self._by_name({name: payload})
        except BadPayloadError as error:
            if refused is not None:
                raise refused from None
            if payload is None and not parameter.required:
                return {}
            if isinstance(payload, dict) and str(error).endswith("got object"):  # meant by name, surely
                return self._by_name(payload)
            raise

    def _by_name(self, payload: dict[Any, Any]) -> dict[str, Any]:
        import msgspec

        try:
            record = self._convert(payload)
        except ValueError as error:
            for key in payload:
                if key not in self.parameters:
                    raise BadPayloadError(
                        f"{self._where}: unknown key {key!r}; {did_you_mean(str(key), self.parameters)}"
                    ) from None
            raise BadPayloadError(f"{self._where}: {error}") from error
        given = {name: getattr(record, name) for name in self.parameters}
        return {name: value for name, value in given.items() if value is not msgspec.UNSET}

    def pack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], Context | None]:
        """A call's request, and the context that it named. Raises TypeError, as calling the method would."""
        if not kwargs and self._only_by_place and self._fewest <= len(args) <= len(self._by_place):
            request = dict(zip(self._by_place, args, strict=False))
        else:
            try:
                request = self._calling.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"{self._where}: {error}") from None
        return request, None if self.context_name is None else request.pop(self.context_name, None)

    def _item_type(self, function: Callable[..., Any], hints: Mapping[str, Any]) -> Any:
        returns = hints.get("return", Any)
        if inspect.isasyncgenfunction(function):
            if returns is Any or (get_origin(returns) or returns) in _STREAMS:
                return (get_args(returns) or (Any,))[0]
            raise ConfigError(
                f"{self._where} yields items: annotate it '-> AsyncIterator[{named(returns)}]', "
                f"not '-> {named(returns)}'"
            )
        if (get_origin(returns) or returns) in _STREAMS:
            raise ConfigError(f"{self._where} is to stream: let it 'yield' its items, not return an iterator")
        return returns

    def _request_type(self, name: str) -> Any:
        try:
            import msgspec
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "services need msgspec: pip install 'dynamo-runtime-py[services]'"
            ) from error
        fields: list[tuple[str, Any, Any]] = []
        for one in self.parameters.values():
            self._converter(one.type, f"parameter {one.name}")
            if one.required:
                fields.append((one.name, one.type, msgspec.NODEFAULT))
            elif type(one.default) in _PLAIN:
                fields.append((one.name, one.type, one.default))
            else:  # left to the function, which alone knows whether it may be shared
                kind = one.type if hasattr(one.type, "model_validate") else one.type | msgspec.UnsetType
                fields.append((one.name, kind, msgspec.UNSET))
        return msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)

    def _converter(self, model: Any, what: str = "") -> Converter:
        try:
            return converter(model)
        except MissingExtraError:
            raise
        except (ConfigError, TypeError) as error:  # a type without a hash is no type
            where = f"{self._where}: {what}" if what else self._where
            raise ConfigError(f"{where}: {error}") from error


def resolved(function: Any, owner: type, where: str) -> dict[str, Any]:
    """The annotations of a function or class as types. Raises ConfigError for one that cannot be found."""
    try:
        return typing.get_type_hints(function, localns={owner.__name__: owner}, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"{where}: the annotation {error.name!r} cannot be resolved: define or import it at the top of "
            f"{function.__module__}, outside of 'if TYPE_CHECKING'"
        ) from error
    except Exception as error:  # annotations are code
        raise ConfigError(f"{where}: an annotation cannot be resolved: {error}") from error


def _is_context(name: str, kind: Any) -> bool:
    if kind is Any:
        return name == "context"
    members = get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return Context in members


def _after_required(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """With the context optional, those after it must become reachable: they are asked for by name."""
    seen_default = False
    result: list[inspect.Parameter] = []
    for one in parameters:
        by_place = one.kind is one.POSITIONAL_OR_KEYWORD
        if by_place and seen_default and one.default is REQUIRED:
            one = one.replace(kind=one.KEYWORD_ONLY)
        seen_default = seen_default or (by_place and one.default is not REQUIRED)
        result.append(one)
    return sorted(result, key=lambda one: one.kind)


def _kind(value: Any) -> str:
    return type(value).__name__
