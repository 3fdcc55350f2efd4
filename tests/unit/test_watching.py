"""The conflating buffer between an adapter's feed and the reader of a watch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.core.model import EndpointId, Instance, InstanceKey
from dynamo.core.ports.discovery import Change, Put, Removed, Snapshot, Stale
from dynamo.core.watching import ConflatingWatch, apply

pytestmark = pytest.mark.anyio

ENDPOINT = EndpointId(namespace="n", component="c", name="e")


def an_instance(instance_id: int = 1, incarnation: int = 1, address: str = "tcp://h:1") -> Instance:
    return Instance(
        endpoint_id=ENDPOINT, instance_id=instance_id, incarnation=incarnation, addresses=(address,)
    )


def removed(instance_id: int) -> Removed:
    return Removed(endpoint_id=ENDPOINT, instance_id=instance_id)


async def pending(watch: ConflatingWatch) -> list[Change]:
    """What a reader gets without waiting."""
    changes: list[Change] = []
    while True:
        task = asyncio.create_task(watch.receive())
        await asyncio.sleep(0)
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return changes
        changes.append(task.result())


async def test_nothing_is_delivered_before_the_feed_has_spoken() -> None:
    watch = ConflatingWatch()
    assert await pending(watch) == []
    watch.put(an_instance())
    watch.reset((an_instance(),))
    assert await pending(watch) == [Snapshot(instances=(an_instance(),))]


async def test_changes_before_the_snapshot_is_read_are_part_of_it() -> None:
    watch = ConflatingWatch()
    watch.reset((an_instance(1), an_instance(2)))
    watch.put(an_instance(3))
    watch.remove(ENDPOINT, 1)
    assert await pending(watch) == [Snapshot(instances=(an_instance(2), an_instance(3)))]


async def test_changes_of_one_instance_are_conflated_in_order_of_first_change() -> None:
    watch = ConflatingWatch()
    watch.reset((an_instance(1),))
    await watch.receive()
    for port in range(100):
        watch.put(an_instance(2, address=f"tcp://h:{port}"))
    watch.remove(ENDPOINT, 1)
    watch.put(an_instance(2, address="tcp://h:last"))
    assert await pending(watch) == [Put(instance=an_instance(2, address="tcp://h:last")), removed(1)]


async def test_there_and_back_again_is_no_change() -> None:
    watch = ConflatingWatch()
    watch.reset((an_instance(1),))
    await watch.receive()
    watch.put(an_instance(1, address="tcp://h:2"))
    watch.put(an_instance(1))
    watch.remove(ENDPOINT, 1)
    watch.put(an_instance(1))
    watch.put(an_instance(2))
    watch.remove(ENDPOINT, 2)
    assert await pending(watch) == []


async def test_an_instance_that_comes_back_as_it_was_is_told_again() -> None:
    watch = ConflatingWatch()
    watch.reset((an_instance(1),))
    await watch.receive()
    for _ in range(2):
        watch.remove(ENDPOINT, 1)
        assert await pending(watch) == [removed(1)]
        watch.put(an_instance(1))
        assert await pending(watch) == [Put(instance=an_instance(1))]


async def test_another_incarnation_is_removed_then_put_if_the_old_one_was_seen() -> None:
    watch = ConflatingWatch()
    watch.reset((an_instance(1),))
    await watch.receive()
    watch.remove(ENDPOINT, 1)
    watch.put(an_instance(1, incarnation=2))
    watch.put(an_instance(1, incarnation=3))
    watch.put(an_instance(2, incarnation=1))
    watch.put(an_instance(2, incarnation=2))
    assert await pending(watch) == [
        removed(1),
        Put(instance=an_instance(1, incarnation=3)),
        Put(instance=an_instance(2, incarnation=2)),
    ]


async def test_a_removal_between_the_two_halves_of_a_new_incarnation_is_not_doubled() -> None:
    watch = ConflatingWatch()
    watch.reset((an_instance(1),))
    await watch.receive()
    watch.put(an_instance(1, incarnation=2))
    assert await watch.receive() == removed(1)
    watch.remove(ENDPOINT, 1)
    assert await pending(watch) == []


async def test_stale_is_delivered_once_while_the_backend_is_away() -> None:
    watch = ConflatingWatch()
    watch.stale("first")
    assert await watch.receive() == Stale(reason="first")
    watch.stale("again")
    assert await pending(watch) == []
    watch.reset(())
    watch.stale("later")
    watch.stale("and again")
    assert await pending(watch) == [Snapshot(instances=()), Stale(reason="later")]


async def test_the_end_of_an_outage_is_a_snapshot_even_if_nothing_changed() -> None:
    watch = ConflatingWatch()
    watch.replace((an_instance(),))
    assert await pending(watch) == [Snapshot(instances=(an_instance(),))]
    watch.stale("away")
    assert await pending(watch) == [Stale(reason="away")]
    watch.replace((an_instance(),))
    assert await pending(watch) == [Snapshot(instances=(an_instance(),))]


async def test_an_outage_that_ended_unseen_is_a_snapshot_alone() -> None:
    watch = ConflatingWatch()
    watch.reset((an_instance(),))
    await watch.receive()
    watch.stale("away")
    watch.reset((an_instance(2),))
    assert await pending(watch) == [Snapshot(instances=(an_instance(2),))]


async def test_a_listing_is_fed_as_differences() -> None:
    watch = ConflatingWatch()
    watch.replace((an_instance(1), an_instance(2)))
    await watch.receive()
    watch.replace((an_instance(2, address="tcp://h:2"), an_instance(3)))
    assert await pending(watch) == [
        removed(1),
        Put(instance=an_instance(2, address="tcp://h:2")),
        Put(instance=an_instance(3)),
    ]


@pytest.mark.parametrize(
    "feed, change",
    [
        (lambda watch: watch.reset(()), Snapshot(instances=())),
        (lambda watch: watch.put(an_instance(2)), Put(instance=an_instance(2))),
        (lambda watch: watch.remove(ENDPOINT, 1), removed(1)),
        (lambda watch: watch.replace(()), removed(1)),
        (lambda watch: watch.stale("away"), Stale(reason="away")),
    ],
    ids=["reset", "put", "remove", "replace", "stale"],
)
async def test_a_reader_that_waits_is_woken(feed: Callable[[ConflatingWatch], None], change: Change) -> None:
    watch = ConflatingWatch()
    watch.reset((an_instance(1),))
    await watch.receive()
    reading = asyncio.create_task(watch.receive())
    await asyncio.sleep(0)
    feed(watch)
    assert await asyncio.wait_for(reading, 5) == change


async def test_instances_that_come_and_go_unseen_cost_no_memory() -> None:
    watch = ConflatingWatch()
    watch.reset(())
    await watch.receive()
    for number in range(1, 2000):
        watch.put(an_instance(number))
        watch.remove(ENDPOINT, number)
    held = [value for value in vars(watch).values() if isinstance(value, dict)]
    assert held == [{}, {}, {}]


async def test_a_cancelled_read_loses_nothing() -> None:
    watch = ConflatingWatch()
    watch.reset(())
    await watch.receive()
    reader = asyncio.create_task(watch.receive())
    await asyncio.sleep(0)
    watch.put(an_instance())  # wakes the reader, which is cancelled before it runs
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await watch.receive() == Put(instance=an_instance())


async def test_a_read_that_was_given_up_leaves_its_place_to_the_next() -> None:
    watch = ConflatingWatch()
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await watch.receive()
    watch.reset(())
    assert await watch.receive() == Snapshot(instances=())


async def test_a_second_reader_is_refused() -> None:
    watch = ConflatingWatch()
    reader = asyncio.create_task(watch.receive())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="one reader"):
        await watch.receive()
    watch.reset(())
    assert await reader == Snapshot(instances=())


async def test_a_feed_from_another_thread_wakes_the_reader() -> None:
    watch = ConflatingWatch()
    watch.reset(())
    await watch.receive()
    live: dict[InstanceKey, Instance] = {}

    def feed() -> None:
        for number in range(1, 1001):
            watch.put(an_instance(number))
            if number % 2:
                watch.remove(ENDPOINT, number)

    feeder = threading.Thread(target=feed)
    feeder.start()
    async with asyncio.timeout(10):
        while sorted(key[1] for key in live) != list(range(2, 1001, 2)):
            apply(live, await watch.receive())
    feeder.join()


class Incarnation(int):
    """Does something, once, when a reader compares it with another: in the midst of taking a change."""

    meanwhile: list[Callable[[], None]]

    def __ne__(self, other: object) -> bool:
        while self.meanwhile:
            self.meanwhile.pop()()
        return super().__ne__(other)


@pytest.mark.parametrize(
    "feed, present",
    [
        (lambda watch: watch.reset(()), []),
        (lambda watch: watch.put(an_instance(1, 2)), [an_instance(1, 2)]),
        (lambda watch: watch.remove(ENDPOINT, 1), []),
        (lambda watch: watch.replace((an_instance(2),)), [an_instance(2)]),
    ],
    ids=["reset", "put", "remove", "replace"],
)
async def test_what_a_thread_feeds_while_the_reader_takes_a_change_is_not_lost(
    feed: Callable[[ConflatingWatch], None], present: list[Instance]
) -> None:
    watch, live = ConflatingWatch(), dict[InstanceKey, Instance]()
    watch.reset((an_instance(1),))
    apply(live, await watch.receive())
    feeder = threading.Thread(target=feed, args=[watch])

    def meanwhile() -> None:
        feeder.start()
        feeder.join(0.05)  # in vain: it waits for the reader, who is here

    incarnation = Incarnation(1)
    incarnation.meanwhile = [meanwhile]
    watch.put(an_instance(1, incarnation, "tcp://h:2"))
    apply(live, await watch.receive())
    feeder.join()
    for change in await pending(watch):
        apply(live, change)
    assert list(live.values()) == present


def test_a_feed_after_the_readers_loop_closed_harms_nobody() -> None:
    watch = ConflatingWatch()
    loop = asyncio.new_event_loop()
    reader = loop.create_task(watch.receive())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    watch.reset((an_instance(),))
    assert not reader.done()
    reader.get_coro().close()
    reader._log_destroy_pending = False  # type: ignore[attr-defined]


STEP = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.just("remove"), st.integers(1, 3)),
    st.tuples(st.just("stale")),
    st.tuples(st.just("reset"), st.lists(st.integers(1, 3), unique=True)),
    st.tuples(st.just("read"), st.integers(1, 4)),
)


@given(st.lists(STEP, max_size=30))
def test_folding_what_is_read_gives_what_was_fed(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """Whatever is fed and whenever the reader looks; and no Put ever replaces another incarnation."""
    watch, fed, live = ConflatingWatch(), dict[InstanceKey, Instance](), dict[InstanceKey, Instance]()
    watch.reset(())

    def read() -> bool:
        with watch._lock:
            change = watch._next()
        if isinstance(change, Put):
            before = live.get(change.instance.key)
            assert before is None or before.incarnation == change.instance.incarnation
        if change is not None:
            apply(live, change)
        return change is not None

    for step in steps:
        match step:
            case ("put", number, incarnation, port):
                one = an_instance(number, incarnation, f"tcp://h:{port}")
                watch.put(one)
                fed[one.key] = one
            case ("remove", number):
                watch.remove(ENDPOINT, number)
                fed.pop((ENDPOINT, number), None)
            case ("stale",):
                watch.stale("away")
            case ("reset", numbers):
                watch.reset(tuple(an_instance(number) for number in numbers))
                fed = {(ENDPOINT, number): an_instance(number) for number in numbers}
            case ("read", count):
                for _ in range(count):
                    read()
    while read():
        pass
    assert live == fed
