"""Response streams and duplex calls: reading, leaving, dropping, breaking, resuming; Dynamo's spellings."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo.core import availability
from dynamo.core.client import Client
from dynamo.core.codec import decode, encode
from dynamo.core.context import Context
from dynamo.core.errors import (
    BadPayloadError,
    CallCancelledError,
    ClosedError,
    ConfigError,
    DeadlineError,
    DrainingError,
    EncodeError,
    NoInstancesError,
    OverloadedError,
    RemoteError,
    StreamBrokenError,
    TooLargeError,
)
from dynamo.core.peers import Peer, Peers
from dynamo.core.ports.request_plane import IncomingCall
from dynamo.core.routing import Strategy
from dynamo.core.streams import Annotated, ResponseStream
from unit.calling import BOUND_S, Worker, World, deployed, fail, refuse, reply, silent, until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for an instance to come back by itself."""
    monkeypatch.setattr(availability, "FIRST_BACKOFF_S", 60.0)
    monkeypatch.setattr(availability, "LONGEST_BACKOFF_S", 60.0)


def breaks_after(worker: Worker, *items: Any) -> None:
    """``worker`` sends these items and its link breaks."""

    def answer(call: IncomingCall) -> None:
        for item in items:
            call.send(encode(item))
        asyncio.get_running_loop().call_soon(worker.server.break_links)

    worker.answer = answer


async def stays_ended(stream: ResponseStream) -> None:
    for _ in range(3):
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(stream), BOUND_S)


def nothing_left(world: World, client: Client) -> None:
    assert not client._out.active
    assert all(peer.in_flight == 0 for peer in world.memberships.of(client.endpoint_id).peers.by_id.values())


# Reading


async def test_a_stream_gives_its_items_in_order_and_stays_ended() -> None:
    async with deployed() as world:
        await world.worker(reply(*range(100)))
        client = await world.ready_client()
        async with client.stream("go") as items:
            assert [item async for item in items] == list(range(100))
            await stays_ended(items)
        await stays_ended(items)
        nothing_left(world, client)


async def test_a_stream_can_be_awaited_or_iterated_at_once() -> None:
    async with deployed() as world:
        await world.worker(reply(1, 2, 3))
        client = await world.ready_client()
        assert [item async for item in await client.stream("go")] == [1, 2, 3]
        assert [item async for item in client.stream("go")] == [1, 2, 3]
        async with await client.stream("go") as items:
            assert [item async for item in items] == [1, 2, 3]
        nothing_left(world, client)


async def test_a_request_is_sent_before_the_stream_is_read() -> None:
    async with deployed() as world:
        worker = await world.worker(reply(1))
        client = await world.ready_client()
        stream = client.stream("go")
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        assert [item async for item in stream] == [1]


async def test_a_stream_without_items_just_ends() -> None:
    async with deployed() as world:
        await world.worker(reply())
        client = await world.ready_client()
        assert [item async for item in client.stream("go")] == []


async def test_a_stream_knows_who_answers_it() -> None:
    async with deployed() as world:
        worker = await world.worker(reply(1))
        client = await world.ready_client()
        async with client.stream("go") as items:
            assert items.instance == worker.instance
            assert items.attempts == 1
            await anext(items)
            assert items.request_id == worker.calls[0].request.request_id


async def test_no_instance_is_told_on_entering_awaiting_or_reading() -> None:
    async with deployed(instance_wait_s=0.02) as world:
        client = await world.ready_client()
        with pytest.raises(NoInstancesError):
            async with client.stream("go"):
                raise AssertionError
        with pytest.raises(NoInstancesError):
            await client.stream("go")
        stream = client.stream("go")
        with pytest.raises(NoInstancesError):
            await anext(stream)
        await stays_ended(stream)
        nothing_left(world, client)


async def test_cancelling_the_entering_leaves_nothing() -> None:
    async with deployed(instance_wait_s=60) as world:
        client = await world.ready_client()

        async def enter() -> None:
            async with client.stream("go", timeout_s=60):
                raise AssertionError

        entering = asyncio.create_task(enter())
        await until(lambda: world.memberships.of(client.endpoint_id).waiters)
        entering.cancel()
        await asyncio.gather(entering, return_exceptions=True)
        nothing_left(world, client)
        assert not world.memberships.of(client.endpoint_id).waiters


