"""What happens to etcd, or to the way there, and that registrations and watches come out right."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from dynamo.adapters.discovery.etcd import EtcdDiscovery, open_etcd
from dynamo.adapters.discovery.etcd.cluster import Cluster
from dynamo.adapters.discovery.etcd.feed import SETTLE_S
from dynamo.adapters.discovery.etcd.keys import key_of
from dynamo.core.codec import encode_instance
from dynamo.core.config import Settings
from dynamo.core.errors import DynamoError
from dynamo.core.health import Status
from dynamo.core.model import Instance
from dynamo.core.ports.discovery import Removed, Snapshot, Stale
from dynamo.testing.discovery import ENDPOINT, OTHER, Follower, an_instance, by_key, following, lease_for
from dynamo.testing.discovery_owner import OwnerProcess
from dynamo.testing.proxy import FaultProxy
from etcd_server import EtcdCluster, EtcdServer, shared

pytestmark = pytest.mark.anyio

BOUND_S = 15.0
ONE, TWO = an_instance(1), an_instance(2)


def settings(**options: Any) -> Settings:
    return Settings.from_env({}, etcd_lease_ttl=2, connect_timeout_s=1.0, **options)


@asynccontextmanager
async def client_at(hostport: str, **options: Any) -> AsyncIterator[EtcdDiscovery]:
    async with open_etcd(f"etcd://{hostport}", settings(**options)) as client:
        yield client


@asynccontextmanager
async def held(client: EtcdDiscovery, *instances: Instance) -> AsyncIterator[list[str]]:
    """Registrations as core holds them: a lost lease is taken again. What is given lists the losses."""
    losses: list[str] = []

    async def hold() -> None:
        while True:
            try:
                async with lease_for(client, instances[0]) as lease:
                    for instance in instances:
                        await lease.put(instance)
                    registered.set()
                    losses.append(await lease.lost())
            except DynamoError:
                await asyncio.sleep(0.1)

    registered = asyncio.Event()
    holding = asyncio.create_task(hold())
    try:
        await registered.wait()
        yield losses
    finally:
        holding.cancel()
        await asyncio.wait((holding,))


async def seen(follower: Follower, *instances: Instance) -> None:
    async with asyncio.timeout(BOUND_S):
        await follower.until(lambda live: live == by_key(*instances))


async def only_seen(follower: Follower, *instances: Instance, during_s: float) -> None:
    """For so long, nothing else is."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(during_s):
            while True:
                await follower.next()
                assert follower.live == by_key(*instances), follower.changes


@pytest.fixture
def server() -> Iterator[EtcdServer]:
    """One to be mistreated."""
    with EtcdServer() as server:
        yield server


@pytest.fixture
def lasting() -> EtcdServer:
    """One that survives the test."""
    server = shared()
    server.empty()
    return server


# Restarts


async def test_a_short_restart_loses_nothing_and_no_lease(server: EtcdServer) -> None:
    async with (
        client_at(server.hostport) as client,
        held(client, ONE) as losses,
        following(client) as follower,
    ):
        server.kill()
        assert isinstance(await follower.next(), Stale)
        assert (await client.check()).status is Status.DOWN
        server.start()
        await follower.snapshot()
        await only_seen(follower, ONE, during_s=2.1)
        assert losses == []


async def test_an_outage_longer_than_the_ttl_ends_with_the_same_instances(server: EtcdServer) -> None:
    async with (
        client_at(server.hostport) as client,
        held(client, ONE) as losses,
        following(client) as follower,
    ):
        server.kill()
        while not losses:
            await asyncio.sleep(0.01)
        assert "unrenewed" in losses[0]
        server.start()
        await follower.snapshot()
        await only_seen(follower, ONE, during_s=1.0)
        kept = server.range(key_of(ENDPOINT, 1)).kvs[0]
        assert kept.lease in server.leases()


