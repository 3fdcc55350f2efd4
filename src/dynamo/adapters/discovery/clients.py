"""What the clients of all backends have in common."""

from __future__ import annotations

from dynamo.core.errors import ClosedError, ConfigError
from dynamo.core.model import EndpointId, Instance
from dynamo.core.ports.discovery import Capability, Discovery, Identity


class OpenClient(Discovery):
    """One runtime's client of ``name``, until it is closed; its backend has no identity for anybody, unless
    it says so.
    """

    def __init__(self, capability: Capability, name: str) -> None:
        self._capability, self._name = capability, name
        self._closed = False

    @property
    def capability(self) -> Capability:
        return self._capability

    async def identity(self, endpoint_id: EndpointId) -> Identity | None:
        return None

    def close(self) -> None:
        """Take nothing new."""
        self._closed = True

    def check_open(self) -> None:
        """Raises ClosedError."""
        if self._closed:
            raise ClosedError(f"this client of {self._name} is closed")


def check_owner(instance: Instance, instance_id: int, incarnation: int) -> None:
    """Raise ConfigError for what does not belong to this lease."""
    if (instance.instance_id, instance.incarnation) != (instance_id, incarnation):
        raise ConfigError(f"{instance} does not belong to the lease of {instance_id:x}")