async def test_an_error_comes_after_the_items_before_it_and_then_it_stays_ended() -> None:
    async with deployed() as world:
        await world.worker(fail(RemoteError("ValueError: no more"), 1, 2))
        client = await world.ready_client()
        stream, got = client.stream("go"), []
        with pytest.raises(RemoteError, match="no more"):
            async for item in stream:
                got.append(item)
        assert got == [1, 2]
        await stays_ended(stream)
        nothing_left(world, client)


async def test_a_timed_out_read_loses_nothing_and_cancels_nothing() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        async with client.stream("go") as items:
            got = []
            for number in range(20):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(items), 0.001)
                worker.calls[0].send(encode(number))
                got.append(await asyncio.wait_for(anext(items), BOUND_S))
            assert got == list(range(20))
            assert worker.cancelled == []
            worker.calls[0].end()
            await stays_ended(items)


@pytest.mark.parametrize("before", [0, 1], ids=["the first item", "a later item"])
async def test_a_second_reader_is_told_and_takes_nothing_from_the_first(before: int) -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        async with client.stream("go") as items:
            await asyncio.wait_for(worker.came.wait(), BOUND_S)
            for number in range(before):
                worker.calls[0].send(encode(number))
                assert await asyncio.wait_for(anext(items), BOUND_S) == number
            first = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="let one task read it"):
                await asyncio.wait_for(anext(items), BOUND_S)
            worker.calls[0].send(encode("mine"))
            assert await asyncio.wait_for(first, BOUND_S) == "mine"
            worker.calls[0].end()
            await stays_ended(items)


async def test_reads_that_race_with_their_timeout_lose_nothing() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        async with client.stream("go") as items:
            await asyncio.wait_for(worker.came.wait(), BOUND_S)
            loop, number = asyncio.get_running_loop(), 0
            got: list[int] = []
            while len(got) < 200:
                reading = asyncio.ensure_future(anext(items))
                if number < 200:
                    worker.calls[0].send(encode(number))
                    number += 1
                for _ in range(len(got) % 5):
                    await asyncio.sleep(0)
                loop.call_soon(reading.cancel)
                try:
                    got.append(await reading)
                except asyncio.CancelledError:
                    got.append(await asyncio.wait_for(anext(items), BOUND_S))
            assert got == list(range(200))


async def test_a_timed_out_read_of_a_waiting_request_goes_on_waiting() -> None:
    async with deployed(instance_wait_s=60) as world:
        client = await world.ready_client()
        stream = client.stream("go")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.002)
        await world.worker(reply(1))
        assert await asyncio.wait_for(anext(stream), BOUND_S) == 1
        await stays_ended(stream)


async def test_raw_items_arrive_as_memoryviews_where_asked() -> None:
    async with deployed() as world:
        await world.worker(reply(b"one", {"two": b"2"}))
        client = await world.ready_client()
        one, two = [item async for item in client.stream("go", buffers=True)]
        assert (type(one), bytes(one), two) == (memoryview, b"one", {"two": b"2"})


async def test_what_cannot_be_decoded_fails_its_stream() -> None:
    def answer(call: IncomingCall) -> None:
        call.send(encode(1))
        call.send(b"\xc1")

    async with deployed() as world:
        worker = await world.worker(answer)
        client = await world.ready_client()
        stream = client.stream("go")
        assert await anext(stream) == 1
        with pytest.raises(BadPayloadError):
            await anext(stream)
        await stays_ended(stream)
        await until(lambda: worker.cancelled == [True])


# Leaving


async def leave_by_break(stream: ResponseStream) -> None:
    async with stream as items:
        async for _ in items:
            break


async def leave_by_exception(stream: ResponseStream) -> None:
    with pytest.raises(LookupError):
        async with stream as items:
            await anext(items)
            raise LookupError


async def leave_by_aclose(stream: ResponseStream) -> None:
    await anext(stream)
    await stream.aclose()
    await stream.aclose()


