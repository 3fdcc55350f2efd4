"""The HTTP/2 connection without I/O: what goes into a frame, GOAWAY and whatever bytes arrive."""

from __future__ import annotations

import gc
import math
import struct
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.adapters.request_plane.http2.connection import Http2Connection
from dynamo.adapters.request_plane.http2.frames import ALL_STREAMS, PREFACE, frame, goaway_frame
from dynamo.adapters.request_plane.http2.headers import read_limit
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import DrainingError, EncodeError, Retry
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.opening import Options


def connection(*, dialer: bool, taken: list[Http2Call] | None = None) -> Http2Connection:
    accept = None if taken is None else taken.append
    return Http2Connection(Options(peer="http://x:1"), ReceiveBudget(2**28), dialer=dialer, accept=accept)


def output(side: Http2Connection) -> bytes:
    data = b""
    while parts := side.take_output(2**16):
        data += b"".join(parts)
    return data


def feed(side: Http2Connection, data: bytes) -> None:
    while data:
        buffer = side.get_buffer()
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        side.buffer_updated(size)
        data = data[size:]


def pump(one: Http2Connection, other: Http2Connection) -> None:
    """Until neither has anything to say."""
    while (there := output(one)) + (back := output(other)):
        feed(other, there)
        feed(one, back)


