"""HELLO, token, and keep-alive: who may talk to whom, and for how long one waits."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dynamo.core.errors import (
    AuthError,
    DynamoError,
    Retry,
    StreamBrokenError,
    UnavailableError,
    UnsupportedError,
    WireError,
    WrongInstanceError,
)
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire import opening
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.frames import KILL, PING
from dynamo.core.wire.opening import Hello, Options
from unit.wire.pair import Pair, read
from unit.wire.vectors import MAGIC, frames_in


def kinds(connection: Connection) -> list[int]:
    return [kind for kind, *_ in frames_in(b"".join(map(bytes, connection.take_output(2**20))))]


def test_a_silent_dialer_is_told_nothing() -> None:
    pair = Pair()
    assert pair.listener.take_output(2**20) == []
    pair.listener.feed(MAGIC)
    assert pair.listener.take_output(2**20) == []
    assert pair.listener.greeted


def test_both_sides_know_each_other_after_the_opening() -> None:
    pair = Pair(Options(instance_id=7, incarnation=70), Options(instance_id=8, incarnation=2**64 - 1))
    ready: list[str] = []
    pair.dialer.on_ready = lambda: ready.append("dialer")
    pair.listener.on_ready = lambda: ready.append("listener")
    pair.settle()
    assert sorted(ready) == ["dialer", "listener"]
    assert (pair.dialer.peer_instance_id, pair.dialer.peer_incarnation) == (8, 2**64 - 1)
    assert (pair.listener.peer_instance_id, pair.listener.peer_incarnation) == (7, 70)
    assert pair.dialer.ready
    assert pair.dialer.accepts_calls


@pytest.mark.parametrize(
    "expected, named",
    [
        ({"expected_instance_id": 0xAB}, "instance 171 "),
        ({"expected_instance_id": 8, "expected_incarnation": 0xCD}, "cd"),
    ],
)
def test_another_instance_is_a_safe_refusal_that_names_both(expected: dict[str, Any], named: str) -> None:
    pair = Pair(Options(**expected), Options(instance_id=8, incarnation=0xEF))
    caller = pair.open()
    pair.settle()
    assert pair.accepted == []
    for error in (caller.error, pair.dialer.error, pair.listener.error):
        assert isinstance(error, WrongInstanceError)
        assert error.retry is Retry.SAFE
        assert named in str(error)
        assert "ef" in str(error)


def test_no_common_version_is_a_safe_refusal_that_names_both_ranges() -> None:
    with pytest.raises(UnsupportedError, match=r"1 to 1.*3 to 9") as caught:
        opening.check_version(Hello(min_version=3, max_version=9))
    assert caught.value.retry is Retry.SAFE
    opening.check_version(Hello(min_version=1, max_version=9))


@pytest.mark.parametrize("token", ["s3cret", "ключ 🔑", "x" * 1000])
def test_the_same_token_opens_and_is_never_sent(token: str) -> None:
    pair = Pair(Options(token=token), Options(token=token))
    caller = pair.open(b"\x01")
    sent = bytearray()
    for _ in range(5):
        pair.pull()
        sent += pair.to_listener + pair.to_dialer
        pair.push()
    assert len(pair.accepted) == 1
    assert not caller.ended
    assert token.encode() not in sent


@pytest.mark.parametrize(
    "dialer, listener", [("a", "b"), ("a", None), (None, "b"), ("a", ""), ("", "b"), ("a", "a ")]
)
def test_another_token_or_none_ends_both_sides_and_starts_nothing(
    dialer: str | None, listener: str | None
) -> None:
    pair = Pair(Options(token=dialer), Options(token=listener))
    caller = pair.open()
    pair.settle()
    assert pair.accepted == []
    assert isinstance(caller.error, AuthError)
    assert isinstance(pair.dialer.error, AuthError)
    assert isinstance(pair.listener.error, AuthError)
    assert "DYN_AUTH_TOKEN" in str(caller.error)
    assert caller.error.retry is Retry.NEVER


def test_nonces_differ_from_connection_to_connection_unless_given() -> None:
    budget = Pair().dialer_budget
    hellos = [
        b"".join(map(bytes, Connection(Options(token="t"), budget, dialer=True).take_output(1000)))
        for _ in range(10)
    ]
    assert len(set(hellos)) == 10
    fixed = Options(token="t", nonce=bytes(32))
    assert len({opening.encode_hello(fixed, fixed.nonce, None) for _ in range(2)}) == 1


def test_a_recorded_opening_does_not_open_another_connection() -> None:
    pair = Pair(Options(token="t"), Options(token="t"))
    recorded = bytearray()
    for _ in range(4):
        pair.pull()
        recorded += pair.to_listener
        pair.push()
    assert pair.listener.ready
    other = Connection(Options(token="t"), pair.listener_budget, dialer=False)
    other.feed(recorded)
    assert isinstance(other.error, AuthError)


@pytest.mark.parametrize(
    "first, hint", [(b"\x15\x03\x03\x00\x02\x02\x32", "TLS"), (b"HTTP/1.1 400 Bad\r\n", "HTTP")]
)
def test_a_peer_that_speaks_something_else_is_named(first: bytes, hint: str) -> None:
    pair = Pair(Options(peer="tcp://h:1"))
    caller = pair.open()
    pair.dialer.take_output(2**20)
    pair.dialer.feed(first)
    assert isinstance(pair.dialer.error, WireError)
    assert hint in str(pair.dialer.error)
    assert "tcp://h:1" in str(pair.dialer.error)
    assert isinstance(caller.error, StreamBrokenError)
    assert not pair.dialer.greeted


# Time.


def test_an_opening_that_takes_too_long_ends_the_connection() -> None:
    pair = Pair(Options(opening_s=5, peer="tcp://h:1"), Options(opening_s=5))
    caller = pair.open()
    for connection in (pair.dialer, pair.listener):
        now = connection.tick(100.0)
        while not connection.closed:
            assert now <= 105.0
            now = connection.tick(now)
        assert isinstance(connection.error, UnavailableError)
        assert "5 s" in str(connection.error)
        assert connection.tick(200.0) == math.inf
    assert type(caller.error) is UnavailableError  # never written


class Clock:
    """Ticks a connection when it asks for it."""

    def __init__(self, connection: Connection, start: float = 1000.0) -> None:
        self.connection, self.now = connection, start
        self.due = connection.tick(start)

    def run_to(self, now: float) -> None:
        while self.due <= now:
            assert self.due > self.now
            self.now = self.due
            self.due = self.connection.tick(self.now)
        self.now = now


K = 8.0


def silent_pair() -> tuple[Pair, Clock]:
    pair = Pair(Options(keepalive_s=K, peer="tcp://h:1"), Options(keepalive_s=K))
    pair.settle()
    clock = Clock(pair.dialer)
    pair.pull()
    pair.to_listener.clear()
    return pair, clock


def test_silence_is_asked_about_at_half_of_k_and_again() -> None:
    pair, clock = silent_pair()
    clock.run_to(1000 + K / 2 - 0.1)
    assert kinds(pair.dialer) == []
    clock.run_to(1000 + K / 2 + K / 8)
    assert kinds(pair.dialer) == [PING]
    clock.run_to(1000 + K + K / 8)
    assert kinds(pair.dialer) == [PING]


def test_an_answered_ping_starts_the_count_anew() -> None:
    pair, clock = silent_pair()
    for second in range(1, 100):
        clock.run_to(1000 + second)
        pair.settle()
    assert pair.dialer.accepts_calls
    assert not pair.dialer.closed


def test_at_k_no_new_calls_and_unanswered_idempotent_ones_go_elsewhere() -> None:
    pair, clock = silent_pair()
    unanswered = pair.open(idempotent=True)
    once_only = pair.open(idempotent=False)
    pair.settle()
    answered = pair.open(idempotent=True)
    pair.settle()
    pair.accepted[2].send(b"\x01")
    pair.settle()
    clock.run_to(1001)  # heard
    kinds(pair.dialer)
    clock.run_to(1001 + K + K / 4)
    assert not pair.dialer.accepts_calls
    assert isinstance(unanswered.error, UnavailableError)
    assert unanswered.error.retry is Retry.UNKNOWN
    assert "DYN_KEEPALIVE_S" in str(unanswered.error)
    assert once_only.error is None
    late = pair.open()
    assert late.ended
    assert isinstance(late.error, UnavailableError)
    assert late.error.retry is Retry.SAFE
    assert "DYN_KEEPALIVE_S" in str(late.error)
    assert not answered.ended
    assert read(answered) == [b"\x01"]
    assert KILL in kinds(pair.dialer)
    pair.accepted[1].send(b"\x02", end=True)
    pair.settle()
    clock.run_to(clock.now + 2)
    assert pair.dialer.accepts_calls
    assert read(once_only) == [b"\x02"]


def test_at_three_k_the_connection_is_dead_on_both_sides() -> None:
    pair = Pair(Options(keepalive_s=K, peer="tcp://h:1"), Options(keepalive_s=K))
    caller, worker = pair.call()
    clocks = [Clock(pair.dialer), Clock(pair.listener)]
    for clock in clocks:
        clock.run_to(1000 + 3 * K - 0.1)
        assert not clock.connection.closed
        clock.run_to(1000 + 3 * K + K / 4)
        assert clock.connection.closed
    assert isinstance(caller.error, StreamBrokenError)
    assert "24 s" in str(caller.error)
    assert worker.killed
    assert isinstance(worker.error, DynamoError)


def test_any_byte_counts_even_of_a_frame_that_is_not_whole() -> None:
    pair, clock = silent_pair()
    for second in range(1, 60):
        pair.dialer.feed(b"\x05" if second == 1 else b"\x00") if second < 16 else pair.dialer.feed(b"")
        clock.run_to(1000 + second)
        if second < 16:
            assert pair.dialer.accepts_calls
    assert pair.dialer.closed


@pytest.mark.parametrize(
    "timeout_s, arrives",
    [(0.3, 0.3), (29.7, 29.7), (-3.0, 0.0), (float("nan"), 0.0), (float("inf"), 9e9), (1e30, 9e9)],
)
def test_any_time_left_arrives_as_one_that_can_be_told(timeout_s: float, arrives: float) -> None:
    request = Request(endpoint="a.b.c", request_id="r", timeout_s=timeout_s)
    found, _ = opening.decode_head(memoryview(opening.encode_head(request, None)), 262_144)
    assert found.timeout_s == arrives
