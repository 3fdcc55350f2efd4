"""A call from its opening to each of its ends, as the two applications see it."""

from __future__ import annotations

import gc
import weakref

import pytest

from dynamo.core import errors
from dynamo.core.errors import (
    CallCancelledError,
    ConfigError,
    DeadlineError,
    DrainingError,
    DynamoError,
    EncodeError,
    OverloadedError,
    RemoteError,
    Retry,
    StreamBrokenError,
    TooLargeError,
    UnavailableError,
    UnknownEndpointError,
    WireError,
)
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.faults import CLASSES, MAX_TEXT, decode_error, encode_error
from dynamo.core.wire.frames import END, ERROR, F_END, ITEM, ITEM_COST, KILL, OPEN, STOP
from dynamo.core.wire.opening import Options
from dynamo.core.wire.outbox import EAGER_PARTS, QUICK_BYTES
from unit.wire.pair import Pair, read
from unit.wire.vectors import frames_in


def output(connection: Connection) -> list[tuple[int, int, int, bytes]]:
    return frames_in(b"".join(map(bytes, connection.take_output(2**20))))


def test_the_request_arrives_as_it_was_opened() -> None:
    pair = Pair()
    _, worker = pair.call(
        memoryview(b"raw"), metadata={"traceparent": "00-1-2-01"}, timeout_s=2.25, attempt=3, priority=-5
    )
    request = worker.request
    assert isinstance(request.payload, memoryview)
    assert (bytes(request.payload), request.end) == (b"raw", True)
    assert (request.endpoint, request.request_id, request.attempt) == ("a.b.c", "r-1", 3)
    assert (request.timeout_s, request.priority, request.metadata) == (2.25, -5, {"traceparent": "00-1-2-01"})


def test_a_worker_without_handlers_refuses() -> None:
    pair = Pair()
    pair.listener = Connection(Options(), pair.listener_budget, dialer=False)
    caller = pair.open()
    pair.settle()
    assert isinstance(caller.error, UnknownEndpointError)


def test_an_end_right_after_an_item_rides_on_it() -> None:
    pair = Pair()
    caller, worker = pair.call()
    assert not caller.answered
    worker.send(b"\x01")
    worker.send(b"\x02")
    worker.end()
    worker.end()
    frames = output(pair.listener)
    assert [(kind, flags) for kind, flags, *_ in frames] == [(ITEM, 0), (ITEM, F_END)]


def test_an_end_after_its_item_was_written_is_a_frame() -> None:
    pair = Pair()
    _, worker = pair.call()
    worker.send(b"\x01")
    assert [kind for kind, *_ in output(pair.listener)] == [ITEM]
    worker.end()
    assert [kind for kind, *_ in output(pair.listener)] == [END]


def test_an_end_rides_on_no_other_streams_item() -> None:
    pair = Pair()
    (_, first), (_, second) = pair.call(), pair.call()
    first.send(b"\x01")
    second.send(b"\x02")
    first.end()
    assert [(kind, flags, stream) for kind, flags, stream, _ in output(pair.listener)] == [
        (ITEM, 0, 1),
        (ITEM, 0, 2),
        (END, 0, 1),
    ]


def test_sending_after_the_end_is_dropped_and_the_receiving_side_tells_why() -> None:
    pair = Pair()
    caller, worker = pair.call()
    worker.fail(RemoteError("ValueError: no", type_name="ValueError"))
    assert worker.send(b"late")
    assert worker.send(b"late", end=True)
    worker.end()
    worker.fail(DynamoError("later"))
    assert worker.can_send
    pair.settle()
    assert read(caller) == []
    assert str(caller.error) == "ValueError: no"


def test_an_error_arrives_after_the_items_before_it_even_if_these_must_wait() -> None:
    pair = Pair(Options(window_bytes=200))
    caller, worker = pair.call()
    for number in range(10):
        worker.send(bytes([number]))
    worker.fail(RemoteError("boom", type_name="E"))
    got: list[object] = []
    for _ in range(20):
        assert caller.error is None
        assert not caller.ended
        pair.settle()
        got += read(caller)
        if caller.ended:
            break
    assert got == [bytes([number]) for number in range(10)]
    assert isinstance(caller.error, RemoteError)


