"""The Discovery contract on ``mem``, the adapter that it is written against."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator

import anyio
import pytest

from contract.mem_harness import CAPABILITY, MemHarness, mem_harness
from dynamo.adapters.discovery.mem import open_mem
from dynamo.core.config import Settings
from dynamo.core.errors import ClosedError, ConfigError, UnavailableError
from dynamo.core.health import Status
from dynamo.testing.discovery import (
    SCOPE,
    DiscoveryContract,
    Power,
    an_instance,
    by_key,
    following,
    lease_for,
    live_now,
)

pytestmark = pytest.mark.anyio


class TestMemDiscovery(DiscoveryContract):
    capability = CAPABILITY
    powers = Power.OUTAGE | Power.EXPIRE | Power.DELETE | Power.CORRUPT | Power.KILL

    @pytest.fixture
    async def harness(self) -> AsyncIterator[MemHarness]:
        async with mem_harness() as harness:
            yield harness


async def test_a_name_is_shared_and_goes_with_its_last_client() -> None:
    one = an_instance(1)
    async with open_mem("mem://", Settings()) as first, open_mem("mem://default", Settings()) as second:
        async with open_mem("mem://other", Settings()) as other, lease_for(first, one) as lease:
            await lease.put(one)
            assert await live_now(second) == by_key(one)
            assert await live_now(other) == {}
            first.store.outage(True)
            with pytest.raises(UnavailableError, match="mem://default is away"):
                await lease.put(one)
    async with open_mem("mem://", Settings()) as later:
        assert (await later.check()).status is Status.UP
        assert later.store is not first.store


async def test_a_closed_client_refuses() -> None:
    async with open_mem("mem://x", Settings()) as client:
        async with lease_for(client, an_instance(1)) as lease:
            pass
        with pytest.raises(ClosedError):
            await lease.put(an_instance(1))
    with pytest.raises(ClosedError):
        async with client.watch(SCOPE):
            pass
    with pytest.raises(ClosedError):
        async with lease_for(client, an_instance(1)):
            pass


async def test_what_other_backends_could_not_carry_fails_here_too() -> None:
    async with open_mem("mem://x", Settings()) as client, lease_for(client, an_instance(1)) as lease:
        with pytest.raises(ConfigError):
            await lease.put(an_instance(1, metadata={"device": object()}))
        with pytest.raises(ConfigError, match="does not belong to the lease of 1"):
            await lease.put(an_instance(2))


async def test_runtimes_on_loops_of_other_threads_see_each_other() -> None:
    one, two = an_instance(1), an_instance(2)
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def elsewhere() -> None:
        async with open_mem("mem://threads", Settings()) as client, following(client) as follower:
            async with lease_for(client, two) as lease:
                await lease.put(two)
                await follower.until(lambda live: live == by_key(one, two))
                loop.call_soon_threadsafe(seen.set)
                await follower.until(lambda live: live == by_key(two))

    async with open_mem("mem://threads", Settings()) as client, following(client) as follower:
        other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
        async with asyncio.timeout(10):
            async with lease_for(client, one) as lease:
                await follower.until(lambda live: live == by_key(two))
                await lease.put(one)
                await seen.wait()
            await follower.until(lambda live: not live)
            await other


@pytest.mark.blocks_loop
async def test_a_loop_that_was_blocked_for_longer_than_the_ttl_buries_nobody_on_it() -> None:
    one = an_instance(1)
    async with (
        open_mem("mem://b?ttl_s=0.2", Settings()) as mine,
        open_mem("mem://b?ttl_s=0.2", Settings()) as theirs,
    ):
        async with lease_for(mine, one) as lease, following(theirs) as follower:
            await lease.put(one)
            await follower.until(lambda live: live == by_key(one))
            time.sleep(1)  # blocks the loop, which is what this is about
            with anyio.move_on_after(0.3):
                pytest.fail(f"unexpected: {await follower.next()}")


@pytest.mark.parametrize(
    "url, says",
    [
        ("mem://a/b", "expected mem://name"),
        ("mem://a.b", "bad mem store name 'a.b'"),
        ("mem://a?ttl_s=soon", "ttl_s=soon: expected 0.1 to 86400 seconds"),
        ("mem://a?ttl_s=0", "ttl_s=0: expected 0.1 to 86400 seconds"),
        ("mem://a?ttl=1", "unknown option 'ttl'; known: ttl_s"),
    ],
)
def test_a_bad_url_is_refused_before_it_is_opened(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        open_mem(url, Settings())
