# ruff: noqa: N802 - tests are named after the invariant that they check
"""D14: what is cancelled or closed leaves nothing behind."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from dynamo.core.ports.discovery import Discovery
from dynamo.testing.discovery.clients import by_key, declared, following, lease_for, live_now
from dynamo.testing.discovery.harness import (
    INCARNATION,
    DiscoveryHarness,
    an_instance,
)
from dynamo.testing.discovery.leftovers import descriptors, settles, threads
from dynamo.testing.discovery.suite import Suite, needs


class Ends(Suite):
    """D14: what is cancelled or closed leaves nothing behind."""

    # D14

    @needs(dynamic=False)
    async def test_D14_a_cancelled_watch_leaves_no_task(self, harness: DiscoveryHarness) -> None:
        async with harness.client() as client:
            before = asyncio.all_tasks()
            for steps in range(12):
                reader = asyncio.create_task(self._read_for_ever(client))
                for _ in range(steps):
                    await asyncio.sleep(0)
                reader.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reader
            await settles(lambda: asyncio.all_tasks() - before)
            async with declared(client):
                assert await live_now(client)

    @staticmethod
    async def _read_for_ever(client: Discovery) -> None:
        async with following(client) as follower:
            while True:
                await follower.next()

    @needs()
    async def test_D14_a_lease_cancelled_at_any_step_leaves_no_task_and_no_key(
        self, harness: DiscoveryHarness
    ) -> None:
        one = an_instance(1)

        async def hold() -> None:
            async with lease_for(client, one) as lease:
                await lease.put(one)
                await lease.lost()

        async with harness.client() as client:
            before = asyncio.all_tasks()
            for steps in range(24):
                holder = asyncio.create_task(hold())
                for _ in range(steps):
                    await asyncio.sleep(0 if steps < 16 else 0.002)
                holder.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await holder
                await settles(lambda: asyncio.all_tasks() - before)
                assert await live_now(client) == {}
        assert await harness.leftovers() == []

    @needs()
    async def test_D14_a_cancelled_wait_for_another_incarnation_leaves_nothing(
        self, harness: DiscoveryHarness
    ) -> None:
        one, rival = an_instance(1), an_instance(1, incarnation=INCARNATION + 1)
        async with harness.client() as mine, harness.client() as theirs:
            async with lease_for(theirs, one) as lease:
                await lease.put(one)
                before = asyncio.all_tasks()
                with anyio.move_on_after(self.rival_wait_s * 0.3):
                    async with lease_for(mine, rival) as second:
                        await second.put(rival)
                        raise AssertionError("it did not wait")
                await settles(lambda: asyncio.all_tasks() - before)
                assert await live_now(mine) == by_key(one)
            assert await live_now(mine) == {}
        assert await harness.leftovers() == []

    @needs(dynamic=False)
    async def test_D14_a_closed_client_leaves_no_thread_and_no_descriptor(
        self, harness: DiscoveryHarness
    ) -> None:
        async def use() -> None:
            async with harness.client() as client, declared(client):
                assert await live_now(client)

        await use()  # what a library opens once and keeps is no leak
        open_before, threads_before = descriptors(), threads()
        for _ in range(3):
            await use()
        await settles(lambda: threads() - threads_before)
        await settles(lambda: len(descriptors()) > len(open_before) and descriptors() - open_before)