def test_a_refusal_is_safe_whatever_the_error_says() -> None:
    pair = Pair()
    caller, worker = pair.call()
    worker.refuse(OverloadedError("full", retry=Retry.NEVER))
    pair.settle()
    assert isinstance(caller.error, OverloadedError)
    assert caller.error.retry is Retry.SAFE
    assert pair.listener.open_streams == 0


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_of_error_arrives_as_itself(kind: type[DynamoError]) -> None:
    pair = Pair()
    caller, worker = pair.call()
    worker.fail(kind("why"))
    pair.settle()
    assert type(caller.error) is kind
    assert caller.error.message == "why"
    assert caller.error.retry is kind("why").retry


def test_every_class_that_a_caller_may_meet_has_a_code() -> None:
    ours = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, DynamoError) and kind.__module__ == errors.__name__
    }
    assert ours == set(CLASSES)


def test_an_error_class_of_somebody_else_arrives_as_the_nearest_of_ours() -> None:
    class Special(ConfigError):
        pass

    assert type(decode_error(encode_error(Special("x")))) is ConfigError


def test_texts_of_errors_are_cut_and_never_break_the_encoding() -> None:
    error = decode_error(encode_error(RemoteError("é" * 100_000, type_name="\ud800" * 10_000, detail="ab")))
    assert isinstance(error, RemoteError)
    assert len(str(error).encode()) == MAX_TEXT
    assert len(error.type_name) <= MAX_TEXT
    assert error.detail == "ab"
    assert decode_error(encode_error(RemoteError("x", status=2**40))).__dict__["status"] is None


# Leaving early.


def test_kill_reaches_the_worker_and_what_was_on_its_way_is_dropped() -> None:
    pair = Pair()
    caller, worker = pair.call()
    cancels: list[bool] = []
    worker.on_cancel = cancels.append
    worker.send(b"\x01")
    caller.kill()
    caller.kill()
    assert isinstance(caller.error, CallCancelledError)
    pair.settle()
    assert cancels == [True]
    assert worker.killed
    assert worker.ended
    assert not worker.stopped
    assert worker.send(b"more")
    pair.settle()
    assert caller.ended
    assert read(caller) == []
    assert (pair.dialer.open_streams, pair.listener.open_streams) == (0, 0)


def test_stop_reaches_the_worker_once_and_what_it_still_sends_arrives() -> None:
    pair = Pair()
    caller, worker = pair.call()
    cancels: list[bool] = []
    worker.on_cancel = cancels.append
    caller.stop()
    caller.stop()
    pair.settle()
    assert cancels == [False]
    assert worker.stopped
    assert not worker.killed
    worker.send(b"\x01", end=True)
    pair.settle()
    assert read(caller) == [b"\x01"]
    assert caller.error is None


def test_kill_after_the_end_does_nothing_and_before_it_drops_what_was_not_read() -> None:
    pair = Pair()
    caller, worker = pair.call()
    worker.send(b"\x01", end=True)
    pair.settle()
    assert read(caller) == [b"\x01"]
    caller.kill()
    assert caller.error is None
    other, worker = pair.call()
    worker.send(b"\x01", end=True)
    pair.settle()
    other.leave(DeadlineError("too late"))
    assert read(other) == []
    assert isinstance(other.error, DeadlineError)
    assert output(pair.dialer) == []


def test_a_call_killed_before_it_was_written_is_never_sent() -> None:
    pair = Pair()
    pair.settle()
    first, second, third = pair.open(b"1"), pair.open(None), pair.open(b"3")
    first.kill()
    second.kill()
    assert [(kind, stream) for kind, _, stream, _ in output(pair.dialer)] == [(OPEN, third.id)]
    assert pair.dialer.open_streams == 1


def test_calls_that_were_killed_before_they_were_written_are_let_go() -> None:
    """Of a peer that takes nothing: each else holds its request until the connection is given up."""
    dialer = Connection(Options(), ReceiveBudget(2**28), dialer=True)
    kept = dialer.open(Request(endpoint="a.b.c", request_id="kept", payload=bytes(100_000)))
    requests = weakref.WeakSet[Request]()
    for number in range(1000):
        request = Request(endpoint="a.b.c", request_id=f"{number}", payload=bytes(100_000))
        requests.add(request)
        dialer.open(request).kill()
        del request
    gc.collect()
    assert len(requests) < 200
    last = dialer.open(Request(endpoint="a.b.c", request_id="last"))
    assert [kind for kind, *_ in output(dialer)].count(OPEN) >= 1
    assert not kept.ended
    assert not last.ended


