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

# ruff: noqa: N802 - a test is named after its invariant

from __future__ import annotations

import asyncio
import enum
import functools
import os
import threading
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar, Protocol, TypeVar

import anyio
import attrs
import pytest
from attrs import frozen

from dynamo.core.errors import ConflictError, LeaseLostError, UnavailableError
from dynamo.core.health import Status
from dynamo.core.model import EndpointId, Instance, InstanceKey, Phase, Scope
from dynamo.core.ports.discovery import (
    Capability,
    Change,
    Discovery,
    Lease,
    Liveness,
    Put,
    Removed,
    Snapshot,
    Stale,
    Watch,
)
from dynamo.core.watching import apply

ENDPOINT = EndpointId(namespace="contract", component="worker", name="generate")
OTHER = EndpointId(namespace="contract", component="worker", name="generate-2")
SCOPE = Scope(namespace="contract")
INCARNATION = 0xC0FFEE


def an_instance(instance_id: int = 1, endpoint_id: EndpointId = ENDPOINT, **fields: Any) -> Instance:
    """An instance with an address of its own; ``fields`` win."""
    given: dict[str, Any] = {
        "incarnation": INCARNATION,
        "addresses": (f"tcp://127.0.0.1:{17000 + instance_id}",),
        **fields,
    }
    return Instance(endpoint_id=endpoint_id, instance_id=instance_id, **given)


DECLARED = (
    an_instance(1),
    an_instance(2),
    an_instance(3, OTHER),
    an_instance(4, EndpointId(namespace="contract", component="worker-2", name="generate")),
    an_instance(5, EndpointId(namespace="contract-2", component="worker", name="generate")),
)
"""What the backend of an adapter that is not ``dynamic`` must hold, incarnations aside."""


class Power(enum.Flag):
    """What a harness can do to its backend, besides making clients."""

    NONE = 0
    OUTAGE = enum.auto()
    EXPIRE = enum.auto()
    DELETE = enum.auto()
    CORRUPT = enum.auto()
    KILL = enum.auto()


class DiscoveryHarness(Protocol):
    """A backend for one test, empty at first (or holding ``DECLARED``), and power over it.

    Implement ``client``, ``leftovers`` and the powers that the suite claims.
    """

    @abstractmethod
    def client(self) -> AbstractAsyncContextManager[Discovery]:
        """A new client of the backend, as another process would have it."""

    @abstractmethod
    async def leftovers(self) -> list[str]:
        """Names of the records and leases in the backend; empty where nobody holds any."""

    async def outage(self, on: bool) -> None:
        """Cut the backend off from every client, keeping its state, or restore it."""
        raise NotImplementedError

    async def expire(self) -> None:
        """Make the backend drop every lease, as after a partition longer than the TTL."""
        raise NotImplementedError

    async def delete(self, instance: Instance) -> None:
        """Delete the registration by hand, behind its owner's back."""
        raise NotImplementedError

    async def corrupt(self, endpoint_id: EndpointId) -> None:
        """Put a record that cannot be read where instances of the endpoint are recorded."""
        raise NotImplementedError

    async def owner(self, instance: Instance) -> Callable[[], Awaitable[None]]:
        """Register ``instance`` from an owner elsewhere; what is returned kills it, like ``kill -9``."""
        raise NotImplementedError


@frozen(kw_only=True)
class _Needs:
    powers: Power
    dynamic: bool
    liveness: Liveness | None

    def met_by(self, capability: Capability, powers: Power) -> bool:
        return (
            self.powers in powers
            and (capability.dynamic or not self.dynamic)
            and self.liveness in (None, capability.liveness)
        )


T = TypeVar("T", bound=Callable[..., Awaitable[None]])


def needs(
    powers: Power = Power.NONE, *, dynamic: bool = True, liveness: Liveness | None = None
) -> Callable[[T], T]:
    """Say when a test applies, and bound it by the suite's ``patience_s``."""

    def mark(test: T) -> T:
        @functools.wraps(test)
        async def bounded(self: DiscoveryContract, *args: Any, **kwargs: Any) -> None:
            with anyio.fail_after(self.patience_s):
                await test(self, *args, **kwargs)

        bounded.needs = _Needs(powers=powers, dynamic=dynamic, liveness=liveness)  # type: ignore[attr-defined]
        return bounded  # type: ignore[return-value]

    return mark


