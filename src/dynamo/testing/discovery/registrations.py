# ruff: noqa: N802 - tests are named after the invariant that they check
"""D7 to D9, D12, D13: what is registered is seen whole, belongs to one owner, and goes with it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import attrs
import pytest

from dynamo.core.errors import ConflictError
from dynamo.core.model import Phase
from dynamo.core.ports.discovery import Put, Removed
from dynamo.testing.discovery.clients import by_key, following, lease_for, live_now
from dynamo.testing.discovery.harness import (
    ENDPOINT,
    INCARNATION,
    OTHER,
    DiscoveryHarness,
    Power,
    an_instance,
)
from dynamo.testing.discovery.suite import Suite, needs


class Registrations(Suite):
    """D7 to D9, D12, D13: what is registered is seen whole, belongs to one owner, and goes with it."""

    # D7

    @needs()
    async def test_D7_what_was_put_arrives_whole_and_so_does_a_change(
        self, harness: DiscoveryHarness
    ) -> None:
        plain = an_instance(2**53 - 1, incarnation=2**64 - 1)
        tags = ["x", 1, 0.5, None, True]
        metadata = {"labels": {"zone": "a", "tags": tags}, "text": "Grüße\n", "big": 2**53}
        steps: list[dict[str, Any]] = [
            {"addresses": ("unix://boot/b", "tcp://127.0.0.1:1", "tcp://127.0.0.1:0")},
            {"phase": Phase.DRAINING},
            {"name": "worker-1"},
            {"idempotent": True},
            {"metadata": metadata},
        ]
        async with harness.client() as mine, harness.client() as theirs, following(mine) as follower:
            async with lease_for(theirs, plain) as lease:
                await lease.put(plain)
                await follower.until(lambda live: live == by_key(plain))
                for step in steps:
                    plain = attrs.evolve(plain, **step)
                    await lease.put(plain)
                    assert await follower.next() == Put(instance=plain)
                assert await live_now(mine) == by_key(plain)

    # D8

    @needs()
    async def test_D8_another_incarnation_is_removed_then_put(self, harness: DiscoveryHarness) -> None:
        old, new = an_instance(1), an_instance(1, incarnation=INCARNATION + 1)
        async with harness.client() as mine, harness.client() as theirs:
            async with AsyncExitStack() as stack:
                async with lease_for(theirs, old) as lease:
                    await lease.put(old)
                    follower = await stack.enter_async_context(following(mine))
                successor = await stack.enter_async_context(lease_for(theirs, new))
                await successor.put(new)
                await follower.until(lambda live: live == by_key(new))
                removed = Removed(endpoint_id=ENDPOINT, instance_id=1)
                assert follower.changes[1:] == [removed, Put(instance=new)]

    # D9

    @needs()
    async def test_D9_leaving_the_lease_removes_its_registrations(self, harness: DiscoveryHarness) -> None:
        one, other = an_instance(1), an_instance(1, OTHER)
        async with harness.client() as mine, harness.client() as theirs, following(mine) as follower:
            async with lease_for(theirs, one) as lease:
                await lease.put(one)
                await lease.put(other)
                await follower.until(lambda live: live == by_key(one, other))
            assert await live_now(mine) == {}
            await follower.until(lambda live: not live)
        assert await harness.leftovers() == []

    @needs()
    async def test_D9_remove_takes_one_and_an_absent_one_is_fine(self, harness: DiscoveryHarness) -> None:
        one, other = an_instance(1), an_instance(1, OTHER)
        async with harness.client() as client, lease_for(client, one) as lease:
            await lease.put(one)
            await lease.put(other)
            for _ in range(2):
                await lease.remove(ENDPOINT)
                assert await live_now(client) == by_key(other)

    # D12

    @needs()
    async def test_D12_another_live_owners_key_is_a_conflict(self, harness: DiscoveryHarness) -> None:
        one, rival = an_instance(1), an_instance(1, incarnation=INCARNATION + 1, name="rival")
        async with harness.client() as mine, harness.client() as theirs, lease_for(theirs, one) as lease:
            await lease.put(one)
            began = time.monotonic()
            with pytest.raises(ConflictError):
                async with lease_for(mine, rival) as second:
                    await second.put(rival)
            assert time.monotonic() - began < min(self.rival_wait_s, self.patience_s) * 1.25 + 1.0
            assert await live_now(mine) == by_key(one)

    @needs()
    async def test_D12_an_older_incarnations_end_is_waited_for(self, harness: DiscoveryHarness) -> None:
        old, new = an_instance(1), an_instance(1, incarnation=INCARNATION + 1)

        async with harness.client() as theirs, harness.client() as mine, AsyncExitStack() as stack:

            async def succeed() -> None:
                lease = await stack.enter_async_context(lease_for(mine, new))
                await lease.put(new)

            async with lease_for(theirs, old) as lease:
                await lease.put(old)
                successor = asyncio.create_task(succeed())
                done, _ = await asyncio.wait({successor}, timeout=self.rival_wait_s * 0.4)
                assert not done, "it did not wait"
            await successor
            assert await live_now(theirs) == by_key(new)

    # D13

    @needs(Power.DELETE)
    async def test_D13_a_key_deleted_by_hand_is_back_within_a_second(self, harness: DiscoveryHarness) -> None:
        one = an_instance(1)
        async with harness.client() as mine, harness.client() as theirs, lease_for(theirs, one) as lease:
            await lease.put(one)
            for _ in range(2):
                await harness.delete(one)
                began = time.monotonic()
                while await live_now(mine) != by_key(one):
                    assert time.monotonic() - began < 1.0, "not restored within a second"
                    await asyncio.sleep(0.01)
