"""What a hostile or careless peer says to a connection without I/O, one thing at a time."""

from __future__ import annotations

import struct
import time
import tracemalloc
from typing import Any

import hpack
import pytest

from dynamo.adapters.request_plane.http2 import connection as http2_connection
from dynamo.adapters.request_plane.http2 import floods
from dynamo.adapters.request_plane.http2.connection import Http2Connection
from dynamo.adapters.request_plane.http2.frames import PREFACE
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import EncodeError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.opening import Options
from unit.http2.attacks import (
    ATTACKS,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Attack,
    frame,
    other_protocol,
)
from unit.http2.test_connection import connection, feed, frames, meet, output, pump

NATIVE = [*REQUEST[:4], ("content-type", "application/vnd.dynamo.stream")]
WHOLE = END_HEADERS | END_STREAM
READ_BYTES = 64 * 1024


def opened(*settings: bytes) -> tuple[Http2Connection, list[Http2Call]]:
    """A worker's connection after an honest opening, and the calls that come to it."""
    taken: list[Http2Call] = []
    side = connection(dialer=False, taken=taken)
    feed(side, PREFACE + frame(SETTINGS, 0, 0, b"".join(settings)))
    output(side)
    return side, taken


def request(*fields: tuple[str | bytes, str | bytes], native: bool = False) -> bytes:
    """A header block, in which these fields take the place of others."""
    names = {name for name, _ in fields}
    rest: list[Any] = [pair for pair in (NATIVE if native else REQUEST) if pair[0] not in names]
    return hpack.Encoder().encode([*rest, *fields])


def codes(said: bytes) -> list[int]:
    """Of the GOAWAY frames."""
    return [int.from_bytes(body[4:8]) for kind, body in frames(said) if kind == GOAWAY]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_cut_short_with_the_right_code_at_little_cost(attack: Attack) -> None:
    data = b"".join(attack())
    side = connection(dialer=False, taken=[])
    feed(side, b"" if attack is other_protocol else PREFACE + frame(SETTINGS, 0, 0))
    output(side)
    said, began = b"", time.process_time()
    for at in range(0, len(data), READ_BYTES):
        feed(side, data[at : at + READ_BYTES])
        said += output(side)
        if side.closed:
            break
    assert time.process_time() - began < 1.0
    assert codes(said) == [ATTACKS[attack]]
    assert side.closed
    assert side.open_streams == side.budget.used == 0


def test_data_without_a_byte_is_no_error() -> None:
    side, taken = opened()
    feed(side, frame(HEADERS, END_HEADERS, 1, request()) + frame(DATA, 0, 1))
    feed(side, frame(DATA, 8, 1, b"\x03" + bytes(3)) + frame(DATA, END_STREAM, 1, b"{}"))
    assert [call.request.payload for call in taken] == [b"\x80"]


def test_a_field_of_any_bytes_is_no_error() -> None:
    side, taken = opened()
    feed(side, frame(HEADERS, END_HEADERS, 1, request(("dynamo-meta-a", b"\xff\xfe"))))
    feed(side, frame(DATA, END_STREAM, 1, b"{}"))
    assert taken[0].request.metadata == {"a": "\ufffd\ufffd"}


def test_connect_is_refused() -> None:
    side, taken = opened()
    block = hpack.Encoder().encode([(":method", "CONNECT"), (":authority", "x")])
    feed(side, frame(HEADERS, WHOLE, 1, block))
    assert b'"status": 405' in output(side)
    assert not taken
    assert not side.closed


@pytest.mark.parametrize(
    "name, value",
    [
        ("dynamo-attempt", "1e300"),
        ("dynamo-attempt", "0"),
        ("dynamo-priority", "-3e9"),
        ("dynamo-timeout", "1e999"),
        ("dynamo-instance", "-1"),
    ],
)
def test_a_number_out_of_range_is_a_bad_request(name: str, value: str) -> None:
    side, taken = opened()
    feed(side, frame(HEADERS, END_HEADERS, 1, request((name, value))) + frame(DATA, END_STREAM, 1, b"{}"))
    said = output(side)
    assert b'"status": 400' in said
    assert name.encode() in said
    assert f"'{value}'".encode() in said
    assert not taken