class Follower:
    """Reads a watch and folds it: ``live`` is the state, ``changes`` is what came."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.live: dict[InstanceKey, Instance] = {}
        self.changes: list[Change] = []

    async def next(self) -> Change:
        change = await self.watch.receive()
        self.changes.append(change)
        apply(self.live, change)
        return change

    async def until(self, condition: Callable[[dict[InstanceKey, Instance]], bool]) -> None:
        while not condition(self.live):
            await self.next()

    async def snapshot(self) -> Snapshot:
        while not isinstance(change := await self.next(), Snapshot):
            pass
        return change


@asynccontextmanager
async def following(client: Discovery, scope: Scope = SCOPE) -> AsyncIterator[Follower]:
    """A watch that has delivered its first snapshot."""
    async with client.watch(scope) as watch:
        follower = Follower(watch)
        await follower.snapshot()
        yield follower


async def live_now(client: Discovery, scope: Scope = SCOPE) -> dict[InstanceKey, Instance]:
    """What a new watch begins with."""
    async with following(client, scope) as follower:
        return follower.live


def lease_for(client: Discovery, instance: Instance) -> AbstractAsyncContextManager[Lease]:
    """A lease under the instance's own id and incarnation."""
    return client.lease(instance_id=instance.instance_id, incarnation=instance.incarnation)


def by_key(*instances: Instance) -> dict[InstanceKey, Instance]:
    """The state that these instances make."""
    return {instance.key: instance for instance in instances}


@asynccontextmanager
async def declared(client: Discovery) -> AsyncIterator[None]:
    """``DECLARED`` is in the backend: put there, or there from the start."""
    async with AsyncExitStack() as stack:
        if client.capability.dynamic:
            for instance in DECLARED:
                lease = await stack.enter_async_context(lease_for(client, instance))
                await lease.put(instance)
        yield


def descriptors() -> set[str]:
    """Open descriptors of this process, by what they point to; empty where the system does not tell."""
    found: set[str] = set()
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:  # the one that listed them
            pass
    return found


def threads() -> set[str]:
    """Running threads, those of asyncio's and anyio's pools aside: these live as long as their loop."""
    pools = ("asyncio_", "AnyIO worker")
    return {f"{t.name} {t.ident}" for t in threading.enumerate() if not t.name.startswith(pools)}


async def settles(nothing_left: Callable[[], object]) -> None:
    """Wait until what ``nothing_left`` returns is empty, at most two seconds."""
    deadline = time.monotonic() + 2.0
    while rest := nothing_left():
        assert time.monotonic() < deadline, f"left behind: {rest}"
        await asyncio.sleep(0.01)


class DiscoveryContract:
    """All of the port's invariants. ``capability`` must be what the adapter says of itself."""

    capability: ClassVar[Capability]
    powers: ClassVar[Power] = Power.NONE
    patience_s: ClassVar[float] = 20.0
    """How long one test may take, the waits for a TTL included."""

    pytestmark = pytest.mark.anyio

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "capability"):
            for name, test in vars(DiscoveryContract).items():
                if isinstance(needed := getattr(test, "needs", None), _Needs):
                    applies = needed.met_by(cls.capability, cls.powers)
                    if not applies or getattr(cls, name) is None:  # pytest collects no attribute that is None
                        setattr(cls, name, test if applies else None)

    @pytest.fixture
    def harness(self) -> DiscoveryHarness:
        raise NotImplementedError("override the fixture `harness`")

    @needs(dynamic=False)
    async def test_capability_is_what_the_suite_was_told(self, harness: DiscoveryHarness) -> None:
        async with harness.client() as client:
            assert client.capability == self.capability

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
            assert time.monotonic() - began < min(self.capability.ttl_s, self.patience_s) * 1.25 + 1.0
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
                done, _ = await asyncio.wait({successor}, timeout=self.capability.ttl_s * 0.4)
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
                with anyio.move_on_after(self.capability.ttl_s * 0.3):
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