async def leave_by_cancellation(stream: ResponseStream) -> None:
    got = asyncio.Event()

    async def read() -> None:
        async with stream as items:
            async for _ in items:
                got.set()

    reading = asyncio.create_task(read())
    await asyncio.wait_for(got.wait(), BOUND_S)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_exception, leave_by_aclose, leave_by_cancellation]
)
async def test_leaving_early_cancels_the_worker(leave: Any) -> None:
    async with deployed() as world:
        worker = await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        stream = client.stream("go", timeout_s=60)
        await leave(stream)
        await until(lambda: worker.cancelled == [True])
        nothing_left(world, client)
        await stays_ended(stream)


async def test_dropping_the_last_reference_cancels_the_worker() -> None:
    async with deployed() as world:
        worker = await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        context = Context()
        stream = client.stream("go", timeout_s=60, idle_timeout_s=60, context=context)
        assert await anext(stream) == 1
        del stream
        await until(lambda: worker.cancelled == [True])
        nothing_left(world, client)
        assert not context._hooks


async def test_dropping_a_stream_in_another_thread_is_fine() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        asyncio.get_running_loop().set_debug(True)  # which checks the thread of every callback
        held = [client.stream("go")]
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        thread = threading.Thread(target=held.clear)
        thread.start()
        await asyncio.to_thread(thread.join, BOUND_S)
        await until(lambda: worker.cancelled == [True])
        asyncio.get_running_loop().set_debug(False)
        nothing_left(world, client)


async def test_a_cancelled_loop_over_a_dropped_stream_cancels_the_worker() -> None:
    async with deployed() as world:
        worker = await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        got = asyncio.Event()

        async def read() -> None:
            async for _ in await client.generate("go"):
                got.set()

        reading = asyncio.create_task(read())
        await asyncio.wait_for(got.wait(), BOUND_S)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        del reading
        gc.collect()
        await until(lambda: worker.cancelled == [True])


async def test_dropping_a_stream_that_waits_for_an_instance_ends_it() -> None:
    async with deployed(instance_wait_s=60) as world:
        client = await world.ready_client()
        stream = client.stream("go")
        del stream
        await until(lambda: not client._out.active)
        worker = await world.worker()
        await until(client.instance_ids)
        assert not worker.calls


async def test_stopping_lets_what_is_still_sent_arrive() -> None:
    async with deployed() as world:
        worker = await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        async with client.stream("go") as items:
            assert await anext(items) == 1
            items.stop()
            await until(lambda: worker.cancelled == [False])
            worker.calls[0].send(encode(2))
            worker.calls[0].send(encode(3), end=True)
            assert [item async for item in items] == [2, 3]


async def test_stopping_before_an_instance_was_found_ends_the_stream() -> None:
    async with deployed(instance_wait_s=60) as world:
        client = await world.ready_client()
        stream = client.stream("go")
        stream.stop()
        await stays_ended(stream)
        nothing_left(world, client)


async def test_a_stopped_stream_that_breaks_has_not_just_ended() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        async with client.stream("go", idempotent=True) as items:
            await asyncio.wait_for(worker.came.wait(), BOUND_S)
            items.stop()
            worker.server.break_links()
            with pytest.raises(StreamBrokenError):
                await anext(items)
        assert len(worker.calls) == 1


async def test_killing_the_context_ends_the_stream_with_an_error() -> None:
    async with deployed() as world:
        worker = await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        context = Context()
        stream = client.stream("go", context=context)
        assert await anext(stream) == 1
        context.kill()
        with pytest.raises(CallCancelledError):
            await anext(stream)
        await stays_ended(stream)
        await until(lambda: worker.cancelled == [True])


async def test_a_context_may_be_used_for_many_calls_and_holds_none_of_them() -> None:
    async with deployed() as world:
        await world.worker(reply(1))
        client = await world.ready_client()
        context = Context()
        for _ in range(10):
            assert [item async for item in client.stream("go", context=context)] == [1]
        assert not context._hooks


async def test_closing_the_client_tells_the_reader() -> None:
    async with deployed() as world:
        await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        stream = client.stream("go")
        assert await anext(stream) == 1
        await client.aclose()
        with pytest.raises(ClosedError, match="client was closed during the call"):
            await anext(stream)
        await stays_ended(stream)


# Time


