"""What an adapter brings to the suite: a harness over its backend, and the instances that tests register."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Discovery

ENDPOINT = EndpointId(namespace="contract", component="worker", name="generate")
OTHER = EndpointId(namespace="contract", component="worker", name="generate-2")
SCOPE = Scope(namespace="contract")
INCARNATION = 0xC0FFEE


def an_instance(instance_id: int = 1, endpoint_id: EndpointId = ENDPOINT, **fields: Any) -> Instance:
    """An instance with an address of its own; ``fields`` win."""
    given: dict[str, Any] = {
        "incarnation": INCARNATION,
        "addresses": (f"tcp://127.0.0.1:{17000 + instance_id}",),
        **fields,
    }
    return Instance(endpoint_id=endpoint_id, instance_id=instance_id, **given)


DECLARED = (
    an_instance(1),
    an_instance(2),
    an_instance(3, OTHER),
    an_instance(4, EndpointId(namespace="contract", component="worker-2", name="generate")),
    an_instance(5, EndpointId(namespace="contract-2", component="worker", name="generate")),
)
"""What the backend of an adapter that is not ``dynamic`` must hold, incarnations aside."""


class Power(enum.Flag):
    """What a harness can do to its backend, besides making clients."""

    NONE = 0
    OUTAGE = enum.auto()
    EXPIRE = enum.auto()
    DELETE = enum.auto()
    CORRUPT = enum.auto()
    KILL = enum.auto()


def _missing(power: Power) -> NotImplementedError:
    return NotImplementedError(f"the suite claims {power}: let its harness do that")


class DiscoveryHarness(ABC):
    """A backend for one test, empty at first (or holding ``DECLARED``), and power over it.

    Implement ``client``, ``leftovers`` and the powers that the suite claims.
    """

    @abstractmethod
    def client(self) -> AbstractAsyncContextManager[Discovery]:
        """A new client of the backend, as another process would have it."""

    @abstractmethod
    async def leftovers(self) -> list[str]:
        """Names of the records and leases in the backend; empty where nobody holds any."""

    async def outage(self, on: bool) -> None:
        """Cut the backend off from every client, keeping its state, or restore it."""
        raise _missing(Power.OUTAGE)

    async def expire(self) -> None:
        """Make the backend drop every lease, as after a partition longer than the TTL."""
        raise _missing(Power.EXPIRE)

    async def delete(self, instance: Instance) -> None:
        """Delete the registration by hand, behind its owner's back."""
        raise _missing(Power.DELETE)

    async def corrupt(self, endpoint_id: EndpointId) -> None:
        """Put a record that cannot be read where instances of the endpoint are recorded."""
        raise _missing(Power.CORRUPT)

    async def owner(self, instance: Instance) -> Callable[[], Awaitable[None]]:
        """Register ``instance`` from an owner elsewhere; what is returned kills it, like ``kill -9``."""
        raise _missing(Power.KILL)
