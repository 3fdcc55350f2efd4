"""The words of the domain as values: names, endpoints, instances, scopes. Nothing here does I/O."""

from __future__ import annotations

import enum
import re
import reprlib
import secrets
from collections.abc import Mapping
from typing import Any, TypeAlias

from attrs import Factory, field, frozen

from dynamo.core.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,127}")
MAX_INSTANCE_ID = (
    2**53 - 1
)  # the largest integer that JSON readers in JavaScript keep exact (RFC 8259, section 6)

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 80


def shown(value: object) -> str:
    """``value`` for a message: its repr, cut to a line."""
    return _brief.repr(value)


def check_name(kind: str, name: object) -> str:
    """Return ``name``, or raise ConfigError that shows it: names become keys, paths and subjects."""
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise ConfigError(
            f"bad {kind} name {shown(name)}: 1 to 128 of A-Z a-z 0-9 _ -, not beginning with '-'"
        )
    return name


def random_instance_id() -> int:
    """1 to 2^53-1; 0 is left for 'any'."""
    return secrets.randbelow(MAX_INSTANCE_ID) + 1


def random_incarnation() -> int:
    """1 to 2^64-1; 0 is left for 'any'."""
    return secrets.randbits(64) or 1


@frozen(kw_only=True, order=True)
class EndpointId:
    """One function of a component, ``ns.component.endpoint``."""

    namespace: str = field()
    component: str = field()
    name: str = field()

    def __attrs_post_init__(self) -> None:
        check_name("namespace", self.namespace)
        check_name("component", self.component)
        check_name("endpoint", self.name)

    @classmethod
    def parse(cls, path: str) -> EndpointId:
        """Read ``ns.component.endpoint``, with or without ``dyn://``. Raises ConfigError."""
        parts = path.removeprefix("dyn://").split(".") if isinstance(path, str) else []
        if len(parts) != 3:
            raise ConfigError(
                f"bad endpoint path {shown(path)}: expected 'namespace.component.endpoint' or "
                "'dyn://namespace.component.endpoint'"
            )
        return cls(namespace=parts[0], component=parts[1], name=parts[2])

    def __str__(self) -> str:
        return f"{self.namespace}.{self.component}.{self.name}"


class Phase(enum.Enum):
    READY = "ready"
    DRAINING = "draining"  # finishes what it has; route nothing new there


@frozen(kw_only=True)
class Transport:
    """One address in the shape that Dynamo's users read it."""

    kind: str
    address: str


@frozen(kw_only=True)
class Instance:
    """One live runtime serving one endpoint, as discovery records it.

    ``addresses`` are URLs, preferred first. ``metadata`` is small and static: labels, codec, device, facts
    for routing; its keys are the instance's properties. Values are JSON values. ``started`` is when it began
    to be served, in seconds since 1970 by its own host's clock: for people, never to be compared.
    """

    endpoint_id: EndpointId
    instance_id: int
    incarnation: int
    addresses: tuple[str, ...]
    phase: Phase = Phase.READY
    name: str | None = None
    idempotent: bool = False
    metadata: Mapping[str, Any] = Factory(dict)
    started: int | None = None

    @property
    def key(self) -> InstanceKey:
        return (self.endpoint_id, self.instance_id)

    @property
    def namespace(self) -> str:
        return self.endpoint_id.namespace

    @property
    def component(self) -> str:
        return self.endpoint_id.component

    @property
    def endpoint(self) -> str:
        """The endpoint's own name, without namespace and component."""
        return self.endpoint_id.name

    @property
    def device_type(self) -> str | None:
        """``metadata["device_type"]`` where the worker gave it, else None."""
        value = self.metadata.get("device_type")
        return None if value is None else str(value)

    @property
    def status_url(self) -> str | None:
        """``metadata["status_url"]``: where its process tells its status, if it has a status server."""
        value = self.metadata.get("status_url")
        return value if isinstance(value, str) else None

    @property
    def transport(self) -> Transport:
        """The preferred address."""
        address = self.addresses[0] if self.addresses else ""
        scheme, separator, _ = address.partition("://")
        return Transport(kind=scheme if separator else "", address=address)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.component}/{self.endpoint}/{self.instance_id}"


InstanceKey: TypeAlias = tuple[EndpointId, int]


@frozen(kw_only=True)
class Scope:
    """What a watch covers: whole names only, ``None`` matches any, so ``gen`` never sees ``gen-2``."""

    namespace: str | None = None
    component: str | None = None
    name: str | None = None

    @classmethod
    def of(cls, endpoint: EndpointId) -> Scope:
        return cls(namespace=endpoint.namespace, component=endpoint.component, name=endpoint.name)

    def covers(self, endpoint: EndpointId) -> bool:
        return (
            self.namespace in (None, endpoint.namespace)
            and self.component in (None, endpoint.component)
            and self.name in (None, endpoint.name)
        )

    def __str__(self) -> str:
        return ".".join(part or "*" for part in (self.namespace, self.component, self.name))