async def test_the_first_item_may_be_bounded() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        stream = client.stream("go", first_item_timeout_s=0.02)
        with pytest.raises(
            DeadlineError, match=r"no answer within 0\.02 s \(first_item_timeout_s\) from instance"
        ):
            await anext(stream)
        await stays_ended(stream)
        await until(lambda: worker.cancelled == [True])


async def test_a_late_first_item_of_an_idempotent_endpoint_is_asked_for_elsewhere() -> None:
    async with deployed() as world:
        slow, good = (
            await world.worker(silent, idempotent=True),
            await world.worker(reply(1), idempotent=True),
        )
        client = await world.ready_client()
        for _ in range(4):
            assert [item async for item in client.stream("go", first_item_timeout_s=0.05)] == [1]
        assert len(slow.calls) == 1  # put aside
        assert len(good.calls) == 4


async def test_each_later_item_may_be_bounded_and_time_goes_on_over_cancelled_reads() -> None:
    async with deployed() as world:
        worker = await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        stream = client.stream("go", idle_timeout_s=0.05)
        assert await anext(stream) == 1
        with pytest.raises(DeadlineError, match=r"no end within 0\.05 s \(idle_timeout_s\)"):
            async with asyncio.timeout(BOUND_S):
                while True:
                    try:
                        await asyncio.wait_for(anext(stream), 0.01)
                    except DeadlineError:
                        raise
                    except TimeoutError:
                        pass
        await until(lambda: worker.cancelled == [True])


async def test_items_that_wait_for_their_reader_are_not_late() -> None:
    async with deployed() as world:
        worker = await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        stream = client.stream("go", first_item_timeout_s=0.02, idle_timeout_s=0.02)
        assert await anext(stream) == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.001)
        worker.calls[0].send(encode(2), end=True)
        await asyncio.sleep(0.05)  # the reader is busy elsewhere for longer than the bound
        assert await anext(stream) == 2
        await stays_ended(stream)


async def test_items_in_time_are_never_late() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        loop = asyncio.get_running_loop()
        async with client.stream("go", first_item_timeout_s=0.2, idle_timeout_s=0.2) as items:
            await asyncio.wait_for(worker.came.wait(), BOUND_S)
            begun, number = loop.time(), 0
            while loop.time() < begun + 0.5:
                loop.call_later(0.01, worker.calls[0].send, encode(number))
                assert await anext(items) == number
                number += 1


async def test_a_deadline_does_not_reach_a_stream_that_has_ended() -> None:
    async with deployed() as world:
        await world.worker(reply(1))
        client = await world.ready_client()
        stream = client.stream("go", timeout_s=0.02)
        assert await anext(stream) == 1
        await asyncio.sleep(0.05)  # the end lies there unread when the deadline passes
        await stays_ended(stream)


async def test_a_deadline_ends_a_stream_though_items_keep_coming() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        loop = asyncio.get_running_loop()
        with pytest.raises(DeadlineError, match=r"no end within 0\.05 s"):
            async with client.stream("go", timeout_s=0.05) as items:
                await asyncio.wait_for(worker.came.wait(), BOUND_S)
                while True:
                    loop.call_later(0.002, worker.calls[0].send, encode(1))
                    await anext(items)
        peers = world.memberships.of(client.endpoint_id).peers
        assert not peers.by_id[worker.id].failures  # it did answer
        nothing_left(world, client)


# Breaking and resuming


async def test_a_broken_stream_tells_how_much_had_arrived() -> None:
    async with deployed() as world:
        worker = await world.worker(idempotent=True)
        other = await world.worker(idempotent=True)
        for one in (worker, other):
            breaks_after(one, 1, 2)
        client = await world.ready_client()
        stream, got = client.stream("go"), []
        with pytest.raises(StreamBrokenError) as caught:
            async for item in stream:
                got.append(item)
        assert (got, caught.value.received) == ([1, 2], 2)
        assert len(worker.calls) + len(other.calls) == 1  # not sent again, idempotent or not
        await stays_ended(stream)


