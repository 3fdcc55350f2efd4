"""The shared watch of an endpoint: what it shows, how it is waited for, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import async_solipsism
import attrs
import pytest

from dynamo.adapters.discovery.mem import MemDiscovery, MemStore
from dynamo.core.errors import ClosedError, DeadlineError, UnavailableError
from dynamo.core.health import Health
from dynamo.core.membership import REWATCH_LIMIT_S, Membership, Memberships
from dynamo.core.model import EndpointId, Phase, Scope
from dynamo.core.ports.discovery import Change, Put, Removed, Snapshot, Stale, Watch
from dynamo.core.ports.telemetry import NO_LABELS, EndpointTelemetry, Side, Telemetry
from dynamo.core.watching import ConflatingWatch
from unit.calling import BOUND_S, ENDPOINT, World, deployed, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def followed(world: World, **options: Any) -> AsyncIterator[Membership]:
    membership = Membership(ENDPOINT, world.discovery, **options)
    membership.retain()
    try:
        await membership.wait_for(lambda membership: membership.synced, BOUND_S)
        yield membership
    finally:
        await membership.aclose()


async def test_instances_come_change_drain_and_go() -> None:
    async with deployed() as world, followed(world) as membership:
        worker = await world.worker()
        await membership.wait_for(lambda membership: membership.ready() == [worker.instance], BOUND_S)
        await worker.update(metadata={"device_type": "cpu"})
        await membership.wait_for(lambda membership: membership.ready() == [worker.instance], BOUND_S)
        await worker.update(phase=Phase.DRAINING)
        await membership.wait_for(lambda membership: not membership.ready(), BOUND_S)
        assert membership.instances() == [worker.instance]
        assert membership.peers.ready == []
        await worker.leave()
        await membership.wait_for(lambda membership: not membership.instances(), BOUND_S)


async def test_other_endpoints_are_not_seen() -> None:
    async with deployed() as world:
        await world.worker(endpoint_id=EndpointId(namespace="demo", component="backend", name="generate-2"))
        async with followed(world) as membership:
            assert membership.instances() == []


async def test_the_version_grows_with_every_change() -> None:
    async with deployed() as world, followed(world) as membership:
        versions = [membership.version]
        worker = await world.worker()
        await membership.wait_for(lambda membership: bool(membership.ready()), BOUND_S)
        versions.append(membership.version)
        membership.peers.set_aside(membership.peers.by_id[worker.id])
        versions.append(membership.version)
        assert versions == sorted(set(versions))


async def test_an_outage_is_told_and_the_table_stays_in_force() -> None:
    async with deployed() as world, followed(world) as membership:
        worker = await world.worker()
        await membership.wait_for(lambda membership: bool(membership.ready()), BOUND_S)
        world.store.outage(True)
        await membership.wait_for(lambda membership: membership.stale is not None, BOUND_S)
        assert membership.ready() == [worker.instance]
        assert "away now" in membership.describe()
        world.store.outage(False)
        await membership.wait_for(lambda membership: membership.stale is None, BOUND_S)
        assert membership.ready() == [worker.instance]


async def test_a_resync_keeps_what_is_known_of_those_that_stayed() -> None:
    async with deployed() as world, followed(world) as membership:
        worker = await world.worker()
        await membership.wait_for(lambda membership: bool(membership.ready()), BOUND_S)
        peer = membership.peers.by_id[worker.id]
        membership.peers.begin(peer)
        peer.failures = 2
        membership.apply(Snapshot(instances=(worker.instance,)))
        assert membership.peers.by_id[worker.id] is peer
        assert (peer.in_flight, peer.failures) == (1, 2)


async def test_listeners_hear_every_change_until_they_unsubscribe() -> None:
    async with deployed() as world, followed(world) as membership:
        heard: list[int] = []
        unsubscribe = membership.subscribe(lambda: heard.append(len(membership.ready())))
        await world.worker()
        await membership.wait_for(lambda membership: bool(membership.ready()), BOUND_S)
        assert heard == [1]
        unsubscribe()
        await world.worker()
        await membership.wait_for(lambda membership: len(membership.ready()) == 2, BOUND_S)
        assert heard == [1]


async def test_a_listener_may_unsubscribe_when_it_is_called() -> None:
    async with deployed() as world, followed(world) as membership:
        heard: list[str] = []

        def once() -> None:
            heard.append("one")
            unsubscribe()

        unsubscribe = membership.subscribe(once)
        membership.subscribe(lambda: heard.append("other"))
        for _ in range(2):
            membership.apply(Snapshot(instances=()))
        assert heard == ["one", "other", "other"]


async def test_waiting_in_vain_says_what_discovery_lists() -> None:
    async with deployed() as world, followed(world) as membership:
        with pytest.raises(
            DeadlineError, match=r"demo.backend.generate.*0\.02 s.*discovery 'mem' lists none"
        ):
            await membership.wait_for(lambda membership: bool(membership.ready()), 0.02)
        assert not membership.waiters


async def test_a_cancelled_wait_leaves_nothing() -> None:
    async with deployed() as world, followed(world) as membership:
        waiting = asyncio.create_task(membership.wait_for(lambda membership: bool(membership.ready())))
        await until(lambda: membership.waiters)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not membership.waiters


async def test_closing_wakes_who_waits() -> None:
    async with deployed() as world, followed(world) as membership:
        waiting = asyncio.create_task(membership.wait_for(lambda membership: bool(membership.ready())))
        await until(lambda: membership.waiters)
        await membership.aclose()
        with pytest.raises(ClosedError, match="runtime ended"):
            await waiting
        with pytest.raises(ClosedError):
            membership.retain()


async def test_the_watch_runs_while_somebody_uses_it_and_only_once() -> None:
    async with deployed() as world:
        await world.worker()
        membership = Membership(ENDPOINT, world.discovery)
        before = asyncio.all_tasks()
        membership.retain()
        membership.retain()
        assert len(asyncio.all_tasks() - before) == 1
        await membership.wait_for(lambda membership: bool(membership.ready()), BOUND_S)
        membership.release()
        assert len(asyncio.all_tasks() - before) == 1
        membership.release()
        assert membership.instances() == []
        assert not membership.synced
        await until(lambda: asyncio.all_tasks() == before)
        await world.worker()
        membership.retain()
        await membership.wait_for(lambda membership: len(membership.ready()) == 2, BOUND_S)
        await membership.aclose()
        assert asyncio.all_tasks() == before


@pytest.mark.parametrize("leave", ["release", "aclose"])
async def test_who_asks_after_those_put_aside_ends_with_the_watch(
    monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    monkeypatch.setattr("dynamo.core.availability.FIRST_BACKOFF_S", 0.002)
    asked = asyncio.Event()

    async def probe() -> Health:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
        raise AssertionError

    async with deployed() as world:
        worker = await world.worker()
        membership = Membership(ENDPOINT, world.discovery)
        before = asyncio.all_tasks()
        membership.retain()
        await membership.wait_for(lambda membership: bool(membership.ready()), BOUND_S)
        membership.availability.failed(membership.peers.by_id[worker.id], 0, probe)
        await asyncio.wait_for(asked.wait(), BOUND_S)
        if leave == "release":
            membership.release()
            await until(lambda: asyncio.all_tasks() == before)
        else:
            await membership.aclose()
            assert asyncio.all_tasks() == before


async def test_a_watch_that_has_ended_is_let_go() -> None:
    async with deployed() as world:
        membership = Membership(ENDPOINT, world.discovery)
        before = asyncio.all_tasks()
        membership.retain()
        (watching,) = (weakref.ref(task) for task in asyncio.all_tasks() - before)
        membership.release()
        await until(lambda: asyncio.all_tasks() == before)
        gc.collect()
        assert watching() is None


async def test_clients_of_one_endpoint_share_a_membership() -> None:
    async with deployed() as world:
        memberships = Memberships(world.discovery)
        first = memberships.of(ENDPOINT)
        assert memberships.of(EndpointId.parse("dyn://demo.backend.generate")) is first
        assert memberships.of(EndpointId.parse("demo.backend.other")) is not first
        del first
        gc.collect()
        assert not memberships._known


async def test_one_endpoint_on_its_last_known_state_is_enough_to_be_stale() -> None:
    async with deployed() as world:
        memberships = Memberships(world.discovery)
        fresh, stale = memberships.of(ENDPOINT), memberships.of(EndpointId.parse("demo.backend.other"))
        for membership in (fresh, stale):
            membership.apply(Snapshot(instances=()))
        assert memberships.stale is None
        stale.apply(Stale(reason="away"))
        assert memberships.stale == "away"


class Silent(MemDiscovery):
    """Nobody but its reader holds its watch, as where no backend feeds it."""

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        watch = ConflatingWatch()
        watch.reset(())
        yield watch


async def test_a_watch_whose_client_was_dropped_runs_until_the_end() -> None:
    async with deployed() as world:
        memberships = Memberships(Silent(world.store, 10.0))
        before = asyncio.all_tasks()
        membership = memberships.of(ENDPOINT)
        membership.retain()
        await membership.wait_for(lambda membership: membership.synced, BOUND_S)
        del membership
        gc.collect()
        assert len(asyncio.all_tasks() - before) == 1  # or the loop would complain of a destroyed task
        await memberships.aclose()
        assert asyncio.all_tasks() == before


class FailingOnce(MemDiscovery):
    """Its first watch raises, as no watch may."""

    failures = 1
    error: Exception = UnavailableError("no backend at mem://x")

    def watch(self, scope: Scope) -> Any:
        if self.failures:
            self.failures -= 1
            raise self.error
        return super().watch(scope)


async def test_a_watch_that_raises_is_an_outage_and_begun_again(caplog: pytest.LogCaptureFixture) -> None:
    async with deployed() as world:
        worker = await world.worker()
        discovery = FailingOnce(world.store, 10.0)
        membership = Membership(ENDPOINT, discovery)
        membership.retain()
        assert membership.describe() == "discovery 'mem' has not answered yet"
        await membership.wait_for(lambda membership: membership.stale is not None, BOUND_S)
        assert "has not answered yet (UnavailableError: no backend at mem://x)" in membership.describe()
        await membership.wait_for(lambda membership: membership.ready() == [worker.instance], BOUND_S)
        assert membership.stale is None
        assert "watching demo.backend.generate failed, trying again" in caplog.text
        await membership.aclose()


class Breaking(Watch):
    """Breaks after its first answer."""

    def __init__(self) -> None:
        self.answers: list[Change] = [Snapshot(instances=())]

    async def receive(self) -> Change:
        if not self.answers:
            raise UnavailableError("no backend at mem://x")
        return self.answers.pop()


class FailingOften(MemDiscovery):
    """The tenth watch gives one answer, the others none."""

    def __init__(self) -> None:
        super().__init__(MemStore(name="failing"), 10.0)
        self.asked_at: list[float] = []

    @asynccontextmanager
    async def watch(self, scope: Scope) -> AsyncIterator[Watch]:
        self.asked_at.append(asyncio.get_running_loop().time())
        if len(self.asked_at) != 10:
            raise UnavailableError("no backend at mem://x")
        yield Breaking()


def test_a_backend_that_fails_again_and_again_is_asked_less_often_until_it_answers() -> None:
    discovery = FailingOften()

    async def follow() -> None:
        membership = Membership(ENDPOINT, discovery)
        membership.retain()
        await asyncio.sleep(60)
        await membership.aclose()

    with asyncio.Runner(loop_factory=async_solipsism.EventLoop) as virtual_time:
        virtual_time.run(follow())
    waits = [after - before for before, after in itertools.pairwise(discovery.asked_at)]
    assert max(waits) <= REWATCH_LIMIT_S
    assert waits[0] <= 0.2 < REWATCH_LIMIT_S / 2 <= waits[8]
    assert waits[9] <= 0.2  # after the answer


async def test_who_drains_and_who_was_put_aside_is_said() -> None:
    async with deployed() as world, followed(world) as membership:
        workers = [await world.worker() for _ in range(3)]
        await membership.wait_for(lambda membership: len(membership.ready()) == 3, BOUND_S)
        assert membership.describe() == "discovery 'mem' lists 3"
        membership.apply(Put(instance=attrs.evolve(workers[0].instance, phase=Phase.DRAINING)))
        membership.peers.set_aside(membership.peers.by_id[workers[1].id])
        assert membership.describe() == "discovery 'mem' lists 2, 1 draining, 1 put aside after failures"


async def test_others_names_what_else_is_registered_the_most_similar_first() -> None:
    async with deployed() as world, followed(world) as membership:
        await world.worker()
        assert await membership.others() == "nothing else is registered there"
        await world.worker(endpoint_id=EndpointId.parse("demo.backend.generte"))
        await world.worker(endpoint_id=EndpointId.parse("demo.backend.generte"))
        assert await membership.others() == "registered there: demo.backend.generte (2)"
        await world.worker(endpoint_id=EndpointId.parse("other.thing.at_all"))
        assert await membership.others() == "registered there: demo.backend.generte (2) and 1 more"


async def test_others_names_the_first_few_where_none_is_similar() -> None:
    async with deployed() as world, followed(world) as membership:
        for number in range(6, 0, -1):
            await world.worker(endpoint_id=EndpointId.parse(f"other.thing.{number}"))
        listed = ", ".join(f"other.thing.{number} (1)" for number in range(1, 6))
        assert await membership.others() == f"registered there: {listed} and 1 more"


async def test_others_waits_for_a_backend_that_comes_back_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo.core.membership.LISTING_TIMEOUT_S", BOUND_S)
    async with deployed() as world, followed(world) as membership:
        world.store.outage(True)
        looking = asyncio.create_task(membership.others())
        for _ in range(3):
            await asyncio.sleep(0)  # its task begins, its watch is opened, it is told of the outage
        world.store.outage(False)
        assert await looking == "nothing else is registered there"


async def test_others_gives_up_on_a_backend_that_is_away() -> None:
    async with deployed() as world, followed(world) as membership:
        world.store.outage(True)
        assert "could not be read" in await membership.others()


async def test_looking_for_others_can_be_cancelled_and_ends_with_the_runtime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamo.core.membership.LISTING_TIMEOUT_S", 60)
    async with deployed() as world, followed(world) as membership:
        world.store.outage(True)
        before = asyncio.all_tasks()
        first, second = (asyncio.create_task(membership.others()) for _ in range(2))
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks() - before) == 3  # both wait for one look
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await membership.aclose()
        assert "could not be read" in await asyncio.wait_for(second, BOUND_S)


class Told(Telemetry):
    def __init__(self) -> None:
        self.changes: list[Change] = []

    def endpoint(
        self, endpoint_id: EndpointId, side: Side, labels: Mapping[str, str] = NO_LABELS
    ) -> EndpointTelemetry:
        raise AssertionError("no request is made here")

    def instances_changed(self, change: Change) -> None:
        self.changes.append(change)

    def lease_changed(self, held: bool, reason: str) -> None:
        raise AssertionError("no lease is taken here")


async def test_telemetry_is_told_every_change() -> None:
    async with deployed() as world:
        told = Told()
        async with followed(world, telemetry=told) as membership:
            worker = await world.worker()
            await membership.wait_for(lambda membership: bool(membership.ready()), BOUND_S)
            await worker.leave()
            await membership.wait_for(lambda membership: not membership.ready(), BOUND_S)
        assert told.changes == [
            Snapshot(instances=()),
            Put(instance=worker.instance),
            Removed(endpoint_id=ENDPOINT, instance_id=worker.id),
        ]
