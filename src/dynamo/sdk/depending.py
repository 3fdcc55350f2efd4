"""Class attributes that are filled in when a service is served: clients of other services, configuration."""

from __future__ import annotations

import importlib
import sys
from abc import abstractmethod
from typing import Any, TypeVar, overload

from dynamo.core.errors import ConfigError
from dynamo.core.model import shown
from dynamo.core.routing import Strategy
from dynamo.sdk.marks import title

T = TypeVar("T")


class _Given:
    """An attribute that lives in the instance once it was given; until then reading it says what to do."""

    attribute = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return self._missing(instance)

    @abstractmethod
    def _missing(self, instance: Any) -> Any:
        """What reading it gives, or raises, before it was given."""

    def give(self, instance: Any, value: Any) -> None:
        """Put ``value`` in its place, unless the instance's own ``__init__`` put something there."""
        try:
            instance.__dict__.setdefault(self.attribute, value)
        except AttributeError:
            raise ConfigError(
                f"{type(instance).__qualname__} has __slots__ and no place for {self.attribute!r}: "
                "let it have a __dict__ (attrs: slots=False)"
            ) from None


class Dependency(_Given):
    """What ``depends`` puts into the class."""

    def __init__(self, service: type[Any] | str, strategy: str | Strategy) -> None:
        self.service, self.strategy = service, strategy

    def target(self, owner: type) -> type[Any]:
        """The class. Raises ConfigError if it was given by name and is not there."""
        service = self.service
        if not isinstance(service, str):
            return service
        module, _, name = service.rpartition(":")
        where = f"{title(owner)}.{self.attribute}"
        try:
            found = getattr(
                importlib.import_module(module) if module else sys.modules[owner.__module__], name
            )
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{where}: depends({service!r}): {error}") from error
        if not isinstance(found, type):
            raise ConfigError(f"{where}: depends({service!r}) is {shown(found)}, not a class with @service")
        return found

    def _missing(self, instance: Any) -> Any:
        owner = title(type(instance))
        name = self.service if isinstance(self.service, str) else self.service.__name__
        raise ConfigError(
            f"{owner}.{self.attribute} calls the service {name}, which can be reached once {owner} is "
            f"served: from @on_start on, not in __init__. Without a runtime, as in a test, set it: "
            f"{owner.lower()}.{self.attribute} = {name.rpartition(':')[2]}()"
        )


class Configured(_Given):
    """What ``configured`` puts into the class."""

    def __init__(self, model: type[Any]) -> None:
        self.model = model

    def _missing(self, instance: Any) -> Any:
        try:
            made = self.model()
        except Exception as error:
            owner = title(type(instance))
            raise ConfigError(
                f"{owner}.{self.attribute} is built from the configuration when {owner} is served; without a "
                f"runtime set it, for {self.model.__name__}() alone fails: {error}"
            ) from error
        self.give(instance, made)
        return made


@overload
def depends(service: type[T], *, strategy: str | Strategy = "round_robin") -> T: ...
@overload
def depends(service: str, *, strategy: str | Strategy = "round_robin") -> Any: ...
def depends(service: Any, *, strategy: str | Strategy = "round_robin") -> Any:
    """A client of another service, as a class attribute: ``backend = depends(Backend)``.

    ``await self.backend.method(...)`` for coroutine methods, ``async for item in self.backend.method(...)``
    for those that yield; leaving the loop early cancels the worker. What cancels the current request, its
    deadline, metadata and trace go along. ``using`` gives options of calls, ``strategy`` picks the instances.

    ``"package.module:Name"`` instead of the class spares its import until it is served, and its type.
    Without a runtime, assign any object with the same methods to the attribute, such as a ``Backend()``.
    """
    if not isinstance(service, (type, str)):
        raise ConfigError(f"depends takes a class with @service or 'module:Name', not {shown(service)}")
    return Dependency(service, strategy)


def configured(model: type[T]) -> T:
    """The service's configuration as a class attribute: ``options = configured(Options)``.

    ``Options`` is an attrs class, a dataclass or a pydantic model; its fields become keys of the service.
    Without a runtime it is ``Options()``, or what is assigned.
    """
    if not isinstance(model, type):
        raise ConfigError(f"configured takes a class with fields, not {shown(model)}")
    made: Any = Configured(model)
    return made  # type: ignore[no-any-return]
