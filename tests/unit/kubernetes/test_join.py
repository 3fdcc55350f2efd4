"""Records joined with readiness: by the pod's name and uid, and only while both sides are known."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dynamo.adapters.discovery.kubernetes import join
from dynamo.adapters.discovery.kubernetes.access import Access, Object
from dynamo.adapters.discovery.kubernetes.configuration import Pod
from dynamo.adapters.discovery.kubernetes.join import Join, Source
from dynamo.adapters.discovery.kubernetes.records import body_of, data_of
from dynamo.core.errors import UnavailableError
from dynamo.core.model import Scope
from dynamo.core.ports.discovery import Put, Removed, Snapshot, Stale
from dynamo.core.watching import ConflatingWatch
from dynamo.testing.discovery import ENDPOINT, OTHER, an_instance

pytestmark = pytest.mark.anyio
POD = Pod(name="worker-0", uid="uid-1", container=None)
ONE = an_instance(1)


def record(*instances: Any, pod: Pod = POD, version: int = 1) -> Object:
    body = body_of("worker-0", "prod", pod, data_of(ONE.incarnation, instances or (ONE,)), "uid-of-record")
    body["metadata"]["resourceVersion"] = str(version)
    return body


def endpoints(ready: object = True, uid: str = "uid-1", name: str = "worker-0", **target: str) -> Object:
    ref = {"kind": "Pod", "name": name, "uid": uid, **target}
    conditions = {} if ready is None else {"ready": ready}
    return {"metadata": {"name": "s"}, "endpoints": [{"targetRef": ref, "conditions": conditions}]}


class Scene:
    """A join whose sources say what the test has them say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def nothing(*_: object) -> None:
            return None

        monkeypatch.setattr("dynamo.adapters.discovery.kubernetes.feed.Feed.run", nothing)
        monkeypatch.setattr(join, "notice", nothing)
        self.join = Join(cast(Access, None))
        self.watch = ConflatingWatch()
        self.follower = self.join.follow(Scope(namespace="contract"), self.watch)
        assert self.join._sources is not None
        self.records, self.slices = self.join._sources

    async def begin(self, found: Object | None = None, ready: Object | None = None) -> Snapshot:
        listed(self.records, {} if found is None else {"worker-0": found})
        listed(self.slices, {} if ready is None else {"s": ready})
        change = await self.watch.receive()
        assert isinstance(change, Snapshot)
        return change

    def silent(self) -> bool:
        return self.watch._next() is None


def listed(source: Source, found: dict[str, Object], *, listing: int = 1, resync: bool = False) -> None:
    source.listed(found, listing=listing, resync=resync)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


async def test_the_snapshot_waits_for_both_sides(scene: Scene) -> None:
    listed(scene.records, {"worker-0": record()})
    assert scene.silent()
    listed(scene.slices, {"s": endpoints()})
    assert await scene.watch.receive() == Snapshot(instances=(ONE,))


@pytest.mark.parametrize(
    "said, seen",
    [
        (endpoints(True), True),
        (endpoints(None), True),  # unknown is ready, by the API's own word
        (endpoints(False), False),
        (endpoints(uid="uid-0"), False),  # its predecessor
        (endpoints(name="worker-1"), False),
        (endpoints(kind="Node"), False),
        ({"metadata": {"name": "s"}, "endpoints": None}, False),
        ({"metadata": {"name": "s"}, "endpoints": [{"addresses": ["10.0.0.1"]}]}, False),
    ],
)
async def test_who_is_ready_by_a_slice(scene: Scene, said: Object, seen: bool) -> None:
    assert (await scene.begin(record(), said)).instances == ((ONE,) if seen else ())


async def test_one_slice_of_several_is_enough(scene: Scene) -> None:
    await scene.begin(record(), endpoints())
    scene.slices.changed("t", endpoints())
    scene.slices.changed("s", endpoints(False))
    assert scene.silent()
    scene.slices.changed("t", None)
    assert await scene.watch.receive() == Removed(endpoint_id=ENDPOINT, instance_id=1)


