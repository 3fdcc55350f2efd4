"""Adapters by URL scheme. Ours and third parties' enter by the same door: an entry point
``dynamo.<port>: <scheme> = package.module:open_x``, loaded when first used.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlsplit

from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, MissingExtraError
from dynamo.core.model import shown
from dynamo.core.ports.discovery import Discovery
from dynamo.core.ports.request_plane import RequestPlane
from dynamo.core.ports.telemetry import Telemetry

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

    from dynamo.core.distributed import DistributedRuntime

P = TypeVar("P")
F = TypeVar("F")
Factory: TypeAlias = Callable[[str, Settings], AbstractAsyncContextManager[P]]
"""``open_x(url, settings)``: no I/O before the result is entered; the URL's options win over the settings."""


def _entry_points(group: str) -> EntryPoints:
    from importlib.metadata import entry_points  # a tenth of the time that importing the whole core takes

    return entry_points(group=group)


class Factories(Generic[F]):
    """What is known by name under one group. ``variable`` names what chose it, for messages."""

    def __init__(self, group: str, variable: str) -> None:
        self._group, self._variable = group, variable
        self._factories: dict[str, F] = {}

    def register(self, scheme: str, factory: F) -> None:
        """For tests and embedding; installed packages declare an entry point instead."""
        if scheme in self._factories:
            raise ConfigError(f"{self._group}: scheme {scheme!r} is already registered")
        self._factories[scheme] = factory

    def unregister(self, scheme: str) -> None:
        """Undo ``register``."""
        self._factories.pop(scheme, None)

    def schemes(self) -> list[str]:
        """What is known here, installed or not."""
        return sorted({point.name for point in _entry_points(self._group)} | self._factories.keys())

    def factory(self, scheme: str, settings: Settings | None = None) -> F:
        """Load it; ``settings`` know what chose it. Raises ConfigError, MissingExtraError."""
        if (known := self._factories.get(scheme)) is not None:
            return known
        variable = self._variable if settings is None else settings.source_of(self._variable)
        found = {point.value: point for point in _entry_points(self._group).select(name=scheme)}
        if len(found) > 1:
            raise ConfigError(
                f"{self._group}: {scheme!r} is claimed by {' and '.join(sorted(found))}; remove one"
            )
        if not found:
            known_names = self.schemes()
            close = difflib.get_close_matches(scheme, known_names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            port = self._group.partition(".")[2].replace("_", " ")
            raise ConfigError(
                f"{variable}: unknown {port} {scheme!r}; {hint}known: {', '.join(known_names) or 'none'}"
            )
        (point,) = found.values()
        distribution = point.dist.name if point.dist else point.module
        try:
            factory: F = point.load()
        except Exception as error:  # whatever the adapter's module, or what it imports, raises
            missing = (error.name if isinstance(error, ModuleNotFoundError) else None) or point.module
            if missing.partition(".")[0] == point.module.partition(".")[0]:
                raise ConfigError(
                    f"{variable}: {scheme!r} does not load: {type(error).__name__}: {error}; "
                    f"install {distribution!r} again, or repair {point.value!r}"
                ) from error
            raise MissingExtraError(
                f"{variable}: {scheme!r} needs the package {missing!r}: "
                f"pip install '{distribution}[{self._extra(point)}]'"
            ) from error
        self._factories[scheme] = factory
        return factory

    def _extra(self, point: EntryPoint) -> str:
        """What brings the packages of this adapter: the extra of its scheme, or of another name of it."""
        extras = (point.dist.metadata.get_all("Provides-Extra") if point.dist else None) or ()
        others = (one.name for one in _entry_points(self._group) if one.value == point.value)
        return next((name for name in (point.name, *others) if name in extras), point.name)


class Registry(Factories[Factory[P]]):
    """The adapters of one port."""

    def open(self, url: str, settings: Settings) -> AbstractAsyncContextManager[P]:
        """Resolve ``scheme://...``, or a bare scheme, without I/O; entering the result connects.

        Raises ConfigError (unknown or ambiguous scheme, an adapter that does not load), MissingExtraError
        (the adapter's package is not installed).
        """
        scheme, separator, _ = url.partition("://")
        return self.factory(scheme, settings)(url if separator else f"{scheme}://", settings)


discovery: Registry[Discovery] = Registry("dynamo.discovery", "DYN_DISCOVERY_BACKEND")
request_plane: Registry[RequestPlane] = Registry("dynamo.request_plane", "DYN_REQUEST_PLANE")
telemetry: Registry[Telemetry] = Registry("dynamo.telemetry", "DYN_TELEMETRY")

StatusServer: TypeAlias = "Callable[[DistributedRuntime], AbstractAsyncContextManager[str]]"
"""Entering it serves the runtime's status and gives the URL, http://host:port. Raises ConflictError."""

status_server: Factories[StatusServer] = Factories("dynamo.system_status", "DYN_SYSTEM_PORT")
metrics: Factories[Callable[..., Any]] = Factories("dynamo.metrics", "endpoint.metrics")
"""``make(kind, name, help, labels, buckets)``: a counter, gauge or histogram that a program keeps itself."""


def url_options(url: str, known: tuple[str, ...]) -> dict[str, str]:
    """The query of an adapter's URL.

    Raises ConfigError for an option that it does not know, one given twice, and what is no URL.
    """
    options: dict[str, str] = {}
    try:
        given = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    except ValueError as error:
        raise ConfigError(f"bad URL {shown(url)}: {error}") from error
    for name, value in given:
        if name not in known:
            raise ConfigError(f"{url}: unknown option {name!r}; known: {', '.join(known) or 'none'}")
        if name in options:
            raise ConfigError(f"{url}: option {name!r} given twice")
        options[name] = value
    return options