def meet() -> tuple[Http2Connection, Http2Connection, list[Http2Call]]:
    taken: list[Http2Call] = []
    dialer, listener = connection(dialer=True), connection(dialer=False, taken=taken)
    pump(dialer, listener)
    return dialer, listener, taken


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Type and body."""
    found = []
    while data:
        length = int.from_bytes(data[:3])
        found.append((data[3], data[9 : 9 + length]))
        data = data[9 + length :]
    return found


def test_items_that_are_ready_at_once_share_a_frame() -> None:
    dialer, listener, taken = meet()
    dialer.open(Request(endpoint="a.b.c", request_id="r", payload=b"\xc0"))
    pump(dialer, listener)
    (call,) = taken
    for _ in range(100):
        call.send(b"\x01")
    assert [len(body) for kind, body in frames(output(listener)) if kind == 0] == [600]


def test_calls_in_flight_outlive_goaway_and_new_ones_are_turned_away() -> None:
    dialer, listener, taken = meet()
    running = dialer.open(Request(endpoint="a.b.c", request_id="r", payload=b"\xc0"))
    pump(dialer, listener)
    listener.goaway()
    pump(dialer, listener)
    late = dialer.open(Request(endpoint="a.b.c", request_id="r2"))
    assert isinstance(late.error, DrainingError)
    assert late.error.retry is Retry.SAFE
    taken[0].send(b"\x01", end=True)
    pump(dialer, listener)
    assert running.receive_nowait() == b"\x01"
    assert running.ended
    assert running.error is None


@pytest.mark.parametrize("said", ["by a worker", "before any answer", "after answers"])
def test_only_a_goaway_after_answers_that_no_worker_sent_is_about_the_connection_alone(said: str) -> None:
    """As a proxy sends it that gives connections a time to live."""
    dialer, listener, taken = meet()
    for number in range(2):
        dialer.open(Request(endpoint="a.b.c", request_id=f"{number}"))
    pump(dialer, listener)
    if said != "before any answer":
        taken[0].send(b"\x01", end=True)
        pump(dialer, listener)
    if said == "by a worker":
        listener.goaway()
        pump(dialer, listener)
    else:
        feed(dialer, goaway_frame(3, text="max_age"))
    assert dialer.draining
    assert dialer.spent is (said == "after answers")
    for call in taken:
        call.send(b"\x01", end=True)
    pump(dialer, listener)
    assert dialer.open_streams == 0


@pytest.mark.parametrize("answered", [False, True])
def test_a_call_that_was_not_taken_is_safe_to_send_elsewhere_unless_it_was_answered(answered: bool) -> None:
    dialer, listener, taken = meet()
    first, call = (dialer.open(Request(endpoint="a.b.c", request_id=number)) for number in "ab")
    pump(dialer, listener)
    if answered:
        taken[1].send(b"\x01")
        pump(dialer, listener)
    feed(dialer, goaway_frame(1))
    assert call.receive_nowait() == (b"\x01" if answered else None)
    assert call.error is not None
    assert call.error.retry is (Retry.UNKNOWN if answered else Retry.SAFE)
    assert not first.ended


def test_calls_that_were_killed_before_they_were_written_are_let_go() -> None:
    """Of a peer that takes nothing: each else holds its request until the connection is given up."""
    dialer, listener, taken = meet()
    requests = weakref.WeakSet[Request]()
    dialer.open(Request(endpoint="a.b.c", request_id="kept"))
    for number in range(1000):
        request = Request(endpoint="a.b.c", request_id=f"{number}", payload=bytes(100_000))
        requests.add(request)
        dialer.open(request).kill()
        del request
    gc.collect()
    assert len(requests) < 200
    dialer.open(Request(endpoint="a.b.c", request_id="last"))
    pump(dialer, listener)
    assert [call.request.request_id for call in taken] == ["kept", "last"]


@pytest.mark.parametrize(
    "what", [{"metadata": {"a": "\ud800"}}, {"metadata": {"a": 5}}, {"request_id": "\ud800"}]
)
def test_what_is_no_text_cannot_be_sent(what: dict[str, Any]) -> None:
    dialer, _, _ = meet()
    with pytest.raises(EncodeError, match="metadata of the call cannot be sent"):
        dialer.open(Request(**{"endpoint": "a.b.c", "request_id": "r"} | what))
    assert (dialer.open_streams, dialer.budget.used) == (0, 0)


def test_nothing_is_sent_before_the_worker_has_said_what_it_takes() -> None:
    dialer = connection(dialer=True)
    dialer.open(Request(endpoint="a.b.c", request_id="r", payload=b"\xc0"))
    assert 1 not in [kind for kind, _ in frames(output(dialer).removeprefix(PREFACE))]


@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_frames_are_read_wherever_the_bytes_are_split(step: int) -> None:
    side = connection(dialer=False, taken=[])
    output(side)
    ping = frame(6, 0, 0, b"12345678")
    data = PREFACE + frame(4, 0, 0) + ping + goaway_frame(ALL_STREAMS) + ping
    for at in range(0, len(data), step):
        feed(side, data[at : at + step])
    assert output(side) == frame(4, 1, 0) + 2 * frame(6, 1, 0, b"12345678")
    assert side.draining
    assert not side.closed


FRAMES = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(0, 255),
        st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]),
        st.binary(max_size=64),
    ),
    max_size=20,
)


@given(FRAMES, st.booleans())
def test_no_frames_at_all_raise_or_leave_a_call_behind(
    sent: list[tuple[int, int, int, bytes]], after_a_call: bool
) -> None:
    dialer, listener, _ = meet()
    if after_a_call:
        dialer.open(Request(endpoint="a.b.c", request_id="r", payload=b"\xc0", end=False))
        pump(dialer, listener)
    for kind, flags, stream, body in sent:
        feed(
            listener,
            struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body,
        )
        output(listener)
    listener.connection_lost()
    dialer.connection_lost()
    assert listener.open_streams == 0
    assert listener.budget.used == dialer.budget.used == 0


def test_a_reader_of_a_broken_call_takes_nothing_of_the_budget() -> None:
    dialer, listener, taken = meet()
    dialer.open(Request(endpoint="a.b.c", request_id="r", payload=b"\xc0", end=False))
    pump(dialer, listener)
    feed(listener, bytes.fromhex("000005 00 00 00000001") + struct.pack(">BI", 0, 2**23))
    listener.connection_lost()
    assert taken[0].receive_nowait() is None
    assert taken[0].ended
    assert listener.budget.used == 0


@pytest.mark.parametrize("said", ["1e400", "-1", "x", ""])
def test_a_limit_that_is_no_size_says_nothing(said: str) -> None:
    assert read_limit({"dynamo-max-message": said}) == math.inf
