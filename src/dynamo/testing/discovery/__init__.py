"""The Discovery contract: subclass it, say what the adapter can do, override one fixture.

::

    class TestAcmeDiscovery(DiscoveryContract):
        capability = acme.CAPABILITY
        powers = Power.OUTAGE | Power.KILL

        @pytest.fixture
        def harness(self, tmp_path):
            return AcmeHarness(tmp_path)

Tests carry the number of the invariant in ``dynamo.core.ports.discovery`` that they check. A test that needs
more than ``capability`` and ``powers`` give is not collected at all, so nothing is ever skipped. Choose a TTL
of 0.5 to 2 s: several tests wait for it to pass. The suite runs on asyncio, through anyio's pytest plugin.
"""

from __future__ import annotations

from dynamo.testing.discovery.backend import Backend
from dynamo.testing.discovery.clients import Follower, by_key, declared, following, lease_for, live_now
from dynamo.testing.discovery.ends import Ends
from dynamo.testing.discovery.harness import (
    DECLARED,
    ENDPOINT,
    INCARNATION,
    OTHER,
    SCOPE,
    DiscoveryHarness,
    Power,
    an_instance,
)
from dynamo.testing.discovery.leases import Leases
from dynamo.testing.discovery.leftovers import descriptors, settles, threads
from dynamo.testing.discovery.registrations import Registrations
from dynamo.testing.discovery.suite import needs
from dynamo.testing.discovery.watches import Watches

__all__ = [
    "DECLARED",
    "ENDPOINT",
    "INCARNATION",
    "OTHER",
    "SCOPE",
    "DiscoveryContract",
    "DiscoveryHarness",
    "Follower",
    "Power",
    "an_instance",
    "by_key",
    "declared",
    "descriptors",
    "following",
    "lease_for",
    "live_now",
    "needs",
    "settles",
    "threads",
]


class DiscoveryContract(Watches, Registrations, Leases, Ends, Backend):
    """All of the port's invariants. ``capability`` must be what the adapter says of itself."""
