# ruff: noqa: N802 - tests are named after the invariant that they check
"""D1 to D6: what a watch delivers, and what it leaves out."""

from __future__ import annotations

import pytest

from dynamo.core.errors import UnavailableError
from dynamo.core.model import Scope
from dynamo.core.ports.discovery import Put, Removed, Snapshot, Stale
from dynamo.testing.discovery.clients import Follower, by_key, declared, following, lease_for, live_now
from dynamo.testing.discovery.harness import (
    DECLARED,
    ENDPOINT,
    OTHER,
    SCOPE,
    DiscoveryHarness,
    Power,
    an_instance,
)
from dynamo.testing.discovery.suite import Suite, needs


class Watches(Suite):
    """D1 to D6: what a watch delivers, and what it leaves out."""

    # D1

    @needs(dynamic=False)
    async def test_D1_a_watch_starts_with_a_snapshot(self, harness: DiscoveryHarness) -> None:
        async with harness.client() as client, declared(client), client.watch(SCOPE) as watch:
            first = await watch.receive()
            assert isinstance(first, Snapshot)
            wanted = {(i.key, i.addresses) for i in DECLARED if SCOPE.covers(i.endpoint_id)}
            assert {(i.key, i.addresses) for i in first.instances} == wanted

    @needs()
    async def test_D1_the_first_snapshot_of_an_empty_scope_is_empty(self, harness: DiscoveryHarness) -> None:
        async with harness.client() as client, client.watch(SCOPE) as watch:
            assert await watch.receive() == Snapshot(instances=())

    @needs(Power.OUTAGE)
    async def test_D1_in_an_outage_stale_comes_first(self, harness: DiscoveryHarness) -> None:
        async with harness.client() as client:
            await harness.outage(True)
            async with client.watch(SCOPE) as watch:
                assert isinstance(await watch.receive(), Stale)
                await harness.outage(False)
                assert await watch.receive() == Snapshot(instances=())

    # D2

    @needs(Power.OUTAGE)
    async def test_D2_a_later_snapshot_lists_everything(self, harness: DiscoveryHarness) -> None:
        one, two = an_instance(1), an_instance(1, OTHER)
        async with harness.client() as client, lease_for(client, one) as lease:
            await lease.put(one)
            await lease.put(two)
            async with following(client) as follower:
                await harness.outage(True)
                assert isinstance(await follower.next(), Stale)
                await harness.outage(False)
                snapshot = await follower.snapshot()
                assert by_key(*snapshot.instances) == by_key(one, two)

    # D3

    @needs()
    async def test_D3_a_change_right_after_the_snapshot_is_seen(self, harness: DiscoveryHarness) -> None:
        one, two = an_instance(1), an_instance(2)
        async with harness.client() as mine, harness.client() as theirs:
            async with lease_for(theirs, one) as first, lease_for(theirs, two) as second:
                await first.put(one)
                async with following(mine) as follower:
                    await second.put(two)
                    await first.remove(ENDPOINT)
                    await follower.until(lambda live: live == by_key(two))

    @needs()
    async def test_D3_a_change_before_the_first_read_is_seen(self, harness: DiscoveryHarness) -> None:
        one = an_instance(1)
        async with harness.client() as mine, harness.client() as theirs, mine.watch(SCOPE) as watch:
            async with lease_for(theirs, one) as lease:
                await lease.put(one)
                follower = Follower(watch)
                await follower.until(lambda live: live == by_key(one))
                assert isinstance(follower.changes[0], Snapshot)

    # D4

    @needs()
    async def test_D4_a_slow_reader_gets_the_last_state_only(self, harness: DiscoveryHarness) -> None:
        last, marker = an_instance(1, metadata={"step": 99}), an_instance(1, OTHER)
        async with harness.client() as mine, harness.client() as theirs:
            async with following(mine) as follower, lease_for(theirs, last) as lease:
                for step in range(100):
                    await lease.put(an_instance(1, metadata={"step": step}))
                    if step % 2:
                        await lease.put(an_instance(1, marker.endpoint_id, metadata={"step": step}))
                    else:
                        await lease.remove(marker.endpoint_id)
                await lease.put(marker)
                await follower.until(lambda live: live == by_key(last, marker))
                assert len(follower.changes) < 30  # of 201: the feed may lag behind while we read

    @needs()
    async def test_D4_a_slow_reader_misses_no_removal(self, harness: DiscoveryHarness) -> None:
        one, two = an_instance(1), an_instance(2)
        async with harness.client() as mine, harness.client() as theirs:
            async with lease_for(theirs, one) as first, lease_for(theirs, two) as second:
                await first.put(one)
                async with following(mine) as follower:
                    await first.remove(ENDPOINT)
                    await second.put(two)
                    await second.remove(ENDPOINT)
                    await second.put(an_instance(2, OTHER))
                    await follower.until(lambda live: live == by_key(an_instance(2, OTHER)))

    # D5

    @needs(Power.OUTAGE)
    async def test_D5_an_outage_is_stale_and_its_end_a_snapshot(self, harness: DiscoveryHarness) -> None:
        one = an_instance(1)
        async with harness.client() as client, lease_for(client, one) as lease:
            await lease.put(one)
            async with following(client) as follower:
                for _ in range(2):
                    await harness.outage(True)
                    assert isinstance(await follower.next(), Stale)
                    assert follower.live == by_key(one)
                    await harness.outage(False)
                    assert await follower.next() == Snapshot(instances=(one,))
                assert await live_now(client) == by_key(one)

    @needs(Power.OUTAGE)
    async def test_D5_in_an_outage_a_lease_and_a_put_are_unavailable(self, harness: DiscoveryHarness) -> None:
        async with harness.client() as client, lease_for(client, an_instance(1)) as lease:
            await harness.outage(True)
            with pytest.raises(UnavailableError):
                await lease.put(an_instance(1))
            with pytest.raises(UnavailableError):
                async with lease_for(client, an_instance(2)) as second:
                    await second.put(an_instance(2))
            await harness.outage(False)

    # D6

    @needs(dynamic=False)
    async def test_D6_scopes_match_whole_names(self, harness: DiscoveryHarness) -> None:
        scopes = [
            Scope(),
            Scope(namespace="contract"),
            Scope(namespace="contract", component="worker"),
            Scope.of(ENDPOINT),
            Scope.of(OTHER),
            Scope(namespace="contract", name="generate"),
            Scope(component="worker"),
            Scope(namespace="contrac"),
            Scope(namespace="contract", component="work"),
        ]
        async with harness.client() as client, declared(client):
            for scope in scopes:
                found = await live_now(client, scope)
                assert found.keys() == {i.key for i in DECLARED if scope.covers(i.endpoint_id)}, str(scope)

    @needs()
    async def test_D6_changes_outside_the_scope_are_not_delivered(self, harness: DiscoveryHarness) -> None:
        marker = an_instance(9)
        async with harness.client() as client, following(client, Scope.of(ENDPOINT)) as follower:
            async with declared(client), lease_for(client, marker) as lease:
                await lease.put(marker)
                await follower.until(lambda live: marker.key in live)
            await follower.until(lambda live: not live)
            for change in follower.changes[1:]:
                assert isinstance(change, Put | Removed)
                changed = change.instance.endpoint_id if isinstance(change, Put) else change.endpoint_id
                assert changed == ENDPOINT
