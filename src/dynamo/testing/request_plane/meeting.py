# ruff: noqa: N802 - tests are named after the invariant that they check
"""R2, R3, R12, R16, R17: how calls and servers come together, part, and leave nothing behind."""

from __future__ import annotations

import asyncio
import re

import pytest

from dynamo.core.errors import (
    ConfigError,
    ConflictError,
    DrainingError,
    DynamoError,
    OverloadedError,
    Retry,
    UnavailableError,
    UnknownEndpointError,
    UnsupportedError,
    WrongInstanceError,
)
from dynamo.core.health import Health
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall, Request
from dynamo.testing.leaks import no_leaks
from dynamo.testing.request_plane.items import LARGE_BYTES, SMALL_BUDGET
from dynamo.testing.request_plane.rig import (
    LIMITS,
    RequestPlaneHarness,
    forever,
    packed,
    put,
    raw,
    take,
    take_all,
    until,
)
from dynamo.testing.request_plane.suite import Suite

NOT_ADDRESSES = (
    "",
    "nonsense",
    "http://",
    "tcp://",
    "tcp://127.0.0.1:99999",
    "no-such-scheme://x",
    "mem://a/b?c",
)


async def answer(call: IncomingCall) -> None:
    await put(call, packed(100))


async def expect(call: OutgoingCall, kind: type[DynamoError]) -> None:
    """The call was turned away: this error is all that it receives, and it may go elsewhere."""
    assert await take_all(call) == []
    error = call.error
    assert isinstance(error, kind)
    assert error.retry is Retry.SAFE
    assert not error.remote
    assert error.message
    assert type(error) is kind