async def test_a_record_of_another_pod_is_hidden_though_one_of_its_name_is_ready(scene: Scene) -> None:
    await scene.begin(record(pod=Pod(name="worker-0", uid="uid-0", container=None)), endpoints())
    assert scene.silent()
    scene.records.changed("worker-0", record())
    assert await scene.watch.receive() == Put(instance=ONE)


async def test_a_record_without_an_owner_is_hidden(scene: Scene) -> None:
    orphan = record()
    del orphan["metadata"]["ownerReferences"]
    assert (await scene.begin(orphan, endpoints())).instances == ()


async def test_an_endpoint_that_leaves_the_record_is_removed(scene: Scene) -> None:
    other = an_instance(1, OTHER)
    assert len((await scene.begin(record(ONE, other), endpoints())).instances) == 2
    scene.records.changed("worker-0", record(ONE))
    assert await scene.watch.receive() == Removed(endpoint_id=OTHER, instance_id=1)
    scene.records.changed("worker-0", None)
    assert await scene.watch.receive() == Removed(endpoint_id=ENDPOINT, instance_id=1)


async def test_an_instance_that_two_records_bear_goes_with_the_last(scene: Scene) -> None:
    await scene.begin(record(), endpoints())
    twin = an_instance(1, metadata={"record": "the other"})
    scene.records.changed("worker-0-1", record(twin))
    assert await scene.watch.receive() == Put(instance=twin)
    scene.records.changed("worker-0-1", None)
    assert await scene.watch.receive() == Put(instance=ONE)
    scene.records.changed("worker-0", None)
    assert await scene.watch.receive() == Removed(endpoint_id=ENDPOINT, instance_id=1)


async def test_an_outage_of_either_side_is_stale_until_it_lists_again(scene: Scene) -> None:
    await scene.begin(record(), endpoints())
    for source, found in ((scene.slices, {"s": endpoints()}), (scene.records, {"worker-0": record()})):
        source.failed(UnavailableError("away"))
        assert await scene.watch.receive() == Stale(reason="away")
        other = scene.slices if source is scene.records else scene.records
        other.changed("x", None)
        assert scene.silent()
        listed(source, found)
        assert await scene.watch.receive() == Snapshot(instances=(ONE,))


async def test_while_both_sides_are_away_one_that_is_back_is_not_enough(scene: Scene) -> None:
    await scene.begin(record(), endpoints())
    scene.slices.failed(UnavailableError("away"))
    scene.records.failed(UnavailableError("away"))
    assert await scene.watch.receive() == Stale(reason="away")
    listed(scene.records, {})
    assert scene.silent()
    listed(scene.slices, {"s": endpoints()})
    assert await scene.watch.receive() == Snapshot(instances=())


async def test_lost_history_ends_in_a_snapshot_though_nobody_was_away(scene: Scene) -> None:
    await scene.begin(record(), endpoints())
    listed(scene.slices, {"s": endpoints()}, resync=True)
    assert await scene.watch.receive() == Snapshot(instances=(ONE,))


async def test_a_second_watch_begins_with_a_listing_that_was_begun_after_it(scene: Scene) -> None:
    scene.records.feed.listings = scene.slices.feed.listings = 1
    await scene.begin(record(), endpoints())
    late = ConflatingWatch()
    scene.join.follow(Scope(), late)
    listed(scene.records, {}, listing=1)  # begun before
    listed(scene.slices, {"s": endpoints()}, listing=2)
    assert await scene.watch.receive() == Removed(endpoint_id=ENDPOINT, instance_id=1)
    assert late._next() is None
    listed(scene.records, {"worker-0": record()}, listing=2)
    assert await late.receive() == Snapshot(instances=(ONE,))
    assert await scene.watch.receive() == Put(instance=ONE)


async def test_the_last_watch_that_ends_ends_the_feeds(scene: Scene) -> None:
    await scene.begin(record(), endpoints())
    scene.join.unfollow(scene.follower)
    assert scene.join._sources is None
    await scene.join.ended(1.0)
    assert not scene.join._ending