async def test_a_lost_disk_is_noticed_though_its_revisions_overtook_ours(server: EtcdServer) -> None:
    """The keys of the dead go, those of the living come back, and the watch hears what follows."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(client_at(server.hostport))
        await stack.enter_async_context(held(client, ONE))
        dead = await OwnerProcess.start(f"etcd://{server.hostport}?ttl_s=60", TWO)
        stack.push_async_callback(dead.kill)
        follower = await stack.enter_async_context(following(client))
        assert follower.live == by_key(ONE, TWO)
        await dead.kill()
        server.kill()
        server.lose_disk()
        server.start()
        for number in range(20):
            server.put("/elsewhere", b"%d" % number)
        await seen(follower, ONE)
        another = an_instance(3)
        async with held(client, another):
            await seen(follower, ONE, another)


async def test_a_restored_backup_is_followed(server: EtcdServer) -> None:
    async with client_at(server.hostport) as client, held(client, ONE), following(client) as follower:
        server.backup()
        async with held(client, TWO):
            await seen(follower, ONE, TWO)
        for number in range(20):
            server.put("/elsewhere", b"%d" % number)
        server.kill()
        server.restore()
        server.start()
        await seen(follower, ONE)
        async with held(client, TWO):
            await seen(follower, ONE, TWO)


def put(server: EtcdServer, *instances: Instance) -> None:
    for instance in instances:
        server.put(key_of(instance.endpoint_id, instance.instance_id).decode(), encode_instance(instance))


@pytest.mark.parametrize("crashed", [True, False])
async def test_a_deletion_that_the_store_forgot_is_taken_back(server: EtcdServer, crashed: bool) -> None:
    """Though its revisions overtook ours; an etcd 3.5.1 that is alone answers before it writes."""
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        client_at(proxy.address) as client,
        following(client) as follower,
    ):
        put(server, TWO, ONE)
        await seen(follower, ONE, TWO)
        (server.remember if crashed else server.backup)()
        server.delete(key_of(ENDPOINT, 2))
        await seen(follower, ONE)
        proxy.refuse()
        proxy.reset()
        server.kill()
        (server.forget if crashed else server.restore)()
        server.start()
        server.put("/elsewhere", b"at the revision of the deletion")
        proxy.heal()
        await seen(follower, ONE, TWO)


async def test_several_deletions_forgotten_in_a_crash_are_taken_back(server: EtcdServer) -> None:
    """Though the last one was repeated meanwhile."""
    three = an_instance(3)
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        client_at(proxy.address) as client,
        following(client) as follower,
    ):
        put(server, TWO, three, ONE)
        await seen(follower, ONE, TWO, three)
        server.remember()
        server.delete(key_of(ENDPOINT, 2))
        server.delete(key_of(ENDPOINT, 3))
        await seen(follower, ONE)
        proxy.refuse()
        proxy.reset()
        server.kill()
        server.forget()
        server.start()
        server.delete(key_of(ENDPOINT, 3))
        server.put("/elsewhere", b"at the revision of the last deletion")
        proxy.heal()
        await seen(follower, ONE, TWO)


async def test_a_store_that_forgets_between_the_look_at_it_and_the_watch(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it crashed, its history was still ours; the watch begins in the next one."""
    asked, crashed = threading.Event(), threading.Event()
    ask = Cluster.txn

    async def ask_and_wait(cluster: Cluster, *operations: Any) -> Any:
        answer = await ask(cluster, *operations)
        asked.set()
        assert await asyncio.to_thread(crashed.wait, BOUND_S)
        return answer

    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        client_at(proxy.address) as client,
        following(client) as follower,
    ):
        put(server, TWO, ONE)
        await seen(follower, ONE, TWO)
        server.remember()
        server.delete(key_of(ENDPOINT, 2))
        await seen(follower, ONE)
        monkeypatch.setattr(Cluster, "txn", ask_and_wait)
        proxy.reset()
        assert await asyncio.to_thread(asked.wait, BOUND_S)
        server.kill()
        server.forget()
        server.start()
        server.put("/elsewhere", b"at the revision of the deletion")
        crashed.set()
        await seen(follower, ONE, TWO)


async def test_a_registration_that_the_store_forgot_is_back_before_watches_miss_it(
    server: EtcdServer,
) -> None:
    """Its lease was kept, so nothing but the key tells."""

    async def back() -> None:
        while [kv.value for kv in server.range().kvs] != [encode_instance(ONE)]:
            await asyncio.sleep(0.01)

    async with client_at(server.hostport) as client, lease_for(client, ONE) as lease:
        server.remember()
        await lease.put(ONE)
        async with following(client) as follower:
            put(server, an_instance(1, name="by hand"))
            await back()  # so it looks after its key
            server.kill()
            server.forget()
            server.start()
            began = time.monotonic()
            await back()
            assert time.monotonic() - began < SETTLE_S - 0.5
            await follower.snapshot()
            assert follower.live == by_key(ONE)


