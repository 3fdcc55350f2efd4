"""Addresses, which name a worker or a group of them and no server, and the subjects that they stand for."""

from __future__ import annotations

import re

from attrs import frozen

from dynamo.core.errors import ConfigError

SCHEME = "nats:///"
ALL = "dyn.>"  # subjects of workers
PROBE = "_._._"  # in place of an endpoint, for checks: nobody can serve one of this name
QUEUE = "dyn"  # of the workers of a group, one of which NATS chooses for each message
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_GROUP = re.compile(rf"{_NAME.pattern}\.{_NAME.pattern}\.({_NAME.pattern}|\*)")


@frozen
class Target:
    """What an address says: the worker ``name``, or any of those who share ``group``."""

    address: str
    name: str
    group: str

    def subject(self, endpoint: str) -> str:
        """What a caller of ``endpoint`` (ns.component.endpoint) publishes to. Raises ConfigError."""
        if not self.group:
            return subject(endpoint, self.name)
        if endpoint == PROBE:
            return f"dyn.{self.group.replace('*', '_')}"
        if endpoint != self.group and endpoint.rpartition(".")[0] != self.group.removesuffix(".*"):
            raise ConfigError(f"{self.address} is not an address of {endpoint}, but of {self.group}")
        return f"dyn.{endpoint}"


def parse(address: str) -> Target:
    """Read ``nats:///name``, ``nats:///ns.component.endpoint`` or ``nats:///ns.component.*``.

    Raises ConfigError.
    """
    rest = address.removeprefix(SCHEME)
    if address.startswith(SCHEME):
        if _NAME.fullmatch(rest):
            return Target(address, rest, "")
        if _GROUP.fullmatch(rest):
            return Target(address, "", rest)
    raise ConfigError(
        f"bad address {address!r}: expected nats:///name, a name of letters, digits, _ and -, or "
        "nats:///namespace.component.* for any worker of a component; the server is not part of it, "
        "NATS_SERVER says where that is"
    )


def subject(endpoint: str, name: str) -> str:
    """What one worker's callers publish to."""
    return f"dyn.{endpoint}.{name}"


def pattern(name: str) -> str:
    """What the worker subscribes to: all of its endpoints."""
    return f"dyn.*.*.*.{name}"
