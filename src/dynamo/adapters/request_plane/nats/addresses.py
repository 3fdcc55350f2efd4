"""Addresses, which name a worker and no server, and the subjects that they stand for."""

from __future__ import annotations

import re

from dynamo.core.errors import ConfigError

SCHEME = "nats:///"
PROBE = "_._._"  # in place of an endpoint, for checks: nobody can serve one of this name
_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")


def parse(address: str) -> str:
    """The name in ``nats:///name``. Raises ConfigError."""
    name = address.removeprefix(SCHEME)
    if address.startswith(SCHEME) and _NAME.fullmatch(name):
        return name
    raise ConfigError(
        f"bad address {address!r}: expected nats:///name, a name of letters, digits, _ and -; "
        "the server is not part of it, NATS_SERVER says where that is"
    )


def subject(endpoint: str, name: str) -> str:
    """What a caller of ``endpoint`` (ns.component.endpoint) publishes to."""
    return f"dyn.{endpoint}.{name}"


def pattern(name: str) -> str:
    """What the worker subscribes to: all of its endpoints."""
    return f"dyn.*.*.*.{name}"