@pytest.mark.parametrize("stop", [False, True])
def test_a_duplex_call_killed_before_it_was_written_never_sends_kill_first(stop: bool) -> None:
    pair = Pair()
    pair.settle()
    caller = pair.open(None, end=False)
    caller.send(b"\x01")
    if stop:
        caller.stop()
    caller.kill()
    assert [kind for kind, *_ in output(pair.dialer)] == [OPEN, ITEM, *[STOP] * stop, KILL]


@pytest.mark.parametrize("options", [Options(token="t"), Options(early=False)], ids=["token", "not early"])
def test_a_call_waits_for_the_opening_and_its_stop_and_kill_with_it(options: Options) -> None:
    pair = Pair(options, Options(token=options.token))
    stopped, killed, plain = pair.open(), pair.open(), pair.open(b"x" * 200_000)
    stopped.stop()
    killed.kill()
    pair.settle()
    assert [stream.request.request_id for stream in pair.accepted] == ["r-1", "r-3"]
    assert pair.accepted[0].stopped
    assert len(pair.accepted[1].request.payload or b"") == 200_000
    assert plain.id == 2


# Calls that cannot be.


def test_metadata_past_the_limit_of_the_peer_is_too_large_and_nothing_is_sent() -> None:
    pair = Pair(listener=Options(max_head_bytes=300))
    pair.settle()
    with pytest.raises(TooLargeError, match=r"endpoint and metadata of .* over the limit of 300"):
        pair.open(metadata={"a": "x" * 300})
    with pytest.raises(EncodeError, match="metadata"):
        pair.open(metadata={"a": object()})
    assert output(pair.dialer) == []
    assert pair.dialer_budget.used == 0
    assert pair.dialer.open_streams == 0


def test_more_calls_than_the_peer_takes_are_overloaded_here() -> None:
    pair = Pair(listener=Options(max_streams=2))
    pair.settle()
    calls = [pair.open() for _ in range(3)]
    assert isinstance(calls[2].error, OverloadedError)
    assert calls[2].error.retry is Retry.SAFE
    assert calls[2].ended
    calls[0].kill()
    assert pair.open().error is None


def test_after_goaway_no_call_starts_and_those_that_were_not_taken_are_safe() -> None:
    pair = Pair()
    running, worker = pair.call()
    pair.listener.goaway()
    early = pair.open()  # before it arrived: served
    pair.settle()
    late = pair.open()
    assert isinstance(late.error, DrainingError)
    assert late.error.retry is Retry.SAFE
    assert pair.dialer.draining
    assert not pair.dialer.accepts_calls
    assert len(pair.accepted) == 2
    pair.listener.goaway()
    pair.listener.goaway()
    pair.settle()
    assert (early.error, running.error) == (None, None)
    idle: list[bool] = []
    pair.dialer.on_idle = lambda: idle.append(True)
    for one in pair.accepted:
        one.send(b"\x01", end=True)
    pair.settle()
    assert read(running) == read(early) == [b"\x01"]
    assert idle == [True]
    assert worker.over


def test_a_call_that_crosses_the_second_goaway_never_starts() -> None:
    pair = Pair()
    pair.settle()
    pair.listener.goaway()
    pair.listener.goaway()
    crossing = [pair.open(), pair.open(b"x" * 200_000), pair.open(None, end=False)]
    crossing[2].send(b"\x01")
    pair.settle()
    assert pair.accepted == []
    assert [type(call.error) for call in crossing] == [DrainingError] * 3
    assert all(call.error and call.error.retry is Retry.SAFE for call in crossing)
    assert not pair.listener.closed
    assert pair.dialer_budget.used == 0


# The end of the connection.


