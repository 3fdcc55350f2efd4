# ruff: noqa: N802 - tests are named after the invariant that they check
"""R4, R13, R15: who does not read holds up the sender of that stream, nobody else, and loses nothing."""

from __future__ import annotations

import asyncio

import pytest

from dynamo.core.ports.request_plane import Channel, IncomingCall
from dynamo.testing.request_plane.rig import (
    LIMITS,
    RequestPlaneHarness,
    forever,
    packed,
    put,
    raw,
    shown,
    take,
    take_all,
    until,
)
from dynamo.testing.request_plane.suite import Suite

ITEM_SIZES = [
    1,
    100,
    LIMITS["window_bytes"] // 2 - 64,
    LIMITS["window_bytes"] + 1,
    5 * LIMITS["window_bytes"],
]


class Producer:
    """Sends items of one size for as long as it may, and counts them."""

    def __init__(self, size: int) -> None:
        self._item = raw(size)
        self.accepted = 0
        self.stalls = 0
        """How often ``send`` answered False."""
        self.enough = 100 + 2 * LIMITS["window_bytes"] // max(size, 1)

    async def run(self, channel: Channel) -> None:
        """Until ``enough`` items were accepted; at first that is more than any window takes."""
        while self.accepted < self.enough:
            self.accepted += 1
            if not channel.send(self._item):
                self.stalls += 1
                await channel.writable()
        channel.end()


class Flow(Suite):
    """Windows, neighbours, and waits that are cancelled."""

    async def _check_bound(self, producer: Producer, size: int, window: int, slack: int) -> None:
        """It has stalled, within its bound, and stays there while nobody reads."""
        await until(lambda: producer.stalls > 0 or producer.accepted == producer.enough)
        await asyncio.sleep(self.quiet_s)
        accepted = producer.accepted
        assert producer.accepted * size <= window + size + slack
        await asyncio.sleep(self.quiet_s)
        assert producer.accepted == accepted

    @pytest.mark.parametrize("size", ITEM_SIZES)
    async def test_R4_an_unread_response_stops_its_handler(
        self, harness: RequestPlaneHarness, size: int
    ) -> None:
        producer = Producer(size)
        async with self.rig(harness, producer.run) as rig:
            call = rig.call()
            await self._check_bound(producer, size, rig.window_bytes, harness.slack_bytes)
            before = producer.accepted
            producer.enough = before + 50
            assert shown(*await take_all(call)) == shown(raw(size)) * (before + 50)

    @pytest.mark.parametrize("size", ITEM_SIZES)
    async def test_R4_an_unread_input_stops_its_caller(self, harness: RequestPlaneHarness, size: int) -> None:
        async def handler(call: IncomingCall) -> None:
            await put(call, packed(1))
            await read.wait()
            arrived.extend(shown(*await take_all(call)))

        producer, read, arrived = Producer(size), asyncio.Event(), list[str]()
        async with self.rig(harness, handler) as rig:
            call = rig.call(None, end=False)
            await take(call)  # a wire's dialer knows the listener's window once it has answered
            sending = asyncio.ensure_future(producer.run(call))
            try:
                await self._check_bound(producer, size, rig.window_bytes, harness.slack_bytes)
                before = producer.accepted
                producer.enough = before + 50
                read.set()
                await sending
                await take_all(call)
                assert arrived == shown(raw(size)) * (before + 50)
            finally:
                sending.cancel()

    async def test_R4_empty_items_are_bounded_too(self, harness: RequestPlaneHarness) -> None:
        producer = Producer(0)
        async with self.rig(harness, producer.run) as rig:
            rig.call()
            await until(lambda: producer.stalls > 0 or producer.accepted == producer.enough)
            assert producer.accepted <= rig.window_bytes + harness.slack_bytes

    async def test_R4_a_sender_that_does_not_wait_loses_nothing(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            answers.extend(call.send(item) for item in sent)

        answers, sent = list[bool](), [packed(1000, seed) for seed in range(50)]
        async with self.rig(harness, handler) as rig:
            assert shown(*await take_all(rig.call())) == shown(*sent)
            assert answers[0]
            assert not answers[-1]

    async def test_R13_a_slow_reader_holds_up_its_own_stream_alone(
        self, harness: RequestPlaneHarness
    ) -> None:
        async def handler(call: IncomingCall) -> None:
            if call.request.request_id == "quick":
                for seed in range(200):
                    await put(call, packed(500, seed))
            else:
                for _ in range(200):  # more than any window takes
                    started.add(call.request.request_id)
                    await put(call, raw(int(call.request.request_id.partition("-")[0])))
                await forever()

        started = set[str]()
        async with self.rig(harness, handler) as rig:
            sizes = [100, 1000, rig.window_bytes, 3 * rig.window_bytes]
            slow = [rig.call(request_id=f"{size}-{number}") for size in sizes for number in range(10)]
            await until(lambda: len(started) == len(slow))
            await asyncio.sleep(self.quiet_s)
            quick = rig.call(request_id="quick")
            assert len(await take_all(quick)) == 200
            assert quick.error is None
            assert not any(call.ended for call in slow)

    async def test_R13_a_handler_that_does_not_read_holds_up_its_own_call_alone(
        self, harness: RequestPlaneHarness
    ) -> None:
        async def handler(call: IncomingCall) -> None:
            if call.request.request_id == "quick":
                await put(call, packed(2 + len(await take_all(call))))
            else:
                await forever()

        producers = [Producer(size) for size in (100, 1000, 3 * LIMITS["window_bytes"]) for _ in range(10)]
        async with self.rig(harness, handler) as rig:
            sending = [
                asyncio.ensure_future(producer.run(rig.call(None, end=False))) for producer in producers
            ]
            try:
                await until(lambda: all(one.stalls or one.accepted == one.enough for one in producers))
                quick = rig.call(None, end=False, request_id="quick")
                for seed in range(200):
                    await put(quick, packed(500, seed))
                quick.end()
                assert [len(item) for item in await take_all(quick)] == [202]
            finally:
                for task in sending:
                    task.cancel()

    async def test_R15_a_cancelled_wait_loses_no_item(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            for seed in range(200):
                await put(call, packed(100, seed))
                await asyncio.sleep(0)

        items: list[str] = []
        async with self.rig(harness, handler) as rig:
            call, turns = rig.call(), 0
            while not call.ended:
                turns += 1
                await cancel_after(turns % 7, call.wait())
                while (item := call.receive_nowait()) is not None:
                    items += shown(item)
            assert call.error is None
            assert items == shown(*(packed(100, seed) for seed in range(200)))

    async def test_R15_a_cancelled_writable_loses_no_item(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            turns = 0
            for item in sent:
                room = call.send(item)
                while not room and not await cancel_after(turns % 7, call.writable()):
                    turns += 1
            cancelled.append(turns)

        sent, cancelled = [packed(3000, seed) for seed in range(100)], list[int]()
        async with self.rig(harness, handler) as rig:
            call = rig.call()
            await asyncio.sleep(self.quiet_s)  # so that some waits find no room and are cancelled
            assert shown(*await take_all(call)) == shown(*sent)
            assert cancelled[0] > 0


async def cancel_after(turns: int, work: object) -> bool:
    """Run ``work`` in a task, cancel it after so many turns of the loop; True if it had finished."""
    task = asyncio.ensure_future(work)  # type: ignore[call-overload]
    for _ in range(turns):
        await asyncio.sleep(0)
    finished: bool = task.done()
    task.cancel()
    await asyncio.wait([task])
    return finished
