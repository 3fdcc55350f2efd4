"""A service and all that it depends on, each with its configuration: what is to be run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from dynamo.core.errors import ConfigError
from dynamo.core.model import check_name
from dynamo.core.typed import did_you_mean
from dynamo.sdk.configuring import RawConfig, Taken, merged
from dynamo.sdk.spec import ServiceSpec


@frozen(kw_only=True)
class PlannedService:
    """One service with what the configuration says of it."""

    service: ServiceSpec
    namespace: str | None
    workers: int
    resources: Mapping[str, Any]
    options: Mapping[str, Any]
    """``Common`` and its own section together, as they were written."""
    taken: Taken

    @property
    def name(self) -> str:
        return self.service.name

    def check(self) -> None:
        """Raises ConfigError if the class cannot be made from the configuration."""
        self.taken.arguments(self.options)
        self.taken.configured(self.options)

    def make(self) -> Any:
        """An instance of the class, constructed and configured. Raises ConfigError, and what it raises."""
        configured = self.taken.configured(self.options)
        instance = self.service.cls(**self.taken.arguments(self.options))
        for one in self.service.configured:
            one.give(instance, configured[one.attribute])
        return instance


class ServiceGraph:
    """Services and all that they depend on. ``of`` collects them; iterating gives dependencies first."""

    def __init__(self, services: tuple[PlannedService, ...]) -> None:
        self.services = services

    @classmethod
    def of(cls, *services: type[Any], config: RawConfig | None = None) -> ServiceGraph:
        """Raises ConfigError: a cycle, two services of one name, annotations that cannot be resolved, unknown
        services and keys in ``config``. Whether the values suffice is ``check``'s to say.
        """
        specs: dict[str, ServiceSpec] = {}
        for one in services:
            _collect(one, specs, ())
        takers = {name: Taken(spec) for name, spec in specs.items()}
        options = merged(config, takers)
        return cls(tuple(_planned(spec, takers[name], options[name]) for name, spec in specs.items()))

    def check(self) -> None:
        """Raises ConfigError if a class cannot be made from the configuration."""
        for planned in self.services:
            planned.check()

    def __iter__(self) -> Iterator[PlannedService]:
        return iter(self.services)

    def __getitem__(self, name: str) -> PlannedService:
        """By name. Raises ConfigError, with what it might be, for one that is not there."""
        for planned in self.services:
            if planned.name == name:
                return planned
        known = (planned.name for planned in self.services)
        raise ConfigError(f"unknown service {name!r}; {did_you_mean(name, known)}")

    def of_class(self, cls: type[Any]) -> PlannedService:
        """The planned service of a class. Raises ConfigError if it is not part of the graph."""
        planned = self[ServiceSpec.of(cls).name]
        if planned.service.cls is not cls:
            raise ConfigError(f"{planned.name!r} is {_full(planned.service.cls)} here, not {_full(cls)}")
        return planned


def _collect(declared: type[Any], specs: dict[str, ServiceSpec], way: tuple[type[Any], ...]) -> None:
    if declared in way:
        circle = " -> ".join(one.__name__ for one in (*way[way.index(declared) :], declared))
        raise ConfigError(f"services depend on each other in a circle: {circle}; one of them must do without")
    spec = ServiceSpec.of(declared)
    if (known := specs.get(spec.name)) is None:
        spec.check()
        for needed in spec.dependencies:
            _collect(needed, specs, (*way, declared))
        known = specs.setdefault(spec.name, spec)
    if known.cls is not declared:
        raise ConfigError(
            f"two services are named {spec.name!r}: {_full(known.cls)} and {_full(declared)}; "
            "give one another name with @service(name=...)"
        )


def _full(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _planned(spec: ServiceSpec, taken: Taken, options: Mapping[str, Any]) -> PlannedService:
    mark = spec.mark
    namespace = taken.own(options, "namespace") if "namespace" in options else mark.namespace
    workers = taken.own(options, "workers") if "workers" in options else mark.workers
    if namespace is not None:
        check_name("namespace", namespace)
    if workers < 0:
        raise ConfigError(f"configuration of {spec.name}.workers: expected 0 or more, got {workers}")
    return PlannedService(
        service=spec,
        namespace=namespace,
        workers=workers,
        resources=taken.own(options, "resources") if "resources" in options else mark.resources,
        options=options,
        taken=taken,
    )