async def test_a_frozen_server_is_an_outage(server: EtcdServer) -> None:
    async with client_at(server.hostport) as client, following(client) as follower, held(client, ONE):
        await seen(follower, ONE)  # the stream runs
        server.pause()
        began = time.monotonic()
        assert isinstance(await follower.next(), Stale)
        assert time.monotonic() - began < 4
        assert (await client.check()).status is Status.DOWN
        server.resume()
        await follower.snapshot()
        await seen(follower, ONE)


# The way there


async def test_a_watch_cut_off_while_the_store_is_compacted(lasting: EtcdServer) -> None:
    async with FaultProxy("127.0.0.1", lasting.port) as proxy, AsyncExitStack() as stack:
        theirs = await stack.enter_async_context(client_at(lasting.hostport))
        await stack.enter_async_context(held(theirs, ONE))
        mine = await stack.enter_async_context(client_at(proxy.address))
        async with following(mine) as follower, held(theirs, TWO):
            await seen(follower, ONE, TWO)
            proxy.refuse()
            proxy.reset()
            assert isinstance(await follower.next(), Stale)
            async with held(theirs, an_instance(3)):
                pass
            three = an_instance(3, name="again")
            async with held(theirs, three):
                lasting.compact()
                proxy.heal()
                await seen(follower, ONE, TWO, three)


async def test_a_black_hole_is_stale_soon_and_a_change_in_it_is_seen_after(lasting: EtcdServer) -> None:
    async with FaultProxy("127.0.0.1", lasting.port) as proxy, AsyncExitStack() as stack:
        theirs = await stack.enter_async_context(client_at(lasting.hostport))
        mine = await stack.enter_async_context(client_at(proxy.address))
        follower = await stack.enter_async_context(following(mine))
        async with held(theirs, TWO):
            await seen(follower, TWO)  # the stream runs
        await seen(follower)
        proxy.black_hole()
        await stack.enter_async_context(held(theirs, ONE))
        async with asyncio.timeout(4):
            assert isinstance(await follower.next(), Stale)
        proxy.heal()
        await seen(follower, ONE)


async def test_cuts_lose_no_event(lasting: EtcdServer) -> None:
    """Many breaks, with changes before, in and after each: the last state is always reached."""
    async with FaultProxy("127.0.0.1", lasting.port) as proxy, AsyncExitStack() as stack:
        theirs = await stack.enter_async_context(client_at(lasting.hostport))
        lease = await stack.enter_async_context(lease_for(theirs, ONE))
        mine = await stack.enter_async_context(client_at(proxy.address))
        follower = await stack.enter_async_context(following(mine))
        for number in range(15):
            await lease.put(an_instance(1, name=f"before-{number}"))
            proxy.reset()
            await lease.put(an_instance(1, OTHER, name=f"in-{number}"))
            if number % 3 == 0:
                await lease.remove(OTHER)
            last = an_instance(1, name=f"after-{number}")
            await lease.put(last)
            expected = (last,) if number % 3 == 0 else (last, an_instance(1, OTHER, name=f"in-{number}"))
            await seen(follower, *expected)


# Leases


async def test_a_revoked_lease_and_deleted_keys_come_back(lasting: EtcdServer) -> None:
    both = (ONE, an_instance(1, OTHER))

    async def back() -> None:
        async with asyncio.timeout(1):
            while lasting.range().count < 2:
                await asyncio.sleep(0.01)

    async with client_at(lasting.hostport) as client, held(client, *both) as losses:
        async with following(client) as follower:
            lasting.delete(b"/services/", b"/services0")
            await back()
            assert losses == []
            lasting.revoke_all()
            while not losses:
                await asyncio.sleep(0.01)
            await back()
            await seen(follower, *both)


async def test_the_first_lease_has_the_instance_id(lasting: EtcdServer) -> None:
    async with client_at(lasting.hostport) as client, lease_for(client, ONE) as lease:
        await lease.put(ONE)
        assert lasting.leases() == [1]
        kv = lasting.range(b"/services/contract/worker/generate-1").kvs[0]
        assert kv.lease == 1
        async with lease_for(client, ONE) as another:  # its own old lease is still there
            await another.put(ONE)
            assert lasting.range(key_of(ENDPOINT, 1)).kvs[0].lease not in (0, 1)


