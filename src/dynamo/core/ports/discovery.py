"""Who serves what, and until when.

Invariants, each with one test in ``dynamo.testing.discovery``:

D1  A watch starts with a ``Snapshot``; a ``Stale`` may come before it while the backend is away.
D2  A later ``Snapshot`` replaces everything before it.
D3  A change between the snapshot and the reader's next step is not lost.
D4  ``Put`` and ``Removed`` are per instance and conflated: a slow reader gets the last state, in bounded
    memory, and never misses a removal.
D5  A backend outage is ``Stale``: never an empty snapshot, never the end of the watch; the end of the outage
    is a ``Snapshot``.
D6  Scopes match whole names.
D7  What was put arrives whole: addresses in order, incarnation, phase, name, idempotence, metadata; a change
    of any field is a ``Put``.
D8  Another incarnation under a known id is ``Removed``, then ``Put`` (unless the old one was never seen).
D9  A registration lives as long as its lease: leaving the block removes it; ``remove`` removes one, and an
    absent one is fine.
D10 A dead owner's registrations vanish within the capability's ``ttl_s`` (liveness ``ttl``).
D11 ``lost`` returns when the backend dropped the lease, or when ``ttl_s`` passed unrenewed on our monotonic
    clock.
D12 Another live owner's key is a ``ConflictError``, after a wait of at most ``ttl_s`` for an older
    incarnation's lease.
D13 A key of ours that was deleted by hand is back within a second.
D14 A cancelled or ended watch, lease or wait leaves nothing behind: no task, descriptor, file or key.
D15 A record that cannot be read is passed over; the others are still seen.
D16 ``check`` never raises, and tells an outage.
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from attrs import frozen

from dynamo.core.health import Health
from dynamo.core.model import EndpointId, Instance, Scope


@frozen(kw_only=True)
class Snapshot:
    """All live instances of the scope."""

    instances: tuple[Instance, ...]


@frozen(kw_only=True)
class Put:
    instance: Instance


@frozen(kw_only=True)
class Removed:
    endpoint_id: EndpointId
    instance_id: int


@frozen(kw_only=True)
class Stale:
    """The backend is away; what was last seen stays in force."""

    reason: str


Change: TypeAlias = Snapshot | Put | Removed | Stale


class Liveness(enum.Enum):
    """Who ends the registration of a process that died."""

    TTL = "ttl"  # the backend, at most ``ttl_s`` after the last renewal
    EXTERNAL = "external"  # somebody else, such as the kubelet
    NONE = "none"  # nobody: addresses are declared, not discovered


@frozen(kw_only=True)
class Capability:
    """What the contract tests and the core may ask of an adapter."""

    scheme: str
    liveness: Liveness
    ttl_s: float  # seconds; ``inf`` where leases do not expire
    dynamic: bool  # membership changes at run time
    cross_process: bool
    cross_host: bool  # others may dial from other hosts: addresses must be reachable from there


@frozen(kw_only=True)
class Identity:
    """Who this process is, where the backend knows better than a random number.

    ``address`` is the request-plane URL to bind and to publish, where the backend declares it.
    """

    instance_id: int
    address: str | None = None


class Watch(Protocol):
    @abstractmethod
    async def receive(self) -> Change:
        """Wait for the next change. Never ends by itself; one reader at a time; cancelling loses nothing."""


class Lease(Protocol):
    @abstractmethod
    async def put(self, instance: Instance) -> None:
        """Create or replace the registration; on return every later snapshot has it.

        Raises ConflictError (another live owner), LeaseLostError, UnavailableError (backend away),
        ConfigError (static: not a declared address).
        """

    @abstractmethod
    async def remove(self, endpoint_id: EndpointId) -> None:
        """Remove this lease's registration of the endpoint; an absent one is fine.

        Raises UnavailableError.
        """

    @abstractmethod
    async def lost(self) -> str:
        """Wait until the lease is lost; return why, in one line. Never returns where leases do not expire."""


class Discovery(Protocol):
    @property
    @abstractmethod
    def capability(self) -> Capability: ...

    @abstractmethod
    async def identity(self, endpoint_id: EndpointId) -> Identity | None:
        """Who this process is by the backend's word, or None: the core then draws a random id.

        ``endpoint_id`` is what it serves first, for backends that declare who serves what.

        Raises ConfigError where the backend declares identities and this process can take none of them.
        """

    @abstractmethod
    def watch(self, scope: Scope) -> AbstractAsyncContextManager[Watch]:
        """Follow ``scope`` until the block ends. Entering never waits for the backend."""

    @abstractmethod
    def lease(self, *, instance_id: int, incarnation: int) -> AbstractAsyncContextManager[Lease]:
        """Hold a lease for the block, renewed inside; leaving removes what is registered under it, bounded.

        Entering waits for one answer of the backend. Raises UnavailableError, ConflictError.
        """

    @abstractmethod
    async def check(self) -> Health:
        """Probe the backend link, bounded; never raises."""