async def test_a_stream_that_broke_goes_on_where_the_caller_says() -> None:
    async with deployed() as world:
        workers = [await world.worker() for _ in range(3)]

        def count(worker: Worker) -> None:
            def answer(call: IncomingCall) -> None:
                assert call.request.payload is not None
                first = decode(call.request.payload)["from"]
                for number in range(first, min(first + 3, 10)):
                    call.send(encode(number))
                if first + 3 >= 10:
                    call.end()
                else:
                    asyncio.get_running_loop().call_soon(worker.server.break_links)

            worker.answer = answer

        for worker in workers:
            count(worker)
        client = await world.ready_client()
        seen: list[list[int]] = []

        def resume(request: Any, items: list[Any]) -> Any:
            seen.append(list(items))
            return {**request, "from": len(items)}

        async with client.stream({"from": 0}, resume=resume) as items:
            assert [item async for item in items] == list(range(10))
            assert items.attempts == 4
        assert [len(items) for items in seen] == [3, 6, 9]
        calls = [call.request for worker in workers for call in worker.calls]
        assert sorted(call.attempt for call in calls) == [1, 2, 3, 4]
        assert len({call.request_id for call in calls}) == 1


async def test_resuming_without_progress_ends_after_three_attempts() -> None:
    async with deployed() as world:
        workers = [await world.worker() for _ in range(5)]
        for worker in workers:
            breaks_after(worker, *([1] if worker is workers[0] else []))
        client = await world.ready_client()
        stream = client.stream({}, instance=workers[0].id, resume=lambda request, items: request)
        assert await anext(stream) == 1
        breaks_after(workers[0])
        with pytest.raises(StreamBrokenError):
            await anext(stream)
        assert len(workers[0].calls) == 3


async def test_a_resume_that_raises_ends_the_stream_with_its_error() -> None:
    async with deployed() as world:
        worker = await world.worker()
        breaks_after(worker, 1)
        client = await world.ready_client()

        def resume(request: Any, items: list[Any]) -> Any:
            raise LookupError("cannot go on")

        stream = client.stream({}, resume=resume)
        assert await anext(stream) == 1
        with pytest.raises(LookupError, match="cannot go on"):
            await anext(stream)
        await stays_ended(stream)


async def test_a_handlers_error_is_not_resumed() -> None:
    async with deployed() as world:
        worker = await world.worker(fail(StreamBrokenError("its own"), 1))
        client = await world.ready_client()
        stream = client.stream({}, resume=lambda request, items: request)
        assert await anext(stream) == 1
        with pytest.raises(StreamBrokenError, match="its own"):
            await anext(stream)
        assert len(worker.calls) == 1


async def test_the_request_is_let_go_once_it_was_answered() -> None:
    async with deployed() as world:
        await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        async with client.stream("x" * 1000) as items:
            await anext(items)
            assert items._exchange.request is None


# Dynamo's spellings


@pytest.mark.parametrize("spelling", ["generate", "random", "round_robin", "direct"])
async def test_dynamos_calls_give_annotated_items(spelling: str) -> None:
    async with deployed() as world:
        worker = await world.worker(reply(1, None, {"token": "x"}))
        client = await world.ready_client()
        extra = (worker.id,) if spelling == "direct" else ()
        stream = await getattr(client, spelling)({"prompt": "hi"}, *extra)
        items = [item async for item in stream]
        assert [item.data() for item in items] == [1, None, {"token": "x"}]
        assert [(item.id(), item.event(), item.comments(), item.is_error()) for item in items] == [
            (None, None, None, False)
        ] * 3
        plain = await getattr(client, spelling)({"prompt": "hi"}, *extra, annotated=False)
        assert [item async for item in plain] == [1, None, {"token": "x"}]


async def test_a_handler_may_yield_the_envelope_itself() -> None:
    envelope = {
        "_dynamo_annotated": True,
        "data": {"x": 1},
        "id": "7",
        "event": "note",
        "comment": ["a", "b"],
    }
    async with deployed() as world:
        await world.worker(reply(envelope, {"_dynamo_annotated": True, "event": "ping"}, {"data": 3}))
        client = await world.ready_client()
        first, second, third = [item async for item in await client.generate(0)]
        assert (first.data(), first.id(), first.event(), first.comments()) == (
            {"x": 1},
            "7",
            "note",
            ["a", "b"],
        )
        assert (second.data(), second.event(), second.is_error()) == (None, "ping", False)
        assert third.data() == {"data": 3}
        plain = [item async for item in await client.generate(0, annotated=False)]
        assert plain == [{"x": 1}, None, {"data": 3}]
        assert await anext(client.stream(0)) == envelope


