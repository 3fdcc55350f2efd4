# ruff: noqa: N802 - tests are named after the invariant that they check
"""D10, D11: how long a registration lives."""

from __future__ import annotations

import time

import anyio
import attrs
import pytest

from dynamo.core.errors import LeaseLostError
from dynamo.core.ports.discovery import Liveness, Put
from dynamo.testing.discovery.clients import by_key, following, lease_for, live_now
from dynamo.testing.discovery.harness import (
    INCARNATION,
    DiscoveryHarness,
    Power,
    an_instance,
)
from dynamo.testing.discovery.suite import Suite, needs


class Leases(Suite):
    """D10, D11: how long a registration lives."""

    # D10

    @needs(Power.KILL, liveness=Liveness.TTL)
    async def test_D10_a_dead_owners_registrations_vanish(self, harness: DiscoveryHarness) -> None:
        one = an_instance(1)
        async with harness.client() as client, following(client) as follower:
            kill = await harness.owner(one)
            await follower.until(lambda live: live == by_key(one))
            await kill()
            began = time.monotonic()
            await follower.until(lambda live: not live)
            assert time.monotonic() - began < self.capability.ttl_s * 1.25 + 1.0
            assert await live_now(client) == {}
            async with lease_for(client, attrs.evolve(one, incarnation=INCARNATION + 1)) as lease:
                await lease.put(attrs.evolve(one, incarnation=INCARNATION + 1))
        assert await harness.leftovers() == []

    # D11

    @needs(liveness=Liveness.TTL)
    async def test_D11_a_renewed_lease_is_kept(self, harness: DiscoveryHarness) -> None:
        one = an_instance(1)
        async with harness.client() as mine, harness.client() as theirs, following(mine) as follower:
            async with lease_for(theirs, one) as lease:
                await lease.put(one)
                with anyio.move_on_after(self.capability.ttl_s * 1.5):
                    raise AssertionError(f"lost: {await lease.lost()}")
                with anyio.move_on_after(0):
                    while True:
                        await follower.next()
                assert follower.changes[1:] in ([], [Put(instance=one)])
                assert await live_now(mine) == by_key(one)

    @needs(Power.EXPIRE)
    async def test_D11_a_lease_that_the_backend_dropped_is_lost(self, harness: DiscoveryHarness) -> None:
        one = an_instance(1)
        async with harness.client() as client:
            async with lease_for(client, one) as lease:
                await lease.put(one)
                await harness.expire()
                assert await lease.lost()
                with pytest.raises(LeaseLostError):
                    await lease.put(one)
                async with lease_for(client, one) as following_lease:
                    await following_lease.put(one)
                    assert await live_now(client) == by_key(one)

    @needs(Power.OUTAGE, liveness=Liveness.TTL)
    async def test_D11_a_lease_unrenewed_for_its_ttl_is_lost(self, harness: DiscoveryHarness) -> None:
        one = an_instance(1)
        async with harness.client() as client:
            async with lease_for(client, one) as lease:
                await lease.put(one)
                began = time.monotonic()
                await harness.outage(True)
                assert await lease.lost()
                assert time.monotonic() - began < self.capability.ttl_s * 1.25 + 1.0
                await harness.outage(False)
                with pytest.raises(LeaseLostError):
                    await lease.put(one)
            async with lease_for(client, one) as lease:
                await lease.put(one)
                assert await live_now(client) == by_key(one)