def test_a_body_that_is_too_large_reaches_no_handler_even_if_it_ends_at_once() -> None:
    side, taken = opened()
    feed(side, frame(HEADERS, END_HEADERS, 1, request(("content-length", str(2**40)))))
    feed(side, frame(DATA, 0, 1, b"{") + frame(DATA, 0, 1, b"}"))
    assert b'"status": 413' in output(side)
    assert not taken


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("depth", [0, 600])
def test_an_item_that_no_json_can_tell_is_an_error_and_the_call_ends(end: bool, depth: int) -> None:
    item = b"\x91" * depth + b"\x81\x92\x01\x02\x03"  # [[...{(1, 2): 3}...]]
    side, taken = opened()
    feed(side, frame(HEADERS, END_HEADERS, 1, request()) + frame(DATA, END_STREAM, 1, b"{}"))
    (call,) = taken
    with pytest.raises(EncodeError, match="cannot be told in JSON") as failed:
        call.send(item, end=end)
    call.fail(failed.value)
    assert b'"status": 500' in output(side)
    assert side.open_streams == 0


def test_who_is_refused_is_told_after_its_short_body() -> None:
    """curl 7.88 loses the answer that comes, with its end, while it sends."""
    side, taken = opened()
    feed(side, frame(HEADERS, END_HEADERS, 1, request(("dynamo-attempt", "0"))))
    assert frames(output(side)) == []
    feed(side, frame(DATA, END_STREAM, 1, b"{}"))
    assert [kind for kind, _ in frames(output(side))] == [HEADERS, DATA, HEADERS]
    feed(side, frame(HEADERS, END_HEADERS, 3, request(("dynamo-attempt", "0"))))
    for _ in range(2):
        assert frames(output(side)) == []
        feed(side, frame(DATA, 0, 3, b" " * 16_384))
    assert [kind for kind, _ in frames(output(side))] == [HEADERS, DATA, HEADERS, RST_STREAM]
    assert not taken
    assert side.open_streams == 0


def test_a_body_of_unknown_size_takes_memory_only_once_it_is_large() -> None:
    side, taken = opened()
    feed(side, frame(HEADERS, END_HEADERS, 1, request()) + frame(DATA, 0, 1, b'"' + bytes(100)))
    window = side.first_window
    assert side.budget.used == window
    assert WINDOW_UPDATE not in [kind for kind, _ in frames(output(side))]
    for _ in range(window // 16_000):
        feed(side, frame(DATA, 0, 1, b" " * 16_000))
    assert side.budget.used == side.options.max_message_bytes
    assert WINDOW_UPDATE in [kind for kind, _ in frames(output(side))]
    side.connection_lost()
    assert side.budget.used == 0
    assert not taken


def test_the_table_of_fields_stays_small_whatever_the_peer_would_keep() -> None:
    side, _ = opened(struct.pack(">HI", 1, 2**32 - 1))
    for number in range(500):
        other = ("dynamo-instance", f"{number + 2:x}")  # tells who it is not, each time in other words
        feed(side, frame(HEADERS, WHOLE, 2 * number + 1, request(other, native=True)))
        output(side)
    assert not side.closed
    assert side.outbox.encoder._encoder.header_table._current_size <= 4096


def test_a_peer_that_grants_much_does_not_make_the_worker_keep_much() -> None:
    side, taken = opened(struct.pack(">HI", 4, 2**31 - 1))
    feed(side, frame(HEADERS, END_HEADERS, 1, request()) + frame(DATA, END_STREAM, 1, b"{}"))
    (call,) = taken
    sent, item = 0, b"\xc4\xff" + bytes(255)
    while call.send(item):
        sent += len(item)
    assert sent < 2 * side.options.window_bytes
    feed(side, frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))
    output(side)
    assert call.send(item), "there is room once it is on its way"


def test_who_reads_no_answers_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_connection, "MAX_UNREAD_BYTES", 8 * 1024)
    side, _ = opened()
    block = request(("dynamo-instance", "7"), native=True)
    tracemalloc.start()
    try:
        for number in range(1000):
            feed(side, frame(HEADERS, WHOLE, 2 * number + 1, block))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert side.closed
    assert codes(output(side)) == [11]
    assert most < 2**20


def many_calls(side: Http2Connection, flags: int) -> None:
    encoder = hpack.Encoder()
    for number in range(3000):
        stream = 2 * number + 1
        said = frame(HEADERS, END_HEADERS, stream, encoder.encode(REQUEST))
        feed(side, said + frame(DATA, flags, stream, b"{}"))


def test_settings_that_change_many_windows_count_as_many_frames() -> None:
    side, _ = opened()
    many_calls(side, 0)
    output(side)
    began = time.process_time()
    feed(side, b"".join(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 9 + n % 2)) for n in range(1000)))
    assert time.process_time() - began < 0.5
    assert codes(output(side)) == [11]