async def test_an_error_envelope_is_an_error_item_or_an_error() -> None:
    error = {"_dynamo_annotated": True, "event": "error", "comment": ["out of memory"]}
    async with deployed() as world:
        await world.worker(reply(1, error))
        client = await world.ready_client()
        items = [item async for item in await client.generate(0)]
        assert [item.is_error() for item in items] == [False, True]
        assert items[1].comments() == ["out of memory"]
        plain = await client.generate(0, annotated=False)
        assert await anext(plain) == 1
        with pytest.raises(ValueError, match="out of memory"):
            await anext(plain)
        await stays_ended(plain)


def test_annotated_shows_what_it_has() -> None:
    assert repr(Annotated({"a": 1})) == "Annotated({'a': 1})"
    assert repr(Annotated(1, event="note")) == "Annotated(1, event='note')"


async def test_what_cannot_be_encoded_is_a_type_error_at_the_call() -> None:
    async with deployed() as world:
        await world.worker()
        client = await world.ready_client()
        for call in (client.generate, client.random, client.round_robin, client.stream):
            with pytest.raises(TypeError):
                call(object())
        with pytest.raises(EncodeError):
            client.direct(object(), 1)


async def test_no_worker_and_an_unknown_id_are_errors_at_the_await() -> None:
    async with deployed(instance_wait_s=0.02) as world:
        client = await world.ready_client()
        pending = client.generate(0)
        with pytest.raises(NoInstancesError):
            await pending
        await world.worker()
        await until(client.instance_ids)
        pending = client.direct(0, 12345)
        with pytest.raises(NoInstancesError):
            await pending


async def test_dynamos_calls_take_a_context() -> None:
    async with deployed() as world:
        worker = await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        context = Context("mine", {"user": "me"})
        stream = await client.round_robin(0, context=context)
        assert (await anext(stream)).data() == 1
        request = worker.calls[0].request
        assert (request.request_id, dict(request.metadata)) == ("mine", {"user": "me"})
        context.stop_generating()
        await until(lambda: worker.cancelled == [False])
        worker.calls[0].end()
        await stays_ended(stream)


async def test_a_break_cancels_nothing_while_a_reference_lives() -> None:
    async with deployed() as world:
        worker = await world.worker(reply(1, 2, 3))
        client = await world.ready_client()
        stream = await client.generate(0, annotated=False)
        async for item in stream:
            assert item == 1
            break
        assert [item async for item in stream] == [2, 3]
        assert worker.cancelled == []


async def test_generate_uses_the_clients_strategy() -> None:
    async with deployed() as world:
        workers = [await world.worker(reply(1)) for _ in range(2)]
        client = await world.ready_client(strategy="direct", instance=workers[1].id)
        for _ in range(3):
            async for _ in await client.generate(0):
                pass
        assert [len(worker.calls) for worker in workers] == [0, 3]


# Duplex


running = set[asyncio.Task[None]]()


def echoing(call: IncomingCall) -> None:
    """Send back every input item, until the input ends."""

    async def run() -> None:
        if call.request.payload is not None:
            call.send(call.request.payload)
        while not call.ended:
            if (payload := call.receive_nowait()) is None:
                await call.wait()
            else:
                call.send(payload)
                await call.writable()
        call.end()

    task = asyncio.create_task(run())
    running.add(task)
    task.add_done_callback(running.discard)


async def test_both_directions_stream() -> None:
    async with deployed() as world:
        await world.worker(echoing)
        client = await world.ready_client()
        async with client.duplex("first") as call:
            assert await anext(call) == "first"
            for number in range(5):
                await call.send(number)
                assert await anext(call) == number
            call.end_input()
            call.end_input()
            await stays_ended(call)
        nothing_left(world, client)


async def test_a_duplex_call_may_begin_without_an_item() -> None:
    async with deployed() as world:
        worker = await world.worker(echoing)
        client = await world.ready_client()
        async with client.duplex() as call:
            await asyncio.wait_for(worker.came.wait(), BOUND_S)
            assert worker.calls[0].request.payload is None
            await call.send("x")
            assert await anext(call) == "x"


