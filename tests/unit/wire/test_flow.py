"""Windows, grants, the order of sending, and what all of it may hold in memory."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from dynamo.core.errors import OverloadedError, Retry, TooLargeError, WireError
from dynamo.core.ports.request_plane import Payload
from dynamo.core.wire import outbox
from dynamo.core.wire.budget import LEAST_WINDOW, ReceiveBudget
from dynamo.core.wire.frames import GOAWAY, ITEM, ITEM_COST, MAX_BODY, MIN_WINDOW, OPEN, PING, header
from dynamo.core.wire.opening import Options
from dynamo.core.wire.stream import Stream
from unit.wire.pair import Pair, read, read_all
from unit.wire.vectors import frames_in

MIB = 2**20


class Asker:
    def __init__(self) -> None:
        self.got: list[int] = []

    def granted(self, size: int) -> None:
        self.got.append(size)


def test_windows_shrink_as_the_budget_is_used_and_never_below_the_least() -> None:
    budget = ReceiveBudget(64 * MIB)
    sizes = [budget.window(262_144) for _ in range(10_000)]
    assert sizes[0] == 262_144
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2000] >= LEAST_WINDOW
    assert sizes[-1] == MIN_WINDOW
    assert budget.used == sum(sizes)
    assert sum(size for size in sizes if size > MIN_WINDOW) <= 48 * MIB
    for size in sizes:
        budget.give(size)
    assert budget.used == 0


def test_grants_are_first_come_first_served_even_if_a_later_one_would_fit() -> None:
    budget = ReceiveBudget(1000)
    first, second, third = Asker(), Asker(), Asker()
    assert budget.grant_now(600)
    budget.ask(first, 600)
    budget.ask(second, 100)
    budget.ask(third, 100)
    assert not budget.grant_now(1)
    assert (first.got, second.got) == ([], [])
    budget.forget(third)
    budget.give_grant(600)
    assert (first.got, second.got, third.got) == ([600], [100], [])


def test_what_is_only_announced_leaves_a_quarter_to_others() -> None:
    budget = ReceiveBudget(1000)
    assert [budget.grant_now(300) for _ in range(3)] == [True, True, False]
    assert budget.reserve(250)


def test_a_grant_past_the_whole_budget_passes_alone() -> None:
    budget = ReceiveBudget(1000)
    small, huge = Asker(), Asker()
    budget.ask(small, 10)
    budget.ask(huge, 5000)
    assert (small.got, huge.got) == ([10], [])
    budget.give_grant(10)
    assert huge.got == [5000]
    assert not budget.grant_now(1)
    budget.give_grant(5000)
    assert budget.used == 0


@pytest.mark.parametrize("size", [0, 1, 100, 500, 5000])
def test_an_unread_stream_stops_its_producer_within_the_window(size: int) -> None:
    pair = Pair(Options(window_bytes=4096))
    caller, worker = pair.call()
    sent = 0
    while worker.send(bytes(size)) and sent < 1000:
        sent += 1
    pair.settle()
    assert sent < 1000
    assert not worker.can_send
    held = sum(len(item) + ITEM_COST for item in caller._items)
    assert held + (caller._assembly.size if caller._assembly else 0) <= 4096
    woken: list[bool] = []
    worker.on_writable = lambda: woken.append(True)
    items = read_all(pair, caller)
    assert len(items) == sent + 1
    assert woken == [True]
    assert worker.can_send
    assert worker.on_writable is None
    if size <= 500:
        worker.send(bytes(size))  # after the backlog the short way again: nothing is kept in the stream
        assert not worker._pending


@pytest.mark.parametrize("large_first", [False, True])
def test_credit_comes_back_at_half_of_the_window_and_not_before(large_first: bool) -> None:
    pair = Pair(Options(window_bytes=1000))
    caller, worker = pair.call()
    if large_first:
        worker.send(bytes(5000))
        assert len(read_all(pair, caller)) == 1
        pair.settle()
    for _ in range(9):
        worker.send(bytes(36))
    pair.settle()
    for taken in range(1, 6):
        caller.receive_nowait()
        pair.settle()
        assert worker._credit == (100 if taken < 5 else 600)


def test_items_wait_in_order_behind_a_large_one() -> None:
    pair = Pair(Options(window_bytes=1000))
    caller, worker = pair.call()
    sent: list[Payload] = [b"a" * 100, b"b" * 5000, b"c" * 100, b"d" * 600, memoryview(b"e" * 7), b"f" * 900]
    for item in sent:
        worker.send(item)
    worker.end()
    assert read_all(pair, caller) == sent
    assert caller.ended
    assert caller.error is None


def test_a_sleeping_reader_of_large_items_keeps_nothing_from_its_neighbours() -> None:
    pair = Pair(Options(window_bytes=1000), budget=2 * MIB)
    calls = [pair.call() for _ in range(10)]
    for _, worker in calls:
        worker.send(b"x" * MIB)
    pair.settle()
    assert pair.dialer_budget.used == 10 * 1000
    for caller, _ in calls[5:]:
        assert [len(item) for item in read_all(pair, caller)] == [MIB]
    assert pair.dialer_budget.used == 10 * 1000


def test_a_waiting_reader_is_granted_by_the_announcement_itself() -> None:
    pair = Pair(Options(window_bytes=1000))
    caller, worker = pair.call()
    woken: list[bool] = []
    assert not caller.ready()
    caller.on_readable = lambda: woken.append(True)
    worker.send(b"x" * MIB)
    pair.settle()
    assert woken == [True]
    assert caller.ready()
    assert caller.receive_nowait() == b"x" * MIB


def test_large_items_of_many_streams_share_a_budget_that_holds_one_at_a_time() -> None:
    pair = Pair(Options(window_bytes=1000), budget=MIB)
    calls = [pair.call() for _ in range(8)]
    for _, worker in calls:
        worker.send(b"x" * 700_000, end=True)
    pair.settle()
    left = [caller for caller, _ in calls]
    assert not any(caller.ready() for caller in left)
    while left:
        pair.settle()
        assert pair.dialer_budget.used <= MIB
        arrived = [caller for caller in left if caller.ready()]
        assert arrived, "nothing moves"
        for caller in arrived:
            assert len(caller.receive_nowait() or b"") == 700_000
            left.remove(caller)
    assert pair.dialer_budget.used == 0


def test_a_call_whose_input_has_no_memory_is_refused_as_overloaded() -> None:
    pair = Pair(listener=Options(window_bytes=262_144), budget=600_000)
    duplex = [pair.open(None, end=False) for _ in range(3)]
    pair.settle()
    assert len(pair.accepted) == 2
    assert isinstance(duplex[2].error, OverloadedError)
    assert duplex[2].error.retry is Retry.SAFE
    unary = pair.open(b"x")
    large = pair.open(b"x" * 500_000)
    pair.settle()
    assert len(pair.accepted) == 3
    assert isinstance(large.error, OverloadedError)
    assert not unary.ended
    duplex[0].kill()
    duplex[1].kill()
    pair.settle()
    assert pair.listener_budget.used == 0


def test_with_a_budget_below_one_window_calls_pass_one_at_a_time() -> None:
    pair = Pair(budget=4096)
    caller, worker = pair.call(None, end=False)
    caller.send(memoryview(bytes(500_000)))
    assert [len(item) for item in read_all(pair, worker)] == [500_000]
    second = pair.open(None, end=False)
    pair.settle()
    assert isinstance(second.error, OverloadedError)
    caller.kill()
    pair.settle()
    assert pair.call(None, end=False)[0].error is None


def test_a_call_whose_first_item_has_no_memory_is_refused_as_overloaded() -> None:
    pair = Pair(listener=Options(window_bytes=1000), budget=MIB)
    waiting = pair.open(memoryview(bytes(900_000)))
    pair.pull()
    pair.push()
    assert pair.listener_budget.used > 900_000
    refused = pair.open(memoryview(bytes(900_000)))
    pair.settle()
    assert isinstance(refused.error, OverloadedError)
    assert refused.error.retry is Retry.SAFE
    assert waiting.error is None
    assert len(pair.accepted) == 1
    assert pair.listener_budget.used == 0


@pytest.mark.parametrize("leave", ["kill", "cut"])
def test_who_leaves_while_asking_for_memory_is_not_granted_any(leave: str) -> None:
    pair = Pair(Options(window_bytes=1000), budget=MIB)
    calls = [pair.call() for _ in range(3)]
    for _, worker in calls:
        worker.send(b"x" * 900_000)
    pair.settle()
    assert not any(caller.ready() for caller, _ in calls)
    assert len(pair.dialer_budget._asking) == 2
    if leave == "kill":
        calls[1][0].kill()
        assert len(pair.dialer_budget._asking) == 1
        assert [len(item) for item in read_all(pair, calls[0][0])] == [900_000]
        assert [len(item) for item in read_all(pair, calls[2][0])] == [900_000]
        calls[0][0].kill()
        calls[2][0].kill()
    else:
        pair.cut()
    assert not pair.dialer_budget._asking
    assert pair.dialer_budget.used == 0


def test_an_item_that_is_whole_before_it_was_granted_owes_all_that_it_cost() -> None:
    pair = Pair(listener=Options(window_bytes=1000), budget=MIB)
    caller = pair.open(None, end=False)
    caller.send(
        memoryview(bytes(200_000))
    )  # before the listener's HELLO: within the 256 KiB that it must bear
    pair.settle()
    (worker,) = pair.accepted
    assert [len(item) for item in read(worker)] == [200_000]
    for _ in range(3):
        caller.send(memoryview(bytes(50_000)))
        assert [len(item) for item in read_all(pair, worker)] == [50_000]
    pair.settle()
    assert caller._credit == 1000


def test_the_listeners_window_counts_for_calls_opened_after_its_hello_too() -> None:
    pair = Pair(listener=Options(window_bytes=4096))
    for _ in range(3):
        caller, worker = pair.call(None, end=False)
        caller.send(bytes(5000))
        assert [len(item) for item in read_all(pair, worker)] == [5000]


def test_the_dialers_limit_binds_the_answers() -> None:
    pair = Pair(Options(max_message_bytes=1000))
    _, worker = pair.call()
    with pytest.raises(TooLargeError, match=r"limit of 1000"):
        worker.send(bytes(1001))


def test_announcing_costs_no_memory_until_it_is_granted() -> None:
    pair = Pair(Options(window_bytes=1000), Options(window_bytes=1000))
    calls = [pair.call(end=False) for _ in range(200)]
    for caller, worker in calls:
        worker.send(b"x" * (32 * MIB - 64) if worker.id == 1 else memoryview(bytes(MIB)))
        caller.send(memoryview(bytes(MIB)))
    pair.settle()
    for caller, worker in calls:
        assert caller._assembly is not None
        assert worker._assembly is not None
        assert caller._assembly.size + worker._assembly.size <= 4000


def test_an_item_past_the_limit_is_refused_here_and_the_call_lives_on() -> None:
    pair = Pair(Options(max_message_bytes=1000), Options(max_message_bytes=2000))
    caller, worker = pair.call(end=False)
    for stream in (caller, worker):
        with pytest.raises(TooLargeError, match=r"1001 bytes.*limit of 1000.*DYN_TCP_MAX_MESSAGE_SIZE"):
            stream.send(bytes(1001))
        stream.send(bytes(1000), end=True)
        pair.settle()
    assert [len(item) for item in read(worker)] == [1000]
    assert [len(item) for item in read(caller)] == [1000]
    with pytest.raises(TooLargeError):
        pair.open(bytes(1001))
    assert pair.dialer.open_streams == 0
    assert pair.dialer_budget.used == 0


@pytest.mark.parametrize("raw", [False, True])
def test_a_large_item_is_received_without_a_second_copy(raw: bool) -> None:
    size = 16 * MIB
    pair = Pair()
    caller, worker = pair.call()
    data = bytes(size)
    worker.send(memoryview(data) if raw else data)
    tracemalloc.start()
    try:
        while not caller.ready():
            pair.listener.feed(b"".join(map(bytes, pair.dialer.take_output(2**18))))
            for part in pair.listener.take_output(2**18):
                at = 0
                while at < len(part):
                    buffer = pair.dialer.get_buffer()  # held meanwhile, as asyncio does
                    count = min(len(buffer), len(part) - at)
                    buffer[:count] = part[at : at + count]
                    pair.dialer.buffer_updated(count)
                    at += count
        item = caller.receive_nowait()
        assert item is not None
        assert len(item) == size
        assert type(item.obj if isinstance(item, memoryview) else item) is bytes
        assert tracemalloc.get_traced_memory()[1] < size + 2 * MIB
    finally:
        tracemalloc.stop()


# The order of sending.


def test_control_goes_first_then_small_items_then_fragments_in_turns() -> None:
    pair = Pair(Options(window_bytes=8 * MIB))
    calls = [pair.call(b"\xc4" + bytes(200_000), end=False) for _ in range(3)]
    calls[0][1].send(memoryview(bytes(5 * MIB)))
    calls[1][1].send(memoryview(bytes(5 * MIB)))
    calls[2][1].send(b"small")
    pair.listener.goaway()
    seen = [
        (kind, stream)
        for _ in range(3)
        for kind, _, stream, _ in frames_in(b"".join(map(bytes, pair.listener.take_output(2 * MAX_BODY))))
    ]
    a, b, c = (worker.id for _, worker in calls)
    turns = [(ITEM, a), (ITEM, b)]
    assert seen == [(GOAWAY, 0), (ITEM, c), *turns, *turns, *turns]


def test_a_token_waits_for_no_more_than_one_fragment_of_a_large_item() -> None:
    pair = Pair(Options(window_bytes=32 * MIB))
    large, tokens = pair.call(), pair.call()
    large[1].send(b"x" * (16 * MIB))
    for number in range(20):
        pair.listener.take_output(1)
        tokens[1].send(bytes([number]))
        first = bytes(pair.listener.take_output(MAX_BODY)[0])
        assert frames_in(first) == [(ITEM, 0, tokens[1].id, bytes([number]))]


def test_fragments_show_the_item_itself_without_a_copy() -> None:
    pair = Pair(Options(window_bytes=8 * MIB))
    _, worker = pair.call()
    blob = bytearray(3 * MIB + 100)
    worker.send(memoryview(blob))
    parts = [part for part in pair.listener.take_output(8 * MIB) if len(part) > 24]
    assert len(parts) == 13
    assert all(isinstance(part, memoryview) and part.obj is blob for part in parts)


def test_what_nobody_writes_stays_bounded_and_holds_the_senders_up() -> None:
    pair = Pair()
    calls = [pair.call() for _ in range(64)]
    item, sent = b"x" * 1000, 0
    going = list(calls)
    while going:
        for call in list(going):
            if call[1].send(item):
                sent += 1
            else:
                going.remove(call)
    waiting = sum(len(worker._pending) for _, worker in calls)
    assert pair.listener._out.size <= outbox.CONGESTED_BYTES + outbox.QUICK_BYTES + 2000
    assert waiting <= 64
    assert sent <= 400
    for caller, worker in calls:
        worker.end()
        assert len(read_all(pair, caller)) >= 1
        assert caller.ended
    assert pair.listener.open_streams == 0


# A peer that only makes us work.


def flooded(pair: Pair, frame: bytes, times: int) -> int:
    """Feed the listener, whose answers nobody reads; the largest amount of them."""
    most = 0
    for _ in range(times):
        pair.listener.feed(frame)
        out = pair.listener._out
        most = max(most, out.size + sum(map(len, out.control)))
        if pair.listener.closed:
            break
    return most


def test_pings_whose_answers_nobody_reads_end_the_connection() -> None:
    pair = Pair()
    pair.settle()
    most = flooded(pair, (header(PING, 0, 0, 8) + b"whatever") * 1000, 1000)
    assert most < 2 * outbox.MAX_CONTROL_BYTES
    assert isinstance(pair.listener.error, WireError)
    assert "does not read the answers" in str(pair.listener.error)


def open_frame(number: int) -> bytes:
    head = bytes.fromhex("8200a5612e622e6301a172")
    return struct.pack("<IBBHQI", 4 + len(head), OPEN, 1, 0, number, len(head)) + head


@pytest.mark.parametrize("answer", ["refuse", "item", "end"])
def test_calls_whose_answers_nobody_reads_stay_bounded(answer: str) -> None:
    accepted: list[Stream] = []

    def accept(stream: Stream) -> None:
        accepted.append(stream)
        if answer == "refuse":
            stream.refuse(OverloadedError("full"))
        elif answer == "item":
            stream.send(bytes(500), end=True)
        else:
            stream.end()

    pair = Pair(listener=Options(max_streams=100), accept=accept)
    pair.settle()
    most = flooded(pair, b"".join(map(open_frame, range(1, 60_000))), 1)
    assert most < outbox.CONGESTED_BYTES + outbox.QUICK_BYTES + 2 * outbox.MAX_CONTROL_BYTES
    assert pair.listener.open_streams <= 100
    assert sum(not stream.over for stream in accepted) <= 100
    assert isinstance(pair.listener.error, WireError)


def test_windows_that_nobody_reads_end_the_connection() -> None:
    pair = Pair(listener=Options(window_bytes=1000))
    pair.settle()
    pair.listener.feed(open_frame(1).replace(b"\x03\x01", b"\x03\x00", 1))
    worker = pair.accepted[0]
    item = struct.pack("<IBBHQ", 400, ITEM, 0, 0, 1) + bytes(400)
    for _ in range(100_000):
        pair.listener.feed(item * 2)
        read(worker)
        if pair.listener.closed:
            break
    assert isinstance(pair.listener.error, WireError)


def test_receiving_buffers_are_small_until_the_opening_is_done_and_do_not_grow_after() -> None:
    pair = Pair()
    assert len(pair.listener.get_buffer()) <= 2048
    caller, worker = pair.call()
    worker.send(b"x" * MIB)
    worker.send(b"y" * 100_000)
    assert len(read_all(pair, caller)) == 2
    assert len(pair.dialer._reader._buffer) == 64 * 1024
