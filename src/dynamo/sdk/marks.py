"""The decorators: marks on classes and functions, which stay what they are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar, overload

from attrs import evolve, frozen

from dynamo.core.errors import ConfigError
from dynamo.core.model import check_name, shown

C = TypeVar("C", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])
Hook = TypeVar("Hook", bound=Callable[[Any], Awaitable[None]])

SERVICE: Final = "__dynamo_service__"
ENDPOINT: Final = "__dynamo_endpoint__"
HOOK: Final = "__dynamo_hook__"
_PATH = re.compile(r"(/[A-Za-z0-9_.~-]+)+")


@frozen(kw_only=True)
class RouteMark:
    """What ``@api`` said."""

    path: str | None = None


@frozen(kw_only=True)
class EndpointMark:
    """What ``@endpoint`` said; a bare ``@api`` says the same as a bare ``@endpoint``."""

    name: str | None = None
    idempotent: bool = False
    max_inflight: int | None = None
    queue: int | None = None
    route: RouteMark | None = None


@frozen(kw_only=True)
class ServiceMark:
    """What ``@service`` said."""

    name: str
    namespace: str | None = None
    workers: int = 1
    resources: Mapping[str, Any]


@overload
def endpoint(function: F, /) -> F: ...
@overload
def endpoint(
    *,
    name: str | None = None,
    idempotent: bool = False,
    max_inflight: int | None = None,
    queue: int | None = None,
) -> Callable[[F], F]: ...
def endpoint(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    idempotent: bool = False,
    max_inflight: int | None = None,
    queue: int | None = None,
) -> Any:
    """Mark a method of a service as an endpoint, called ``name`` or like the method.

    It is an async generator function, whose items stream, or a coroutine function, whose result is the one
    item. Its annotations say what it takes and gives; a parameter ``context``, or one annotated Context, gets
    the request's context. Options are those of ``Endpoint.serve``. Raises ConfigError.
    """

    def mark(function: F) -> F:
        where = _title(function)
        _check_async(where, "@endpoint", function)
        if name is not None:
            _named(where, "endpoint", name)
        if max_inflight is not None and (type(max_inflight) is not int or max_inflight < 1):
            raise ConfigError(
                f"{where}: max_inflight={max_inflight!r}: expected 1 or more, or None for no bound"
            )
        if queue is not None and (type(queue) is not int or queue < 0 or max_inflight is None):
            raise ConfigError(f"{where}: queue={queue!r}: expected 0 or more, beside max_inflight")
        said = _endpoint_mark(function)
        setattr(
            function,
            ENDPOINT,
            EndpointMark(
                name=name,
                idempotent=idempotent,
                max_inflight=max_inflight,
                queue=queue,
                route=said.route if said else None,
            ),
        )
        return function

    return mark if function is None else mark(function)


@overload
def api(function: F, /) -> F: ...
@overload
def api(*, path: str | None = None) -> Callable[[F], F]: ...
def api(function: Callable[..., Any] | None = None, /, *, path: str | None = None) -> Any:
    """Mark a method of a service as an endpoint that is also an HTTP route: ``POST path``, by default
    ``/`` and the endpoint's name. ``@endpoint(...)`` beside it gives the endpoint's options. Raises
    ConfigError.
    """

    def mark(function: F) -> F:
        where = _title(function)
        _check_async(where, "@api", function)
        if path is not None and (not isinstance(path, str) or _PATH.fullmatch(path) is None):
            raise ConfigError(f"{where}: path={shown(path)}: expected a path such as '/v1/generate'")
        said = _endpoint_mark(function) or EndpointMark()
        setattr(function, ENDPOINT, evolve(said, route=RouteMark(path=path)))
        return function

    return mark if function is None else mark(function)


def on_start(function: Hook) -> Hook:
    """Mark a coroutine method that is awaited before the service is registered; what it raises ends the
    start. Several run in the order in which they are defined.
    """
    _hook(function, "on_start")
    return function


def on_shutdown(function: Hook) -> Hook:
    """Mark a coroutine method that is awaited once the service has drained, if its start had succeeded."""
    _hook(function, "on_shutdown")
    return function


def _hook(function: Any, kind: str) -> None:
    where = _title(function)
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(f"{where}: @{kind} takes a method that is 'async def' without 'yield'")
    if len(inspect.signature(function).parameters) != 1:
        raise ConfigError(f"{where}: a method with @{kind} takes nothing but self")
    setattr(function, HOOK, kind)


@overload
def service(cls: C, /) -> C: ...
@overload
def service(
    *,
    namespace: str | None = None,
    name: str | None = None,
    workers: int = 1,
    resources: Mapping[str, Any] | None = None,
) -> Callable[[C], C]: ...
def service(
    cls: type[Any] | None = None,
    /,
    *,
    namespace: str | None = None,
    name: str | None = None,
    workers: int = 1,
    resources: Mapping[str, Any] | None = None,
) -> Any:
    """Mark a class as a service: component ``name`` (the class's own by default) of ``namespace``
    (``DYN_NAMESPACE`` by default). It stays an ordinary class.

    ``workers`` is how many processes `dynamo serve` runs of it; ``resources`` is what each of them needs,
    such as ``{"gpu": 1}``. Raises ConfigError for what is wrong in the class.
    """

    def mark(cls: C) -> C:
        if not isinstance(cls, type):
            raise ConfigError(f"@service takes a class, not {shown(cls)}")
        where = title(cls)
        if namespace is not None:
            _named(where, "namespace", namespace)
        _named(where, "service", called := cls.__name__ if name is None else name)
        if type(workers) is not int or workers < 0:
            raise ConfigError(f"{where}: workers={workers!r}: expected a number of processes, 0 or more")
        if resources is not None and not isinstance(resources, Mapping):
            raise ConfigError(f"{where}: resources={shown(resources)}: expected a map, such as {{'gpu': 1}}")
        said = ServiceMark(name=called, namespace=namespace, workers=workers, resources=dict(resources or {}))
        from dynamo.sdk.spec import read_service  # which reads these marks

        read_service(cls, said)
        return cls

    return mark if cls is None else mark(cls)


def _endpoint_mark(function: Any) -> EndpointMark | None:
    found = getattr(function, ENDPOINT, None)
    return found if isinstance(found, EndpointMark) else None


def _title(function: Any) -> str:
    if isinstance(function, (staticmethod, classmethod)):
        raise ConfigError(
            f"{_title(function.__func__)}: a {type(function).__name__} can't be an endpoint or a hook"
        )
    if not inspect.isfunction(function):
        raise ConfigError(f"this decorator takes a method, not {shown(function)}")
    return title(function)


def title(named: Any) -> str:
    """A class or a method for a message: without the function that it was defined in."""
    name: str = named.__qualname__
    return name.rpartition("<locals>.")[2]


def _check_async(where: str, decorator: str, function: Any) -> None:
    if not inspect.iscoroutinefunction(function) and not inspect.isasyncgenfunction(function):
        raise ConfigError(
            f"{where}: {decorator} takes an async method: write 'async def {function.__name__}'"
        )
    first = next(iter(inspect.signature(function).parameters.values()), None)
    if first is None:
        raise ConfigError(f"{where}: a method takes self first")
    if first.name != "self" and first.annotation is not inspect.Parameter.empty:
        raise ConfigError(f"{where}: a method takes self first, before {first.name!r}")


def _named(where: str, kind: str, name: object) -> None:
    try:
        check_name(kind, name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