def test_a_lost_link_breaks_what_was_sent_and_spares_what_was_not() -> None:
    pair = Pair()
    begun, worker = pair.call()
    worker.send(b"\x01")
    worker.send(b"\x02")
    pair.settle()
    cancels: list[bool] = []
    worker.on_cancel = cancels.append
    assert begun.receive_nowait() == b"\x01"
    handed_out = pair.open()
    pair.dialer.take_output(2**20)
    queued, large = pair.open(), pair.open(b"x" * 200_000)
    pair.cut()
    assert begun.error is None
    assert begun.receive_nowait() == b"\x02"
    for call, count in ((begun, 2), (handed_out, 0)):
        assert isinstance(call.error, StreamBrokenError)
        assert (call.error.received, call.error.retry) == (count, Retry.UNKNOWN)
    for call in (queued, large):
        assert type(call.error) is UnavailableError
        assert call.error.retry is Retry.SAFE
    assert cancels == [True]
    assert isinstance(worker.error, StreamBrokenError)
    assert pair.dialer.take_output(2**20) == pair.listener.take_output(2**20) == []
    assert isinstance(pair.open().error, UnavailableError)
    assert pair.dialer_budget.used == pair.listener_budget.used == 0


@pytest.mark.parametrize("early", [True, False])
def test_a_call_that_waits_for_the_listeners_hello_is_not_lost_with_the_link(early: bool) -> None:
    pair = Pair(Options(early=early))
    calls = [pair.open(), pair.open(b"x" * 200_000)]
    pair.pull()
    pair.cut()
    for call in calls:
        assert call.error is not None
        assert call.error.retry is (Retry.UNKNOWN if early else Retry.SAFE)
    assert (b"a.b.c" in pair.to_listener) is early
    assert pair.dialer_budget.used == 0


def test_closing_still_writes_the_answers_of_calls_that_ended_and_then_the_reason() -> None:
    pair = Pair()
    caller, worker = pair.call()
    open_call, open_worker = pair.call()
    worker.send(b"\x01", end=True)
    pair.listener.close(DrainingError("this worker stops"))
    assert open_worker.killed
    pair.settle()
    assert read(caller) == [b"\x01"]
    assert caller.error is None
    assert isinstance(open_call.error, StreamBrokenError)
    assert isinstance(pair.dialer.error, DrainingError)
    assert "this worker stops" in str(open_call.error)
    assert output(pair.listener) == []


def test_closing_a_dialer_sends_nothing_that_it_reports_as_not_sent() -> None:
    pair = Pair()
    pair.settle()
    caller = pair.open()
    pair.dialer.close(DynamoError("bye"))
    assert isinstance(caller.error, UnavailableError)
    assert [kind for kind, *_ in output(pair.dialer)] == [ERROR]
    pair.dialer.close()
    pair.dialer.connection_lost()
    assert isinstance(pair.dialer.error, DynamoError)


def test_unreachable_ends_every_call_with_the_reason_itself() -> None:
    pair = Pair()
    calls = [pair.open(), pair.open(b"x" * 200_000)]
    pair.dialer.unreachable(UnavailableError("nobody listens at tcp://h:1"))
    for call in calls:
        assert str(call.error) == "nobody listens at tcp://h:1"
        assert call.error is not None
        assert call.error.retry is Retry.SAFE
    assert calls[0].error is not calls[1].error
    assert pair.dialer.take_output(2**20) == []


def test_hooks_are_called_once_for_each_setting_and_over_once() -> None:
    pair = Pair()
    caller, worker = pair.call()
    over: list[str] = []
    caller.on_over = lambda: over.append("caller")
    worker.on_over = lambda: over.append("worker")
    woken: list[int] = []
    caller.on_readable = lambda: woken.append(1)
    worker.send(b"\x01")
    worker.send(b"\x02")
    pair.settle()
    assert woken == [1]
    caller.on_readable = lambda: woken.append(2)
    worker.end()
    pair.settle()
    assert woken == [1, 2]
    assert over == ["worker", "caller"]
    pair.cut()
    assert over == ["worker", "caller"]


def test_a_writer_that_waits_is_woken_by_the_end_of_the_call() -> None:
    pair = Pair(Options(window_bytes=200))
    caller, worker = pair.call()
    while worker.send(b"x" * 20):
        pass
    woken: list[bool] = []
    worker.on_writable = lambda: woken.append(True)
    pair.settle()
    assert woken == []
    caller.kill()
    pair.settle()
    assert woken == [True]
    assert worker.can_send