def test_a_window_opened_a_little_is_not_offered_to_all_who_wait() -> None:
    side, taken = opened(struct.pack(">HI", 4, 2**20))
    many_calls(side, END_STREAM)
    for call in taken:
        call.send(b"\xc5\x02\x00" + bytes(512), end=True)
    output(side)
    began = time.process_time()
    for _ in range(500):
        feed(side, frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 100)))
        assert sum(len(body) for kind, body in frames(output(side)) if kind == DATA) == 100
    assert time.process_time() - began < 0.5
    for call in taken[-1000:]:
        feed(side, frame(RST_STREAM, 0, call.id, struct.pack(">I", 8)))
    feed(side, frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**24)))
    output(side)
    assert side.open_streams == 0


def test_a_reader_of_small_items_opens_windows_far_less_often_than_a_worker_allows() -> None:
    """Every other DATA frame ends in the middle of an item."""
    dialer, listener, taken = meet()
    reading = dialer.open(Request(endpoint="a.b.c", request_id="r", payload=b"\xc0"))
    pump(dialer, listener)
    data = updates = 0
    for _ in range(50):
        for _ in range(160):
            taken[0].send(b"\xc4\x64" + bytes(100))
        said = output(listener)
        for one in (said[: 9 + 16_384], said[9 + 16_384 :]):
            data += sum(kind == DATA for kind, _ in frames(one))
            feed(dialer, one)
            while reading.receive_nowait() is not None:
                answer = output(dialer)
                updates += sum(kind == WINDOW_UPDATE for kind, _ in frames(answer))
                feed(listener, answer)
    assert reading.received == 50 * 160
    assert 0 < updates <= data * floods.PER_DATA / 2


def test_calls_that_are_left_once_they_were_answered_are_no_flood() -> None:
    dialer, listener, taken = meet()
    for _ in range(2 * floods.BURST):
        call = dialer.open(Request(endpoint="a.b.c", request_id="r", payload=b"\xc0"))
        pump(dialer, listener)
        taken.pop().send(b"\xc0")
        pump(dialer, listener)
        assert call.receive_nowait() == b"\xc0"
        call.kill()
        pump(dialer, listener)
    assert not listener.closed
    assert listener.open_streams == 0


@pytest.mark.parametrize("native", [False, True])
def test_who_announces_much_and_sends_nothing_leaves_memory_for_others(native: bool) -> None:
    budget, taken = ReceiveBudget(2**28), list[Http2Call]()
    sides = [Http2Connection(Options(), budget, dialer=False, accept=taken.append) for _ in range(2)]
    for side in sides:
        feed(side, PREFACE + frame(SETTINGS, 0, 0))
    bad, good = sides
    much = 32 * 2**20
    announced = () if native else (("content-length", str(much)),)
    begun = struct.pack(">BI", 0, much - 5) + b"\xc0" if native else b" "
    for stream in range(1, 40, 2):
        feed(bad, frame(HEADERS, END_HEADERS, stream, request(*announced, native=native)))
        feed(bad, frame(DATA, 0, stream, begun))
    assert not bad.closed
    feed(good, frame(HEADERS, END_HEADERS, 1, request()) + frame(DATA, END_STREAM, 1, b"{}"))
    feed(
        good, frame(HEADERS, END_HEADERS, 3, request(native=True)) + frame(DATA, 0, 3, bytes(4) + b"\x01\xc0")
    )
    assert len(taken) == 2
    bad.connection_lost()
    good.connection_lost()
    assert budget.used == 0


def test_who_begins_thousands_of_requests_and_finishes_none_leaves_memory_for_others() -> None:
    budget = ReceiveBudget(2**28)
    slow_taken: list[Http2Call] = []
    other_taken: list[Http2Call] = []
    slow, other = (
        Http2Connection(Options(peer="a caller"), budget, dialer=False, accept=taken.append)
        for taken in (slow_taken, other_taken)
    )
    for side in (slow, other):
        feed(side, PREFACE + frame(SETTINGS, 0, 0))
        output(side)
    encoder = hpack.Encoder()
    for number in range(4000):
        feed(slow, frame(HEADERS, END_HEADERS, 2 * number + 1, encoder.encode(REQUEST)))
    assert budget.used < budget.total // 4
    feed(other, frame(HEADERS, END_HEADERS, 1, request()) + frame(DATA, END_STREAM, 1, b"{}"))
    assert len(other_taken) == 1
    feed(slow, frame(DATA, END_STREAM, 1, b"{}"))
    feed(slow, frame(DATA, END_STREAM, 3999 * 2 + 1, b"{}"))
    assert len(slow_taken) == 1
    assert b'"status": 429' in output(slow)
    slow.connection_lost()
    other.connection_lost()
    assert slow.held == budget.used == 0