async def test_the_input_may_come_from_an_async_iterable() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(200):
            yield number

    async with deployed(window_bytes=2048) as world:
        await world.worker(echoing)
        client = await world.ready_client()
        async with client.duplex(inputs=numbers()) as call:
            assert [item async for item in call] == list(range(200))
        nothing_left(world, client)


async def test_inputs_that_cannot_be_iterated_are_told() -> None:
    class Broken:
        def __aiter__(self) -> Any:
            raise LookupError("no prompts")

    async with deployed() as world:
        await world.worker(echoing)
        client = await world.ready_client()
        with pytest.raises(ConfigError, match=r"^inputs=\[1, 2\]: expected an async iterable"):
            client.duplex(inputs=[1, 2])  # type: ignore[arg-type]
        with pytest.raises(LookupError, match="no prompts"):
            await asyncio.wait_for(anext(client.duplex(inputs=Broken())), BOUND_S)
        await until(lambda: not world.plane.calls)


async def test_tasks_that_send_side_by_side_all_get_their_items_out() -> None:
    async with deployed(window_bytes=2048) as world:
        await world.worker(echoing)
        client = await world.ready_client()
        async with client.duplex() as call:

            async def send(text: str) -> None:
                for _ in range(50):
                    await call.send(text)

            async def read() -> list[str]:
                return [await anext(call) for _ in range(150)]

            async with asyncio.timeout(BOUND_S):
                sending = asyncio.gather(*(send(letter * 100) for letter in "abc"))
                got, _ = await asyncio.gather(read(), sending)
            assert sorted(got) == [letter * 100 for letter in "abc" for _ in range(50)]


async def test_an_input_that_raises_ends_the_call_with_its_error() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        raise LookupError("no more prompts")

    async with deployed() as world:
        worker = await world.worker(echoing)
        client = await world.ready_client()
        async with client.duplex(inputs=numbers()) as call:
            with pytest.raises(LookupError, match="no more prompts"):
                async for item in call:
                    assert item == 1
        await until(lambda: True in worker.cancelled)
        nothing_left(world, client)


@pytest.mark.parametrize("last", [1, object()], ids=["the worker ends it", "an item cannot be encoded"])
async def test_an_input_cleans_up_when_the_call_ends(last: object) -> None:
    cleaned = asyncio.Event()

    async def items() -> AsyncIterator[object]:
        try:
            while True:
                yield last
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    async with deployed() as world:
        await world.worker(reply("done"))
        client = await world.ready_client()
        call = client.duplex(inputs=items())
        try:
            assert await anext(call) == "done"
        except EncodeError:
            assert last != 1
        await asyncio.wait_for(cleaned.wait(), BOUND_S)


async def test_an_input_without_end_leaves_the_reader_its_turn() -> None:
    async def numbers() -> AsyncIterator[int]:
        while True:
            yield 1

    async with deployed() as world:
        await world.worker(reply(*range(10)))
        client = await world.ready_client()
        begun = asyncio.get_running_loop().time()
        async with client.duplex("go", inputs=numbers()) as call:
            for _ in range(1000):
                await asyncio.sleep(0)  # the answer is whole, and nobody has read it
            assert [item async for item in call] == list(range(10))
        assert asyncio.get_running_loop().time() < begun + BOUND_S


async def test_leaving_a_duplex_call_ends_its_input() -> None:
    closed = []

    async def numbers() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async with deployed() as world:
        worker = await world.worker(echoing)
        client = await world.ready_client()
        async with client.duplex(inputs=numbers()) as call:
            assert await anext(call) == 1
        assert closed == [True]
        await until(lambda: True in worker.cancelled and not running)
        nothing_left(world, client)


async def test_dropping_a_duplex_call_ends_its_input() -> None:
    async def numbers() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 1

    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        before = asyncio.all_tasks()
        call = client.duplex(inputs=numbers())
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        del call
        await until(lambda: worker.cancelled == [True])
        await until(lambda: asyncio.all_tasks() <= before)