class Meeting(Suite):
    """Nobody there, another one there, refused, draining, gone."""

    async def test_R2_an_address_that_nobody_serves_is_the_first_thing_received(
        self, harness: RequestPlaneHarness
    ) -> None:
        async with self.rig(harness, answer) as rig:
            await take_all(rig.call())
            await rig.leave()
            try:
                call = rig.call(end=False)
            except UnsupportedError:  # the way there went with the server: a socket's file, for one
                return
            assert not call.ended
            call.send(packed(100))
            await expect(call, UnavailableError)
            assert not call.answered
            call.end()
            call.kill()

    async def test_R2_answered_tells_when_the_request_can_move_no_more(
        self, harness: RequestPlaneHarness
    ) -> None:
        async def handler(call: IncomingCall) -> None:
            await go.wait()
            await put(call, packed(1))
            await forever()

        go = asyncio.Event()
        async with self.rig(harness, handler) as rig:
            call = rig.call()
            await until(lambda: len(rig.worker.calls) == 1)
            assert not call.answered
            go.set()
            await take(call)
            assert call.answered

    async def test_R2_what_is_no_address_is_told_at_once(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness) as rig:
            for address in NOT_ADDRESSES:
                with pytest.raises(ConfigError, match=re.escape(repr(address))):
                    rig.plane.call(address, Request(endpoint="a.b.c", request_id="r"))

    async def test_R2_one_address_is_served_once(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness, answer) as rig, harness.open_plane() as other:
            address = rig.server.addresses[-1]
            with pytest.raises(ConflictError, match=re.escape(address.partition("://")[2])):
                async with other.serve(rig.worker.accept, instance_id=7, incarnation=7, address=address):
                    pass
            assert len(await take_all(rig.call())) == 1
            await rig.leave()
            async with other.serve(
                rig.worker.accept, instance_id=7, incarnation=7, address=address
            ) as server:
                assert address in server.addresses
                assert (
                    len(await take_all(rig.plane.call(address, Request(endpoint="a.b.c", request_id="r"))))
                    == 1
                )

    @pytest.mark.parametrize(
        "kind", [DrainingError, OverloadedError, UnknownEndpointError, WrongInstanceError]
    )
    async def test_R3_a_refusal_arrives_as_its_class(
        self, harness: RequestPlaneHarness, kind: type[DynamoError]
    ) -> None:
        def accept(call: IncomingCall) -> None:
            if call.request.request_id == "refused":
                call.refuse(kind("not here, not now", retry=Retry.NEVER))
            else:
                call.send(packed(1), end=True)

        async with self.rig(harness, accept=accept) as rig:
            for end in (True, False):
                await expect(rig.call(request_id="refused", end=end), kind)
            assert len(await take_all(rig.call())) == 1
            await until(lambda: rig.server.calls == 0)

    @pytest.mark.parametrize("whose", ["instance id", "incarnation", "both"])
    async def test_R3_another_instance_is_not_called(self, harness: RequestPlaneHarness, whose: str) -> None:
        async with self.rig(harness, answer) as rig:
            call = rig.plane.call(
                rig.address,
                Request(endpoint="a.b.c", request_id="r", payload=packed(1)),
                instance_id=0 if whose == "incarnation" else rig.instance_id - 1,
                incarnation=0 if whose == "instance id" else rig.incarnation - 1,
            )
            await expect(call, WrongInstanceError)
            assert rig.worker.calls == []

    @pytest.mark.parametrize("whose", ["", "instance id", "incarnation", "both"])
    async def test_R3_the_expected_instance_is_called(self, harness: RequestPlaneHarness, whose: str) -> None:
        async with self.rig(harness, answer) as rig:
            call = rig.plane.call(
                rig.address,
                Request(endpoint="a.b.c", request_id="r", payload=packed(1)),
                instance_id=rig.instance_id if whose in ("instance id", "both") else 0,
                incarnation=rig.incarnation if whose in ("incarnation", "both") else 0,
            )
            assert len(await take_all(call)) == 1
            assert call.error is None

    async def test_R12_drain_is_heard_and_what_runs_goes_on(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            await put(call, packed(100))
            if call.request.request_id == "running":
                await go.wait()
                await put(call, packed(100))

        go = asyncio.Event()
        async with self.rig(harness, handler) as rig, harness.open_plane() as idle:
            await take_all(rig.call(plane=idle))
            running = rig.call(request_id="running")
            await take(running)
            rig.server.drain()
            for plane in (rig.plane, idle):
                while (late := rig.call(plane=plane)).error is None:
                    items = await take_all(late)
                    if late.error is None:
                        assert len(items) == 1  # opened in the same moment: served
                    else:
                        assert items == []
                        break
                await expect(late, DrainingError)
            go.set()
            assert len(await take_all(running)) == 1
            assert running.error is None
            await until(lambda: rig.server.calls == 0)

    @pytest.mark.parametrize("announced", [True, False])
    async def test_R12_refuse_turns_away_what_is_new(
        self, harness: RequestPlaneHarness, announced: bool
    ) -> None:
        async def handler(call: IncomingCall) -> None:
            await put(call, packed(100))
            await go.wait()
            await put(call, packed(100))

        go = asyncio.Event()
        async with self.rig(harness, handler) as rig, harness.open_plane() as stranger:
            running = rig.call()
            await take(running)
            if announced:
                rig.server.drain()
            rig.server.refuse()
            for plane in (rig.plane, rig.plane, stranger, stranger):
                await expect(rig.call(plane=plane), DrainingError)
            assert len(rig.worker.calls) == 1
            assert rig.server.calls == 1
            go.set()
            assert len(await take_all(running)) == 1
            assert running.error is None

    async def test_R12_calls_are_counted_while_they_run(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            await take_all(call)

        async with self.rig(harness, handler) as rig:
            calls = [rig.call(end=False) for _ in range(5)]
            await until(lambda: rig.server.calls == 5)
            calls.pop().kill()
            calls.pop().end()
            await until(lambda: rig.server.calls == 3)

    async def test_R16_nothing_is_left_of_calls_that_ended_in_every_way(
        self, harness: RequestPlaneHarness
    ) -> None:
        async def handler(call: IncomingCall) -> None:
            match call.request.request_id:
                case "fails":
                    raise UnavailableError("on purpose")
                case "is large":
                    await put(call, raw(LARGE_BYTES))
                case "is endless":
                    while True:
                        await put(call, raw(1000))
                case "waits":
                    await forever()
            await put(call, packed(100))

        async with no_leaks(patience_s=self.patience_s / 2), self.rig(harness, handler) as rig:
            for _ in range(3):
                for name in ("ends", "fails", "is large"):
                    await take_all(rig.call(request_id=name))
                for name in ("is large", "is endless", "waits"):
                    call = rig.call(request_id=name, end=False)
                    await until(lambda: rig.server.calls == 1)
                    call.kill()
                    await until(lambda: rig.server.calls == 0)
                await expect(
                    rig.plane.call(rig.address, Request(endpoint="a.b.c", request_id="r"), instance_id=1),
                    WrongInstanceError,
                )
            for name in ("is large", "is endless", "waits"):
                await rig.plane.check(rig.address)
                rig.call(request_id=name, end=False)
            await until(lambda: rig.server.calls == 3)

    async def test_R16_leaving_serve_with_calls_in_flight_ends_them_soon(
        self, harness: RequestPlaneHarness
    ) -> None:
        async with no_leaks(patience_s=self.patience_s / 2), self.rig(harness, _be_busy) as rig:
            calls = [rig.call(request_id=kind, end=False) for kind in ("silent", "endless", "large") * 10]
            await until(lambda: rig.server.calls == len(calls))
            async with asyncio.timeout(self.patience_s / 2):
                await rig.leave()
                for call in calls:
                    await take_all(call)
            assert {type(call.error).__name__ for call in calls} == {"StreamBrokenError"}
            await until(lambda: len(rig.worker.cancelled) == len(calls))

    async def test_R16_leaving_the_caller_s_plane_cancels_its_calls(
        self, harness: RequestPlaneHarness
    ) -> None:
        async with no_leaks(patience_s=self.patience_s / 2), self.rig(harness, _be_busy) as rig:
            async with harness.open_plane(**LIMITS) as leaving:
                calls = [
                    rig.call(plane=leaving, request_id=kind, end=False)
                    for kind in ("silent", "endless", "large") * 3
                ]
                await until(lambda: rig.server.calls == len(calls))
            for call in calls:
                await take_all(call)
                assert call.error is not None
            await until(lambda: len(rig.worker.cancelled) == len(calls))
            await until(lambda: rig.server.calls == 0)

    async def test_R16_killed_calls_give_their_budget_back(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            await put(call, raw(LARGE_BYTES))
            await take_all(call)

        async with self.rig(harness, handler, caller=SMALL_BUDGET, worker=SMALL_BUDGET) as rig:
            for when in ("announced", "arrived", "taken") * 4:
                calls = [rig.call(None, end=False) for _ in range(3)]
                for call in calls:
                    call.send(raw(LARGE_BYTES))
                waits = [asyncio.ensure_future(call.wait()) for call in calls]
                if when != "announced":
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for call in calls:
                    if when == "taken":
                        call.receive_nowait()
                    call.kill()
                await asyncio.gather(*waits)
                await until(lambda: rig.server.calls == 0)
            call = rig.call(None, end=False)
            call.send(raw(LARGE_BYTES), end=True)
            assert [len(item) for item in await take_all(call)] == [LARGE_BYTES]

    async def test_R17_check_tells_and_never_raises(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness, caller={"connect_timeout_s": 0.5}) as rig:
            assert (await rig.plane.check(rig.address)).ok
            for address in (*NOT_ADDRESSES, "tcp://127.0.0.1:1", "unix://no-such-boot/no/such/socket"):
                health = await rig.plane.check(address)
                assert isinstance(health, Health)
                assert not health.ok
                assert health.detail
            await rig.leave()
            assert not (await rig.plane.check(rig.address)).ok


async def _be_busy(call: IncomingCall) -> None:
    match call.request.request_id:
        case "endless":
            while True:
                await put(call, raw(1000))
        case "large":
            await put(call, raw(LARGE_BYTES))
    await forever()
