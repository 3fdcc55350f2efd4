"""A service as its class declares it: its endpoints, hooks, dependencies and configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import Any

from attrs import frozen

from dynamo.core.context import Context
from dynamo.core.errors import ConfigError
from dynamo.core.model import shown
from dynamo.sdk.current import CURRENT
from dynamo.sdk.depending import Configured, Dependency
from dynamo.sdk.marks import ENDPOINT, HOOK, SERVICE, EndpointMark, RouteMark, ServiceMark, title
from dynamo.sdk.signature import Parameter, Signature


class ServiceMethod:
    """One endpoint of a service. Its annotations are resolved when they are first asked for: ConfigError."""

    def __init__(self, owner: type, service: str, attribute: str, function: Callable[..., Any]) -> None:
        self.owner, self.attribute, self.function = owner, attribute, function
        self.mark: EndpointMark = getattr(function, ENDPOINT)
        self.name = self.mark.name or attribute
        self.where = f"{title(owner)}.{attribute}"
        self.streaming = inspect.isasyncgenfunction(function)
        self._service = service

    @cached_property
    def signature(self) -> Signature:
        return Signature(
            self.function,
            owner=self.owner,
            where=self.where,
            request_name=f"{self._service}.{self.name}.request",
        )

    @property
    def parameters(self) -> dict[str, Parameter]:
        return self.signature.parameters

    @property
    def item_type(self) -> Any:
        """What each item is, or the one item of a coroutine method."""
        return self.signature.item_type

    @property
    def route(self) -> RouteMark | None:
        return self.mark.route

    @property
    def path(self) -> str | None:
        """Where it is asked over HTTP; None where it has no route."""
        return None if self.mark.route is None else self.mark.route.path or f"/{self.name}"

    @property
    def description(self) -> str:
        return inspect.getdoc(self.function) or ""

    def bound(self, instance: Any) -> Callable[[Any, Context], Any]:
        """What serves it: converts the payload, then calls the method of ``instance``; the context becomes
        that of the running task.
        """
        method = getattr(instance, self.attribute)
        bind, context_name = self.signature.bind, self.signature.context_name

        def handle(request: Any, context: Context) -> Any:
            arguments = bind(request)
            if context_name is not None:
                arguments[context_name] = context
            CURRENT.set(context)
            return method(**arguments)

        handle.__qualname__ = self.where
        handle.__annotations__ = {"request": self.signature.request_type, "return": self.item_type}
        return handle


@frozen(kw_only=True)
class ServiceSpec:
    """What a class declares; ``of`` reads it."""

    cls: type[Any]
    mark: ServiceMark
    methods: tuple[ServiceMethod, ...]
    hooks: tuple[tuple[str, str], ...]
    """(kind, attribute), in the order of their definition."""
    depends: tuple[Dependency, ...]
    configured: tuple[Configured, ...]

    @property
    def name(self) -> str:
        return self.mark.name

    @property
    def dependencies(self) -> tuple[type[Any], ...]:
        """The services that it depends on. Raises ConfigError for what is not there, or is no service."""
        return tuple(self._needed(one) for one in self.depends)

    def _needed(self, dependency: Dependency) -> type[Any]:
        target = dependency.target(self.cls)
        if not isinstance(target.__dict__.get(SERVICE), ServiceSpec):
            raise ConfigError(
                f"{title(self.cls)}.{dependency.attribute} depends on {target.__qualname__}, "
                "which is not a service: put @service on it"
            )
        return target

    @classmethod
    def of(cls, declared: Any) -> ServiceSpec:
        """Read a class that has ``@service``. Raises ConfigError."""
        spec = declared.__dict__.get(SERVICE) if isinstance(declared, type) else None
        if not isinstance(spec, ServiceSpec):
            name = declared.__qualname__ if isinstance(declared, type) else shown(declared)
            raise ConfigError(f"{name} is not a service: put @service on a class")
        # attrs with slots makes another class, and copies what the first one had
        return spec if spec.cls is declared else read_service(declared, spec.mark)

    def check(self) -> None:
        """Resolve everything that was left for later. Raises ConfigError."""
        for method in self.methods:
            _ = method.signature
        _ = self.dependencies


def read_service(declared: type[Any], mark: ServiceMark) -> ServiceSpec:
    """Read a class and note in it what was found. Raises ConfigError."""
    where = title(declared)
    methods: dict[str, ServiceMethod] = {}
    paths: dict[str, ServiceMethod] = {}
    hooks: list[tuple[str, str]] = []
    depends: list[Dependency] = []
    configured: list[Configured] = []
    attributes: dict[str, Any] = {
        name: value for owner in reversed(declared.__mro__) for name, value in vars(owner).items()
    }
    for attribute, value in attributes.items():
        inherited = [vars(owner)[attribute] for owner in declared.__mro__ if attribute in vars(owner)]
        if isinstance(value, Dependency):
            value.attribute = attribute
            depends.append(value)
        elif isinstance(value, Configured):
            value.attribute = attribute
            configured.append(value)
        elif type(value) in (staticmethod, classmethod) and vars(value.__func__).keys() & {ENDPOINT, HOOK}:
            raise ConfigError(f"{where}.{attribute}: a {type(value).__name__} can't be an endpoint or a hook")
        elif isinstance(getattr(value, ENDPOINT, None), EndpointMark):
            method = ServiceMethod(declared, mark.name, attribute, value)
            if (other := methods.get(method.name)) is not None:
                raise ConfigError(
                    f"{where}: {other.attribute} and {attribute} are both endpoint {method.name!r}: "
                    "give one another name with @endpoint(name=...)"
                )
            if method.path is not None and (first := paths.setdefault(method.path, method)) is not method:
                raise ConfigError(f"{method.where}: {method.path} is the path of {first.attribute} already")
            methods[method.name] = method
        elif isinstance(kind := getattr(value, HOOK, None), str):
            hooks.append((kind, attribute))
        elif any(hasattr(each, ENDPOINT) or hasattr(each, HOOK) for each in inherited[1:]):
            raise ConfigError(
                f"{where}.{attribute} overrides a decorated method: decorate it too, or give it another name"
            )
    spec = ServiceSpec(
        cls=declared,
        mark=mark,
        methods=tuple(methods.values()),
        hooks=tuple(hooks),
        depends=tuple(depends),
        configured=tuple(configured),
    )
    setattr(declared, SERVICE, spec)
    return spec
