"""Windows of the HTTP/2 connection come from the receive budget, and the peer's SETTINGS are kept to."""

from __future__ import annotations

import struct

import hpack
import pytest

from dynamo.adapters.request_plane.http2.connection import Http2Connection
from dynamo.adapters.request_plane.http2.frames import HEADERS, SETTINGS, frame
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import TooLargeError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.opening import Options
from unit.http2.test_connection import feed, frames, meet, output, pump

ITEM = b"\xc5\x10\x00" + bytes(4096)


def request(*, end: bool = True, **more: str) -> Request:
    return Request(endpoint="a.b.c", request_id="r", payload=b"\xc0", end=end, metadata=more)


def met(
    caller: ReceiveBudget, worker: ReceiveBudget
) -> tuple[Http2Connection, Http2Connection, list[Http2Call]]:
    taken: list[Http2Call] = []
    options = Options(peer="http://x:1")
    dialer = Http2Connection(options, caller, dialer=True)
    listener = Http2Connection(options, worker, dialer=False, accept=taken.append)
    pump(dialer, listener)
    return dialer, listener, taken


def test_a_caller_s_windows_come_from_its_budget_and_shrink_with_it() -> None:
    budget = ReceiveBudget(2**20)
    dialer, listener, taken = met(budget, ReceiveBudget(2**28))
    calls = [dialer.open(request()) for _ in range(100)]
    pump(dialer, listener)
    assert budget.used == sum(call.window for call in calls) <= 2**20
    assert calls[0].window == dialer.options.window_bytes
    assert calls[-1].window < 2048
    assert [call.credit for call in taken] == [call.window for call in calls]
    for call in taken:
        while call.send(ITEM):
            pass
    pump(dialer, listener)
    for caller, worker in zip(calls, taken, strict=True):
        assert sum(map(len, caller._items)) <= caller.window
        worker.fail(TooLargeError("enough"))
        caller.kill()
    pump(dialer, listener)
    assert budget.used == 0


@pytest.mark.parametrize("total, full", [(2**28, True), (100_000, False)])
def test_a_worker_widens_the_window_of_an_open_input_if_it_has_the_memory(total: int, full: bool) -> None:
    budget = ReceiveBudget(total)
    dialer, listener, taken = met(ReceiveBudget(2**28), budget)
    call = dialer.open(request(end=False))
    pump(dialer, listener)
    assert taken[0].window == (dialer.options.window_bytes if full else listener.first_window)
    assert budget.used == taken[0].window
    sent = 0
    while call.send(ITEM):
        sent += len(ITEM)
    pump(dialer, listener)
    assert taken[0].window - 2 * len(ITEM) < sent <= taken[0].window
    call.kill()
    pump(dialer, listener)
    assert budget.used == 0


def test_a_call_whose_input_is_whole_holds_nothing_of_the_worker_s_budget() -> None:
    budget = ReceiveBudget(2**28)
    dialer, listener, taken = met(ReceiveBudget(2**28), budget)
    dialer.open(request())
    pump(dialer, listener)
    assert len(taken) == 1
    assert budget.used == 0


def said(code: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", code, value))


@pytest.mark.parametrize("size", [0, 100, 4096, 2**20])
def test_the_peer_s_table_of_fields_is_never_overfilled(size: int) -> None:
    dialer, _, _ = meet()
    feed(dialer, said(1, 100) + said(1, size))
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = size
    output(dialer)
    for number in range(5):
        dialer.open(request(number=str(number)))
        blocks = [body for kind, body in frames(output(dialer)) if kind == HEADERS]
        fields: dict[str, str] = dict(decoder.decode(blocks[0]))  # type: ignore[arg-type]
        assert fields[":path"] == "/a/b/c"
        assert fields["dynamo-meta-number"] == str(number)
        assert decoder.header_table._current_size <= min(size, 4096)


def test_more_calls_than_the_peer_takes_wait_for_others_to_end() -> None:
    dialer, listener, taken = meet()
    feed(dialer, said(3, 2))
    calls = [dialer.open(request()) for _ in range(5)]
    for number in range(5):
        pump(dialer, listener)
        assert len(taken) == min(5, number + 2)
        taken[number].send(b"\x01", end=True)
        assert not calls[number].ended
    pump(dialer, listener)
    assert [call.receive_nowait() for call in calls] == [b"\x01"] * 5


def test_a_call_with_more_fields_than_the_peer_takes_is_told_so() -> None:
    dialer, _, _ = meet()
    feed(dialer, said(6, 2000))
    dialer.open(request())
    with pytest.raises(TooLargeError, match="limit of 1750"):
        dialer.open(request(long="x" * 2000))
