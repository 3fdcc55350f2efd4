# ruff: noqa: N802 - tests are named after the invariant that they check
"""R1, R5, R11, R14: what was sent arrives, whatever its size, and an item too large is told to its sender."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from dynamo.core.errors import Retry, TooLargeError
from dynamo.core.ports.request_plane import (
    Channel,
    IncomingCall,
    OutgoingCall,
    Payload,
    Request,
    RequestPlane,
)
from dynamo.testing.request_plane.rig import (
    LIMITS,
    RequestPlaneHarness,
    packed,
    put,
    raw,
    shown,
    take,
    take_all,
    until,
)
from dynamo.testing.request_plane.suite import Suite

LARGE_BYTES = 4 * LIMITS["window_bytes"]
SMALL_BUDGET = LIMITS | {"receive_budget_bytes": 5 * LIMITS["window_bytes"]}  # one large item at a time


def items_of_every_size(plane: RequestPlane) -> list[Payload]:
    """Around every boundary of window and limit, each as MessagePack and as raw bytes."""
    window, limit = plane.capability.window_bytes, plane.capability.max_message_bytes
    half = window // 2
    sizes = [1, 2, half - 64, half, half + 1, window - 64, window - 63, window - 1, window, window + 1]
    items: list[Payload] = [raw(0)]
    for size in [*sizes, 2 * window, 3 * window + 5, limit - 1, limit]:
        items += [packed(size, size), raw(size, size)]
    return items


async def send_all(channel: Channel, items: list[Payload]) -> None:
    """Send them and end the direction."""
    for item in items:
        await put(channel, item)
    channel.end()


async def echo(call: IncomingCall) -> None:
    """Send every input item back when it comes."""
    if call.request.payload is not None:
        await put(call, call.request.payload)
    while not call.ended:
        if (item := call.receive_nowait()) is None:
            await call.wait()
        else:
            await put(call, item)


class Items(Suite):
    """What arrives, and how large it may be."""

    async def test_R1_response_items_of_every_size_arrive(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            await send_all(call, sent)

        sent: list[Payload] = []
        async with self.rig(harness, handler) as rig:
            sent += items_of_every_size(rig.plane)
            call = rig.call()
            assert shown(*await take_all(call)) == shown(*sent)
            assert call.error is None
            assert call.received == len(sent)

    async def test_R1_request_items_of_every_size_arrive(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            arrived.extend(shown(*await take_all(call)))

        arrived: list[str] = []
        async with self.rig(harness, handler) as rig:
            sent = items_of_every_size(rig.plane)
            call = rig.call(None, end=False)
            await send_all(call, sent)
            assert await take_all(call) == []
            assert call.error is None
            assert arrived == shown(*sent)

    async def test_R1_first_items_of_every_size_arrive(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness, echo) as rig:
            for item in items_of_every_size(rig.plane):
                assert shown(*await take_all(rig.call(item))) == shown(item)
            assert await take_all(rig.call(None)) == []

    async def test_R1_many_streams_do_not_mix(self, harness: RequestPlaneHarness) -> None:
        def part(number: int, step: int) -> bytes:
            return packed(2 + number % 500, seed=10 * number + step)

        async def handler(call: IncomingCall) -> None:
            for step in range(5):
                await put(call, part(int(call.request.request_id), step))
                await asyncio.sleep(0)

        async with self.rig(harness, handler) as rig:
            calls = [rig.call(request_id=str(number)) for number in range(self.many_streams)]
            for number, items in enumerate(await asyncio.gather(*map(take_all, calls))):
                assert shown(*items) == shown(*(part(number, step) for step in range(5)))

    async def test_R1_items_flow_both_ways_at_once(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness, echo) as rig:
            sent: list[Payload] = [packed(1 + 37 * number % 3000, number) for number in range(300)]
            call = rig.call(None, end=False)
            _, items = await asyncio.gather(send_all(call, sent), take_all(call))
            assert shown(*items) == shown(*sent)
            assert call.error is None

    async def test_R1_a_buffer_may_change_once_its_call_ended(self, harness: RequestPlaneHarness) -> None:
        buffer = bytearray(raw(1000))
        async with self.rig(harness, echo) as rig:
            call = rig.call(memoryview(buffer))
            await until(lambda: rig.server.calls == 0 and len(rig.worker.calls) == 1)
            (item,) = await take_all(call)
            buffer[:] = bytes(1000)
            assert shown(item) == shown(raw(1000))

    async def test_R5_large_items_follow_each_other(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness, echo, caller=SMALL_BUDGET, worker=SMALL_BUDGET) as rig:
            sent: list[Payload] = [raw(LARGE_BYTES + number, number) for number in range(6)]
            call = rig.call(None, end=False)
            _, items = await asyncio.gather(send_all(call, sent), take_all(call))
            assert shown(*items) == shown(*sent)
            assert call.error is None

    @asynccontextmanager
    async def _large_responses(self, harness: RequestPlaneHarness) -> AsyncGenerator[list[OutgoingCall]]:
        """Twenty streams of three large items each, at a caller whose budget takes one at a time."""

        async def handler(call: IncomingCall) -> None:
            await send_all(call, LARGE_ITEMS)

        async with self.rig(harness, handler, caller=SMALL_BUDGET) as rig:
            yield [rig.call() for _ in range(20)]

    async def test_R5_large_items_of_many_streams_share_a_budget(self, harness: RequestPlaneHarness) -> None:
        async with self._large_responses(harness) as calls:
            for items in await asyncio.gather(*map(take_all, calls)):
                assert shown(*items) == shown(*LARGE_ITEMS)

    async def test_R5_streams_nobody_reads_keep_the_budget_from_none(
        self, harness: RequestPlaneHarness
    ) -> None:
        async with self._large_responses(harness) as calls:
            for call in calls:
                assert shown(*await take_all(call)) == shown(*LARGE_ITEMS)

    async def test_R5_large_items_not_taken_stay_within_the_budget(
        self, harness: RequestPlaneHarness
    ) -> None:
        async with self._large_responses(harness) as calls:
            waits = [asyncio.ensure_future(call.wait()) for call in calls]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(self.quiet_s)
                assert [wait.done() for wait in waits].count(True) == 1
                for items in await asyncio.gather(*map(take_all_after, calls, waits)):
                    assert shown(*items) == shown(*LARGE_ITEMS)
            finally:
                for wait in waits:
                    wait.cancel()

    async def test_R5_large_request_items_share_the_worker_s_budget(
        self, harness: RequestPlaneHarness
    ) -> None:
        async def handler(call: IncomingCall) -> None:
            arrived.append(shown(*await take_all(call)))

        arrived: list[list[str]] = []
        room_for_windows = LIMITS | {"receive_budget_bytes": 40 * LIMITS["window_bytes"]}
        async with self.rig(harness, handler, worker=room_for_windows) as rig:
            calls = [rig.call(None, end=False) for _ in range(20)]
            await until(lambda: rig.server.calls == 20)  # a call may be refused where large items are held
            await asyncio.gather(*(send_all(call, LARGE_ITEMS) for call in calls))
            await asyncio.gather(*map(take_all, calls))
            assert [call.error for call in calls] == [None] * 20
            assert arrived == [shown(*LARGE_ITEMS)] * 20

    async def test_R5_an_item_larger_than_the_budget_passes_alone(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness, echo, caller=SMALL_BUDGET, worker=SMALL_BUDGET) as rig:
            sent: list[Payload] = [raw(12 * rig.window_bytes, number) for number in range(2)]
            call = rig.call(None, end=False)
            _, items = await asyncio.gather(send_all(call, sent), take_all(call))
            assert shown(*items) == shown(*sent)

    async def test_R11_what_describes_a_request_arrives(self, harness: RequestPlaneHarness) -> None:
        metadata = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "": "", "clé": "\N{SNOWMAN}" * 1000}
        sent = Request(
            endpoint="ns-1.comp_2.ep",
            request_id="id with spaces, ünicode and \N{SNOWMAN}",
            attempt=3,
            timeout_s=12.5,
            metadata=dict(metadata),
            priority=-7,
            idempotent=True,
        )
        async with self.rig(harness) as rig:
            rig.plane.call(rig.address, sent)
            assert isinstance(sent.metadata, dict)
            sent.metadata["late"] = "must not arrive"
            await until(lambda: len(rig.worker.calls) == 1)
            (request,) = (call.request for call in rig.worker.calls)
            for field in ("endpoint", "request_id", "attempt", "priority", "end"):
                assert getattr(request, field) == getattr(sent, field)
            assert dict(request.metadata) == metadata
            assert request.timeout_s is not None
            assert 12.5 - self.patience_s < request.timeout_s <= 12.5

    async def test_R11_what_was_not_said_has_its_default(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness) as rig:
            rig.call(None, end=False)
            await until(lambda: len(rig.worker.calls) == 1)
            (request,) = (call.request for call in rig.worker.calls)
            assert (request.attempt, request.priority, request.timeout_s) == (1, 0, None)
            assert (dict(request.metadata), request.payload, request.end) == ({}, None, False)

    async def test_R14_an_item_past_the_limit_fails_at_its_sender(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            with pytest.raises(TooLargeError) as caught:
                call.send(raw(LIMITS["max_message_bytes"] + 1))
            assert caught.value.retry is Retry.NEVER
            await echo(call)

        async with self.rig(harness, handler) as rig:
            too_large = rig.plane.capability.max_message_bytes + 1
            with pytest.raises(TooLargeError):
                rig.call(raw(too_large))
            with pytest.raises(TooLargeError):
                rig.call(packed(too_large))
            call = rig.call(packed(2), end=False)
            assert len(await take(call)) == 2
            with pytest.raises(TooLargeError):
                call.send(raw(too_large), end=True)
            await send_all(call, [packed(3)])
            assert shown(*await take_all(call)) == shown(packed(3))
            assert call.error is None

    async def test_R14_the_limit_is_the_smaller_of_both_sides(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            if call.request.request_id == "to the caller":
                with pytest.raises(TooLargeError):
                    call.send(raw(20_001))
                await put(call, raw(20_000))
            await echo(call)

        smaller = LIMITS | {"max_message_bytes": 20_000}
        async with self.rig(harness, handler, caller=smaller) as rig:
            call = rig.call(request_id="to the caller")
            assert len(await take(call)) == 20_000
            assert len(await take_all(call)) == 1
        async with self.rig(harness, handler, worker=smaller) as rig:
            call = rig.call(end=False)
            await take(call)  # now the two know each other's limits
            with pytest.raises(TooLargeError):
                call.send(raw(20_001))
            await send_all(call, [raw(20_000)])
            assert [len(item) for item in await take_all(call)] == [20_000]
            assert call.error is None


LARGE_ITEMS: list[Payload] = [raw(LARGE_BYTES, seed) for seed in range(3)]


async def take_all_after(call: OutgoingCall, wait: asyncio.Future[None]) -> list[Payload]:
    """Two tasks must not read one call at the same time."""
    await wait
    return await take_all(call)
