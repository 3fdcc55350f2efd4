"""Peers that stop: in the opening, in a header block, with a window shut. Time is told, not waited for."""

from __future__ import annotations

import math
import struct

import hpack
import pytest

from dynamo.adapters.request_plane.http2.connection import Http2Connection
from dynamo.adapters.request_plane.http2.frames import PREFACE
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import UnavailableError
from unit.http2.attacks import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    REQUEST,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    u32,
)
from unit.http2.test_connection import connection, feed, frames, output

HELLO = PREFACE + frame(SETTINGS, 0, 0)


def kinds(side: Http2Connection) -> list[int]:
    return [kind for kind, _ in frames(output(side))]


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE, HELLO[:-1]], ids=len)
def test_who_stops_in_the_opening_is_let_go(said: bytes) -> None:
    side = connection(dialer=False, taken=[])
    feed(side, said)
    output(side)
    side.tick(0.0)
    assert side.tick(side.options.opening_s - 0.01) <= side.options.opening_s
    assert not side.closed
    assert side.tick(side.options.opening_s) == math.inf
    assert isinstance(side.error, UnavailableError)
    assert kinds(side) == [GOAWAY]


def test_who_opens_byte_by_byte_gets_no_more_time() -> None:
    side = connection(dialer=False, taken=[])
    output(side)
    side.tick(0.0)
    for number in range(20):
        feed(side, HELLO[number : number + 1])
        side.tick(number * side.options.opening_s / 19)
    assert side.closed


@pytest.mark.parametrize("begun", [b"", frame(HEADERS, 0, 1, hpack.Encoder().encode(REQUEST))])
def test_who_falls_silent_is_asked_and_let_go(begun: bytes) -> None:
    side = connection(dialer=False, taken=[])
    feed(side, HELLO + begun)
    output(side)
    at, asked = side.tick(0.0), 0
    while not side.closed:
        asked += kinds(side).count(PING)
        at = side.tick(at)
    assert asked >= 1
    assert "DYN_KEEPALIVE_S" in str(side.error)
    assert side.open_streams == side.budget.used == 0


def test_who_answers_stays_for_as_long_as_it_likes() -> None:
    side = connection(dialer=False, taken=[])
    feed(side, HELLO)
    output(side)
    at = side.tick(0.0)
    for _ in range(50):
        at = side.tick(at)
        if PING in kinds(side):
            feed(side, frame(PING, ACK, 0, bytes(8)))
    assert not side.closed


def test_a_window_that_is_shut_holds_up_its_own_stream_only() -> None:
    taken: list[Http2Call] = []
    side = connection(dialer=False, taken=taken)
    encoder = hpack.Encoder()
    feed(side, PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
    for stream in (1, 3):
        feed(side, frame(HEADERS, END_HEADERS, stream, encoder.encode(REQUEST)))
        feed(side, frame(DATA, END_STREAM, stream, b"1"))
    for call in taken:
        call.send(b"\x07", end=True)
    assert DATA not in kinds(side)
    assert side.open_streams == 2
    feed(side, frame(WINDOW_UPDATE, 0, 3, u32(1)))
    assert [body for kind, body in frames(output(side)) if kind == DATA] == [b"7"]
    feed(side, frame(WINDOW_UPDATE, 0, 3, u32(1)))
    assert [body for kind, body in frames(output(side)) if kind == DATA] == [b"\n"]
    assert side.open_streams == 1
    side.connection_lost()
    assert side.open_streams == 0