async def test_a_lost_lease_is_not_revoked(lasting: EtcdServer) -> None:
    """What it still holds is listed without a gap until the next lease has taken it over."""
    kept = an_instance(1, OTHER)
    usurper = an_instance(1, incarnation=ONE.incarnation + 1)
    async with client_at(lasting.hostport) as client:
        async with lease_for(client, ONE) as lease:
            await lease.put(ONE)
            await lease.put(kept)
            lasting.grant(99)
            lasting.put(key_of(ENDPOINT, 1).decode(), encode_instance(usurper), 99)
            async with asyncio.timeout(BOUND_S):
                assert "belongs to" in await lease.lost()
        assert sorted(lasting.leases()) == [1, 99]
        async with following(client) as follower:
            assert follower.live == by_key(usurper, kept)
            async with lease_for(client, kept) as another:
                await another.put(kept)
                taken = lasting.range(key_of(OTHER, 1)).kvs[0].lease
                assert taken not in (0, 1, 99)
                lasting.revoke(99)  # a later change, so that all before it has been seen
                await seen(follower, kept)
        gone = [c for c in follower.changes if isinstance(c, Removed)]
        assert kept.key not in [(c.endpoint_id, c.instance_id) for c in gone]
        assert taken not in lasting.leases()  # one that was not lost is given back


@pytest.mark.blocks_loop
async def test_a_blocked_loop_keeps_its_lease(lasting: EtcdServer) -> None:
    async with client_at(lasting.hostport) as client, held(client, ONE) as losses:
        time.sleep(2.8)  # etcd ends an unrenewed one within the TTL and half a second
        assert lasting.range(key_of(ENDPOINT, 1)).count == 1
        await asyncio.sleep(0.1)
        assert losses == []


async def test_a_loop_that_stalls_for_too_long_loses_its_lease(lasting: EtcdServer) -> None:
    """It serves nobody. Another loop's client, on the same thread, goes on."""
    stall = threading.Event()

    async def stalled() -> None:
        async with client_at(lasting.hostport, loop_stall_s=1.0) as client, lease_for(client, ONE) as lease:
            await lease.put(ONE)
            stall.wait(BOUND_S)
            async with asyncio.timeout(1):
                reasons.append(await lease.lost())

    reasons: list[str] = []
    async with client_at(lasting.hostport) as client, held(client, TWO) as losses:
        thread = threading.Thread(target=asyncio.run, args=(stalled(),))
        thread.start()
        try:
            async with following(client) as follower:
                await seen(follower, ONE, TWO)
                await seen(follower, TWO)
        finally:
            stall.set()
            await asyncio.to_thread(thread.join, BOUND_S)
        assert "DYN_LOOP_STALL_S" in reasons[0]
        assert losses == []


async def test_a_stopped_owner_is_removed_and_registers_again_when_it_goes_on(lasting: EtcdServer) -> None:
    owner = await OwnerProcess.start(f"etcd://{lasting.hostport}?ttl_s=2", ONE)
    try:
        async with client_at(lasting.hostport) as client, following(client) as follower:
            assert follower.live == by_key(ONE)
            owner.pause()
            began = time.monotonic()
            await seen(follower)
            assert time.monotonic() - began < 4
            owner.resume()
            began = time.monotonic()
            await seen(follower, ONE)
            assert time.monotonic() - began < 2
    finally:
        await owner.kill()


# A cluster


async def test_members_may_leave_one_after_the_other() -> None:
    """The leader dies, then comes back, for each member: no lease is lost, and changes are followed."""
    with EtcdCluster() as cluster:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                open_etcd(cluster.url, Settings.from_env({}, etcd_lease_ttl=6, connect_timeout_s=2.0))
            )
            losses = await stack.enter_async_context(held(client, ONE))
            follower = await stack.enter_async_context(following(client))
            for number in (2, 3):
                leader = await asyncio.to_thread(cluster.leader)
                leader.kill()
                async with held(client, an_instance(number)):
                    await seen(follower, ONE, an_instance(number))
                leader.launch()
                await asyncio.to_thread(leader.wait)
                await seen(follower, ONE)
            assert losses == []
            assert all(ONE.key in by_key(*c.instances) for c in follower.changes if isinstance(c, Snapshot))


async def test_a_member_without_a_quorum_says_so_and_is_right_later() -> None:
    with EtcdCluster() as cluster:
        alone, *rest = cluster.members
        async with client_at(alone.hostport) as client, following(client) as follower:
            for member in rest:
                member.kill()
            async with asyncio.timeout(BOUND_S):
                assert isinstance(await follower.next(), Stale)
            assert (await client.check()).status is Status.DOWN
            for member in rest:
                member.launch()
            async with held(client, ONE):
                await seen(follower, ONE)
