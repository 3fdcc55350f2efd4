# ruff: noqa: N802 - tests are named after the invariant that they check
"""R6, R7, R8, R9, R10: the ways in which a call ends, and what each side learns of it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

import pytest

from dynamo.core import errors
from dynamo.core.errors import CallCancelledError, DynamoError, RemoteError, Retry, StreamBrokenError
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall
from dynamo.testing.request_plane.rig import (
    LIMITS,
    RequestPlaneHarness,
    fill,
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

ERRORS: list[type[DynamoError]] = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DynamoError)
]


async def be_silent(call: IncomingCall) -> None:
    await forever()


async def stream(call: IncomingCall) -> None:
    for seed in range(10**9):
        await put(call, packed(100, seed))
        await asyncio.sleep(0)


async def send_one_then_be_silent(call: IncomingCall) -> None:
    await put(call, packed(1))
    await forever()


async def fill_the_window(call: IncomingCall) -> None:
    fill(call, raw(500))
    await call.writable()


async def send_a_large_item(call: IncomingCall) -> None:
    await put(call, raw(100_000))
    await forever()


async def read_input(call: IncomingCall) -> None:
    await take(call)


KILLED_WHILE = (be_silent, send_one_then_be_silent, stream, fill_the_window, send_a_large_item, read_input)


class Ends(Suite):
    """Killed, stopped, broken, failed, half closed."""

    @pytest.mark.parametrize("handler", KILLED_WHILE)
    async def test_R6_kill_cancels_the_handler_whatever_it_does(
        self, harness: RequestPlaneHarness, handler: Callable[[IncomingCall], object]
    ) -> None:
        async def running(call: IncomingCall) -> None:
            entered.set()
            await handler(call)  # type: ignore[misc]

        entered = asyncio.Event()
        async with self.rig(harness, running) as rig:
            call = rig.call(end=False)
            await entered.wait()
            if handler in (send_one_then_be_silent, stream, fill_the_window):
                await take(call)
            call.kill()
            self._check_left(call)
            await until(lambda: len(rig.worker.cancelled) == 1)
            assert rig.worker.told == [True]
            (incoming,) = rig.worker.calls
            assert incoming.killed
            await until(lambda: rig.server.calls == 0)

    async def test_R6_kill_with_items_unread_cancels_the_handler(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness, stream) as rig:
            call = rig.call()
            await call.wait()
            call.kill()
            self._check_left(call)
            await until(lambda: len(rig.worker.cancelled) == 1)

    async def test_R6_kill_before_the_worker_saw_the_call(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness, send_one_then_be_silent) as rig:
            await take(rig.call(request_id="connects"))
            call = rig.call(request_id="killed at once")
            call.kill()
            self._check_left(call)
            await take(rig.call(request_id="comes after it"))
            seen = [call.request.request_id for call in rig.worker.calls]
            await until(lambda: ("killed at once" in rig.worker.cancelled) == ("killed at once" in seen))
            await until(lambda: rig.server.calls == 2)

    async def test_R6_kill_before_anything_was_connected(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness) as rig:
            call = rig.call()
            call.kill()
            self._check_left(call)
            rig.call(request_id="comes after it")
            await until(lambda: rig.server.calls == 1)

    async def test_R6_kill_wakes_its_own_readers_and_writers(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness) as rig:
            call = rig.call(end=False)
            fill(call, raw(500))
            waiting = asyncio.gather(call.wait(), call.writable())
            await asyncio.sleep(0)
            call.kill()
            await waiting

    async def test_R6_kill_after_the_end_does_nothing(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            await put(call, packed(1))

        async with self.rig(harness, handler) as rig:
            call = rig.call()
            assert len(await take_all(call)) == 1
            call.kill()
            call.kill()
            assert call.error is None
            await take_all(rig.call())
            assert rig.worker.told == []

    def _check_left(self, call: OutgoingCall) -> None:
        assert call.ended
        assert call.receive_nowait() is None
        assert isinstance(call.error, CallCancelledError)
        assert call.send(packed(1))  # dropped: nobody is to wait for a window that is gone

    async def test_R7_stop_asks_and_what_is_still_sent_arrives(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            await put(call, packed(1))
            await until(lambda: call.stopped)
            for seed in range(50):
                await put(call, packed(1000, seed))

        async with self.rig(harness, handler) as rig:
            call = rig.call()
            await take(call)
            call.stop()
            call.stop()
            assert shown(*await take_all(call)) == shown(*(packed(1000, seed) for seed in range(50)))
            assert call.error is None
            (incoming,) = rig.worker.calls
            assert not incoming.killed
            assert rig.worker.told == [False]
            call.stop()  # after the end: nothing

    async def test_R7_stop_right_after_the_call_is_heard(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            await until(lambda: call.stopped)

        async with self.rig(harness, handler) as rig:
            call = rig.call()
            call.stop()
            assert await take_all(call) == []
            assert call.error is None

    async def test_R7_a_stopped_call_can_still_be_killed(self, harness: RequestPlaneHarness) -> None:
        async with self.rig(harness) as rig:
            call = rig.call()
            call.stop()
            await until(lambda: rig.worker.told == [False])
            call.kill()
            await until(lambda: rig.worker.told == [False, True])

    async def test_R8_a_broken_link_is_told_from_an_end(
        self, harness: RequestPlaneHarness, fault: str
    ) -> None:
        async def handler(call: IncomingCall) -> None:
            count, _, then = call.request.request_id.partition(" ")
            for _ in range(int(count)):
                await put(call, packed(100))
            if then != "end":
                await forever()

        quick = LIMITS | {"keepalive_s": 0.3}  # for a link that falls silent
        async with (
            self.rig(harness, handler, caller=quick, worker=quick) as rig,
            self.breaking(harness, rig, fault) as break_link,
        ):
            ended = rig.call(request_id="3 end")
            silent, read, partly_read, unread = (
                rig.call(request_id=f"{count} {name}")
                for count, name in ((0, "silent"), (3, "read"), (3, "partly"), (3, "unread"))
            )
            assert len(await take_all(ended)) == 3
            for _ in range(3):
                await take(read)
            await take(partly_read)
            await unread.wait()
            await until(lambda: rig.server.calls == 4)
            await break_link()
            for call, at_most in ((silent, 0), (read, 0), (partly_read, 2), (unread, 3)):
                taken = call.received
                rest = await take_all(call)
                assert len(rest) <= at_most
                assert type(call.error) is StreamBrokenError
                assert call.error.received == call.received == taken + len(rest)
                assert call.error.retry is Retry.UNKNOWN
                assert not call.error.remote
            assert ended.error is None
            await until(lambda: len(rig.worker.cancelled) == 4)
            assert rig.worker.told == [True] * 4
            killed = {call.request.request_id: call.killed for call in rig.worker.calls}
            assert killed == {
                "3 end": False,
                "0 silent": True,
                "3 read": True,
                "3 partly": True,
                "3 unread": True,
            }

    async def test_R8_a_broken_link_wakes_writers_and_readers_on_both_sides(
        self, harness: RequestPlaneHarness, fault: str
    ) -> None:
        async def ended(call: IncomingCall) -> None:
            await call.writable()
            await take_all(call)
            seen.append(call.error)

        def accept(call: IncomingCall) -> None:
            incoming.append(call)
            fill(call, raw(500))
            tasks.append(asyncio.ensure_future(ended(call)))
            blocked.set()

        incoming, tasks, seen, blocked = (
            list[IncomingCall](),
            list[asyncio.Future[None]](),
            list[DynamoError | None](),
            asyncio.Event(),
        )
        quick = LIMITS | {"keepalive_s": 0.3}
        async with (
            self.rig(harness, accept=accept, caller=quick, worker=quick) as rig,
            self.breaking(harness, rig, fault) as break_link,
        ):
            call = rig.call(end=False)
            await blocked.wait()
            await call.wait()  # and not a moment before the link is up
            fill(call, raw(500))
            writer = asyncio.ensure_future(call.writable())
            await asyncio.sleep(0)
            await break_link()
            await writer
            await take_all(call)
            assert isinstance(call.error, StreamBrokenError)
            await asyncio.gather(*tasks)
            assert [type(error) for error in seen] == [StreamBrokenError]

    async def test_R8_an_end_that_was_sent_before_serve_was_left_is_an_end(
        self, harness: RequestPlaneHarness
    ) -> None:
        async def handler(call: IncomingCall) -> None:
            await put(call, packed(100), end=True)

        async with self.rig(harness, handler) as rig:
            calls = [rig.call() for _ in range(20)]
            await until(lambda: len(rig.worker.calls) == 20 and rig.server.calls == 0)
            await rig.leave()
            for call in calls:
                assert len(await take_all(call)) == 1
                assert call.error is None

    async def test_R9_errors_of_every_class_arrive_as_they_were(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            raise sent[int(call.request.request_id)]

        sent = [
            kind(f"{kind.__name__} über \N{SNOWMAN}\nzweite Zeile", retry=retry, remote=remote)
            for kind in ERRORS
            for remote in (False, True)
            for retry in Retry
        ]
        async with self.rig(harness, handler) as rig:
            calls = [rig.call(request_id=str(number)) for number in range(len(sent))]
            for call, error in zip(calls, sent, strict=True):
                assert await take_all(call) == []
                assert described(call.error) == described(error)
                assert call.error is not error

    async def test_R9_what_an_error_carries_arrives(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            raise sent[int(call.request.request_id)]

        sent: list[DynamoError] = [
            RemoteError("KeyError: 'x'", type_name="KeyError", status=503, detail="no 'x' here"),
            RemoteError("bare"),
            RemoteError("with an empty detail", type_name="a.b.C", status=-1, detail=""),
            StreamBrokenError("downstream broke", received=17, remote=True),
        ]
        async with self.rig(harness, handler) as rig:
            for number, error in enumerate(sent):
                call = rig.call(request_id=str(number))
                await take_all(call)
                assert described(call.error) == described(error)

    async def test_R9_an_error_comes_after_the_items_before_it(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            for seed in range(200):  # far more than the window
                call.send(packed(500, seed))
            raise RemoteError("in the end", type_name="ValueError")

        async with self.rig(harness, handler) as rig:
            call = rig.call()
            assert shown(*await take_all(call)) == shown(*(packed(500, seed) for seed in range(200)))
            assert described(call.error) == described(RemoteError("in the end", type_name="ValueError"))

    async def test_R9_after_an_item_nothing_is_safe_to_retry(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            await put(call, packed(1))
            raise sent[int(call.request.request_id)]

        sent = [errors.OverloadedError("after all", retry=retry) for retry in Retry]
        async with self.rig(harness, handler) as rig:
            for number, expected in enumerate((Retry.UNKNOWN, Retry.UNKNOWN, Retry.NEVER)):
                call = rig.call(request_id=str(number))
                assert len(await take_all(call)) == 1
                assert type(call.error) is errors.OverloadedError
                assert call.error.retry is expected

    async def test_R10_items_go_on_coming_after_the_input_ended(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            arrived.append(shown(*await take_all(call)))
            assert call.error is None
            for seed in range(100):
                await put(call, packed(500, seed))

        arrived: list[list[str]] = []
        inputs = [packed(100), packed(3)]
        async with self.rig(harness, handler) as rig:
            at_once = rig.call()
            with_the_item, by_itself = rig.call(end=False), rig.call(end=False)
            for call in (with_the_item, by_itself):
                await put(call, inputs[0])
            with_the_item.send(inputs[1], end=True)
            await put(by_itself, inputs[1])
            by_itself.end()
            by_itself.end()
            for call in (at_once, with_the_item, by_itself):
                assert len(await take_all(call)) == 100
                assert call.error is None
            assert sorted(arrived) == sorted([[], shown(*inputs), shown(*inputs)])

    async def test_R10_the_end_of_the_response_ends_both(self, harness: RequestPlaneHarness) -> None:
        async def handler(call: IncomingCall) -> None:
            await put(call, packed(100), end=True)

        async with self.rig(harness, handler) as rig:
            call = rig.call(end=False)
            assert len(await take_all(call)) == 1
            assert call.error is None
            for seed in range(100):
                await put(call, packed(500, seed))  # dropped
            call.end()
            await until(lambda: rig.server.calls == 0)
            assert call.error is None

    async def test_R10_the_worker_sees_an_input_that_is_still_open(
        self, harness: RequestPlaneHarness
    ) -> None:
        async with self.rig(harness) as rig:
            call = rig.call(end=False)
            await until(lambda: len(rig.worker.calls) == 1)
            (incoming,) = rig.worker.calls
            assert not incoming.ended
            call.end()
            await until(lambda: incoming.ended)
            assert incoming.error is None
            assert not incoming.killed
            assert not call.ended


def described(error: DynamoError | None) -> dict[str, object]:
    """All that a caller can see of an error."""
    return {"class": type(error), "text": str(error), **vars(error)} if error is not None else {}
