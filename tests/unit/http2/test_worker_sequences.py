"""What a worker may say over HTTP/2, right and wrong: calls end as they should, and typed."""

from __future__ import annotations

import struct
from typing import Any

import hpack
import msgpack
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dynamo.adapters.request_plane.http2.connection import Http2Connection
from dynamo.adapters.request_plane.http2.headers import end_fields
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import (
    DynamoError,
    OverloadedError,
    RemoteError,
    Retry,
    StreamBrokenError,
    UnavailableError,
)
from dynamo.core.ports.request_plane import Request
from unit.http2.attacks import (
    ACK,
    CODES,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    u32,
)
from unit.http2.caller import NATIVE, message
from unit.http2.odd import CHANGES, ODD, change, odd
from unit.http2.test_connection import connection, feed, output

CALLS = 4
HEAD = [(":status", "200"), ("content-type", NATIVE), ("dynamo-max-message", "1000000")]
Steps = list[tuple[str, int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["answer", "answer", "part", "fail", "refuse", "reset", "cut short", "interim", "ping", "window",
             "settings", "unknown", "stranger"]
        ),
        st.integers(0, 255),
    ),
    max_size=10,
)  # fmt: skip


class Worker:
    """The peer of four calls: ``expected`` is how those ended that it ended."""

    def __init__(self, caller: Http2Connection) -> None:
        self.caller, self.encoder = caller, hpack.Encoder()
        payloads: list[Any] = [b"\x01", memoryview(b"raw"), None, b"\xc4\xff" + bytes(255)]
        self.calls: dict[int, Http2Call] = {
            2 * number + 1: caller.open(
                Request(endpoint="a.b.c", request_id="r", payload=payload, end=number != 2)
            )
            for number, payload in enumerate(payloads)
        }
        self.items: dict[int, list[int]] = {stream: [] for stream in self.calls}
        self.headed: set[int] = set()
        self.expected: dict[int, type[DynamoError] | None] = {}

    def say(self, data: bytes) -> None:
        feed(self.caller, data)
        output(self.caller)

    def _head(self, stream: int) -> bytes:
        if stream in self.headed:
            return b""
        self.headed.add(stream)
        return frame(HEADERS, END_HEADERS, stream, self.encoder.encode(HEAD))

    def _end(self, stream: int, error: DynamoError | None, *, alone: bool = False) -> bytes:
        fields = end_fields(error, Retry.SAFE if alone else None)
        first = [] if stream in self.headed else HEAD
        self.headed.add(stream)
        return frame(HEADERS, END_HEADERS | END_STREAM, stream, self.encoder.encode([*first, *fields]))

    def step(self, what: str, number: int) -> bytes:
        match what:
            case "ping":
                return frame(PING, (number & 1) * ACK, 0, bytes(8))
            case "window":
                return frame(WINDOW_UPDATE, 0, 0, u32(number + 1))
            case "settings":
                return frame(SETTINGS, 0, 0, struct.pack(">HI", (1, 3, 4, 6)[number & 3], number * 100))
            case "unknown":
                return frame(11 + number % 245, number, number & 1, bytes(number % 50))
        streams = [stream for stream in self.calls if stream not in self.expected]
        if not streams:
            return b""
        stream = streams[number % len(streams)]
        match what:
            case "part" | "answer":
                self.items[stream] += range(number % 9)
                items = b"".join(message(0, msgpack.packb(n)) for n in range(number % 9))
                said = self._head(stream) + (frame(DATA, 0, stream, items) if items else b"")
                if what == "answer":
                    self.expected[stream] = None
                    said += self._end(stream, None)
                return said
            case "fail":
                self.expected[stream] = RemoteError
                return self._head(stream) + self._end(stream, RemoteError("no", type_name="KeyError"))
            case "refuse" if stream not in self.headed:
                self.expected[stream] = OverloadedError
                return self._end(stream, OverloadedError("full"), alone=True)
            case "reset":
                code = (CODES.INTERNAL_ERROR, CODES.CANCEL, CODES.NO_ERROR)[number % 3]
                self.expected[stream] = StreamBrokenError
                return frame(RST_STREAM, 0, stream, u32(code))
            case "cut short":
                self.expected[stream] = StreamBrokenError
                return self._head(stream) + frame(DATA, END_STREAM, stream)
            case "interim" if stream not in self.headed:
                return frame(HEADERS, END_HEADERS, stream, self.encoder.encode([(":status", "103")]))
            case "stranger" if stream not in self.headed:
                self.expected[stream] = UnavailableError
                fields = [(":status", "502"), ("content-type", "text/html")]
                return frame(HEADERS, END_HEADERS, stream, self.encoder.encode(fields)) + frame(
                    DATA, 1, stream, b"x"
                )
        return b""

    def check(self) -> None:
        """All it said was right."""
        assert not self.caller.closed, self.caller.error
        for stream, call in self.calls.items():
            items = []
            while (item := call.receive_nowait()) is not None:
                items.append(msgpack.unpackb(item))
            assert call.ended is (stream in self.expected)
            if call.ended:
                expected = self.expected[stream]
                assert type(call.error) is (expected or type(None)), (stream, call.error)
                if expected is not UnavailableError:
                    assert items == self.items[stream]


def run(steps: Steps, ending: tuple[str, Any]) -> None:
    caller = connection(dialer=True)
    worker = Worker(caller)
    worker.say(frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0))
    try:
        for what, number in steps:
            worker.say(worker.step(what, number))
        match ending:
            case "right", _:
                worker.check()
            case "odd", frames:
                worker.say(odd(9, frames))
            case "changed", (more, changes):
                worker.say(change(b"".join(worker.step(*one) for one in more), changes))
            case "goodbye", number:
                worker.say(frame(GOAWAY, 0, 0, u32(number) + u32(CODES.NO_ERROR)))
                for stream, call in worker.calls.items():
                    if stream > number and stream not in worker.expected:
                        taken = stream in worker.headed  # whatever it says now
                        verdict = Retry.UNKNOWN if taken else Retry.SAFE
                        assert call.error is None or call.error.retry is verdict
    finally:
        caller.connection_lost()
    for call in worker.calls.values():
        while call.receive_nowait() is not None:
            pass
        assert call.ended
        assert call.error is None or isinstance(call.error, DynamoError)
    assert caller.open_streams == caller.budget.used == 0


ENDINGS: dict[str, st.SearchStrategy[Any]] = {
    "right": st.none(),
    "goodbye": st.sampled_from([0, 1, 3, 2**31 - 1]),
    "odd": ODD,
    "changed": st.tuples(STEPS, CHANGES),
}
KINDS = st.sampled_from(["right", "right", "goodbye", "odd", "odd", "changed", "changed"])


def run_many(count: int) -> None:
    part = min(count, 1000)
    for number in range(count // part):

        @seed(number)
        @settings(max_examples=part, database=None, suppress_health_check=list(HealthCheck))
        @given(STEPS, KINDS.flatmap(lambda kind: st.tuples(st.just(kind), ENDINGS[kind])))
        def sequence(steps: Steps, ending: tuple[str, Any]) -> None:
            run(steps, ending)

        sequence()


def test_whatever_a_worker_says_calls_end_typed() -> None:
    run_many(150)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_whatever_many_workers_say_calls_end_typed() -> None:
    run_many(30_000)