async def test_sending_waits_for_the_window() -> None:
    async with deployed(window_bytes=1024) as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        async with client.duplex() as call:
            await call.send(b"x" * 2000)
            sending = asyncio.create_task(call.send("second"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not sending.done()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            incoming = worker.calls[0]
            await incoming.wait()
            assert incoming.receive_nowait() is not None
            await asyncio.wait_for(call.send("third"), BOUND_S)
            await incoming.wait()
            payload = incoming.receive_nowait()
            assert payload is not None
            assert decode(payload) == "third"  # the cancelled one was not sent


async def test_sending_after_the_worker_ended_is_told() -> None:
    async with deployed() as world:
        await world.worker(reply(1))
        client = await world.ready_client()
        async with client.duplex("x") as call:
            assert [item async for item in call] == [1]
            with pytest.raises(ClosedError, match="takes no more input"):
                await call.send(2)


async def test_sending_after_the_input_ended_is_told() -> None:
    async with deployed() as world:
        await world.worker(echoing)
        client = await world.ready_client()
        async with client.duplex() as call:
            call.end_input()
            with pytest.raises(ClosedError, match="end_input"):
                await call.send(1)
            await stays_ended(call)


async def test_an_item_past_the_limit_fails_its_send_alone() -> None:
    async with deployed(max_message_bytes=4096) as world:
        await world.worker(echoing)
        client = await world.ready_client()
        async with client.duplex() as call:
            with pytest.raises(TooLargeError):
                await call.send("x" * 5000)
            with pytest.raises(EncodeError):
                await call.send(object())
            await call.send("y")
            assert await anext(call) == "y"


async def test_a_duplex_call_moves_on_while_only_its_opening_item_was_sent() -> None:
    async with deployed() as world:
        refusing = await world.worker(refuse(DrainingError("going")))
        await world.worker(echoing)
        client = await world.ready_client()
        for _ in range(2):
            async with client.duplex("open") as call:
                assert await anext(call) == "open"
                call.end_input()
                await stays_ended(call)
        assert len(refusing.calls) <= 1


async def test_sending_finds_out_that_the_call_was_refused_and_moves_it() -> None:
    async with deployed() as world:
        refusing = await world.worker(refuse(DrainingError("going")), instance_id=1)
        await world.worker(echoing, instance_id=2)

        class LowestFirst(Strategy):
            def pick(self, peers: Peers) -> Peer | None:
                return min(peers.ready, key=lambda peer: peer.instance_id, default=None)

        client = await world.ready_client(strategy=LowestFirst())
        async with client.duplex("open") as call:
            await asyncio.wait_for(refusing.came.wait(), BOUND_S)
            for _ in range(5):
                await asyncio.sleep(0)  # the refusal arrives, and nobody reads it
            await call.send("more")
            assert [await anext(call), await anext(call)] == ["open", "more"]
            assert call.attempts == 2


async def test_a_duplex_call_does_not_move_once_more_was_sent() -> None:
    async with deployed() as world:
        worker, other = await world.worker(silent), await world.worker(silent)
        client = await world.ready_client()
        async with client.duplex("open", instance=worker.id) as call:
            await call.send("more")
            await asyncio.wait_for(worker.came.wait(), BOUND_S)
            worker.calls[0].refuse(OverloadedError("full"))
            with pytest.raises(OverloadedError):
                await anext(call)
            with pytest.raises(OverloadedError):
                await call.send("again")
        assert not other.calls


async def test_an_end_of_input_before_an_instance_was_found_is_not_forgotten() -> None:
    async with deployed() as world:
        client = await world.ready_client()
        async with asyncio.timeout(BOUND_S):
            call = client.duplex("open")
            call.end_input()
            worker = await world.worker(echoing)
            assert [item async for item in call] == ["open"]
        assert worker.calls[0].request.end


async def test_an_end_of_input_before_a_retry_is_not_forgotten() -> None:
    async with deployed() as world:
        worker = await world.worker(refuse(OverloadedError("full")))
        client = await world.ready_client()
        async with client.duplex("open") as call:
            call.end_input()
            reading = asyncio.create_task(anext(call))
            await until(lambda: len(worker.calls) >= 2)
            worker.answer = echoing
            assert await reading == "open"
            await stays_ended(call)
        assert worker.calls[-1].request.end
