# ruff: noqa: N802 - tests are named after the invariant that they check
"""D15, D16: trouble in the backend hides nothing else, and is told; the capability is as declared."""

from __future__ import annotations

import asyncio

from dynamo.core.health import Status
from dynamo.testing.discovery.clients import by_key, following, lease_for, live_now
from dynamo.testing.discovery.harness import (
    ENDPOINT,
    OTHER,
    DiscoveryHarness,
    Power,
    an_instance,
)
from dynamo.testing.discovery.suite import Suite, needs


class Backend(Suite):
    """D15, D16: trouble in the backend hides nothing else, and is told; the capability is as declared."""

    @needs(dynamic=False)
    async def test_capability_is_what_the_suite_was_told(self, harness: DiscoveryHarness) -> None:
        async with harness.client() as client:
            assert client.capability == self.capability

    # D15

    @needs(Power.CORRUPT)
    async def test_D15_an_unreadable_record_hides_no_other(self, harness: DiscoveryHarness) -> None:
        one, two = an_instance(1), an_instance(1, OTHER)
        async with harness.client() as client, lease_for(client, one) as lease:
            await lease.put(one)
            async with following(client) as follower:
                await harness.corrupt(ENDPOINT)
                await lease.put(two)
                await follower.until(lambda live: live == by_key(one, two))
            assert await live_now(client) == by_key(one, two)

    # D16

    @needs(dynamic=False)
    async def test_D16_check_says_up(self, harness: DiscoveryHarness) -> None:
        async with harness.client() as client:
            assert (await client.check()).status is Status.UP

    @needs(Power.OUTAGE, dynamic=False)
    async def test_D16_check_tells_an_outage_and_its_end(self, harness: DiscoveryHarness) -> None:
        async with harness.client() as client:
            await harness.outage(True)
            health = await client.check()
            assert health.status is not Status.UP
            assert health.detail
            await harness.outage(False)
            while (await client.check()).status is not Status.UP:
                await asyncio.sleep(0.05)