def test_hooks_may_end_other_calls_and_the_connection_itself() -> None:
    pair = Pair()
    calls = [pair.call() for _ in range(4)]

    def kill_all() -> None:
        for caller, _ in calls:
            caller.kill()

    calls[0][1].on_over = lambda: pair.listener.close()
    calls[1][0].on_over = kill_all
    pair.dialer.on_idle = pair.dialer.close
    calls[0][1].end()
    assert pair.listener.closed
    assert all(worker.over for _, worker in calls)
    calls[1][0].kill()
    assert pair.dialer.closed
    assert all(isinstance(caller.error, CallCancelledError) for caller, _ in calls)
    assert pair.dialer_budget.used == pair.listener_budget.used == 0


def test_output_is_announced_once_until_all_of_it_was_taken() -> None:
    pair = Pair(Options(window_bytes=2**20))
    _, worker = pair.call()
    calls: list[int] = []
    pair.listener.on_output = lambda: calls.append(1)
    worker.send(b"\x01")
    worker.send(b"\x02")
    worker.send(b"x" * 900_000)
    assert calls == [1]
    while pair.listener.take_output(1):
        assert calls == [1]
    worker.send(b"\x03")
    assert calls == [1, 1]


def test_a_burst_is_offered_in_growing_portions_before_the_tick_ends() -> None:
    pair = Pair()
    _, worker = pair.call()
    portions: list[int] = []  # items

    def take() -> None:
        portions.append(len(list(frames_in(b"".join(pair.listener.take_output(2**20))))))

    def burst(item: bytes) -> list[int]:
        portions.clear()
        for _ in range(60):
            worker.send(item)
        take()
        return list(portions)

    pair.listener.on_burst = take
    large = bytes(QUICK_BYTES)
    assert burst(large) == [EAGER_PARTS // 2, EAGER_PARTS, 2 * EAGER_PARTS, 60 - 7 * EAGER_PARTS // 2]
    quick = QUICK_BYTES // (1 + ITEM_COST)  # go without a look at whether there are many
    assert burst(b"\x01") == [1 + quick + 1, 60 - (1 + quick + 1)]


def test_an_end_rides_on_the_last_item_and_on_nothing_else() -> None:
    pair = Pair()

    def queued() -> list[tuple[int, int]]:
        return [(kind, flags) for kind, flags, *_ in frames_in(b"".join(pair.listener.take_output(2**20)))]

    for before in ([b"\x01"], [b"\x01", b"\x02"], [b"\x01", bytes(QUICK_BYTES)]):
        _, worker = pair.call()
        for item in before:
            worker.send(item)
        worker.end()
        assert queued() == [(ITEM, 0)] * (len(before) - 1) + [(ITEM, F_END)]
    _, other = pair.call()
    _, worker = pair.call()
    worker.send(b"\x01")
    other.send(b"\x01")
    worker.end()
    assert queued() == [(ITEM, 0), (ITEM, 0), (END, 0)]


def test_the_driver_is_told_when_a_request_or_an_answer_is_complete() -> None:
    pair = Pair()
    complete: list[str] = []
    pair.dialer.on_end = lambda: complete.append("request")
    pair.listener.on_end = lambda: complete.append("answer")
    _, worker = pair.call()
    assert complete == ["request"]
    worker.send(b"\x01")
    assert complete == ["request"]
    worker.end()
    assert complete == ["request", "answer"]
    caller, worker = pair.call(end=False)
    assert complete == ["request", "answer"]
    caller.send(b"\x01", end=True)
    worker.send(b"\x01", end=True)
    assert complete == ["request", "answer", "request", "answer"]


def test_a_burst_that_the_driver_leaves_for_later_is_kept() -> None:
    pair = Pair()
    caller, worker = pair.call()
    for number in range(100):
        worker.send(bytes([number]))
    pair.settle()
    assert [caller.receive_nowait() for _ in range(100)] == [bytes([number]) for number in range(100)]


def test_a_violation_at_one_connection_leaves_another_with_the_same_budget_alone() -> None:
    good = Pair()
    caller, worker = good.call(end=False)
    bad = Connection(Options(), good.listener_budget, dialer=False)
    bad.feed(b"GET / HTTP/1.1\r\n")
    assert isinstance(bad.error, WireError)
    assert "HTTP" in str(bad.error)
    caller.send(b"\x01")
    good.settle()
    assert read(worker) == [b"\x01"]
