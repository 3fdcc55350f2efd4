"""Sequences of HTTP/2 frames, right and wrong: no crash, the right error code, and nobody else is harmed.

A few by default, 100,000 by ``nox -s soak``; both against connections without I/O.
"""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dynamo.adapters.request_plane.http2.connection import Http2Connection
from dynamo.adapters.request_plane.http2.frames import PREFACE
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.opening import Options
from unit.http2.attacks import (
    CODES,
    SETTINGS,
    frame,
)
from unit.http2.caller import Caller, Handler
from unit.http2.odd import CHANGES, ODD, change, odd
from unit.http2.test_connection import pump
from unit.http2.wrong import WRONG, Wrong

MOST_CPU_S = 1.0  # of one sequence
ATTACK_BYTES = 65_536

# Right.

RIGHT = ["json", "native", "native that stays", "item", "items", "end", "stop", "cancel", "ping", "settings"]
RIGHT += ["window", "priority", "unknown", "late"]
STEPS = st.lists(st.tuples(st.sampled_from(RIGHT), st.integers(0, 255)), max_size=12)

ENDINGS = {
    "right": st.none(),
    "wrong": st.sampled_from(WRONG),
    "odd": ODD,
    "changed": st.tuples(STEPS, CHANGES),
}
KINDS = st.sampled_from(["right", "wrong", "wrong", "odd", "changed"])
SEQUENCES = (
    STEPS,
    KINDS.flatmap(lambda kind: st.tuples(st.just(kind), ENDINGS[kind])),
    st.sampled_from([0, 0, 0, 3, 50]),  # bytes that arrive at once, 0 for all
)

Steps = list[tuple[str, int]]


class Neighbour:
    """A call on another connection of the same worker, which has to go on."""

    def __init__(self, budget: ReceiveBudget) -> None:
        handler = Handler()
        self.dialer = Http2Connection(Options(peer="http://x:1"), ReceiveBudget(2**28), dialer=True)
        self.listener = Http2Connection(Options(peer="a caller"), budget, dialer=False, accept=handler.accept)
        self._handler = handler
        pump(self.dialer, self.listener)
        self._call = self.dialer.open(
            Request(endpoint="a.b.c", request_id="n", payload=b"\x81\xa2do\xa4hold", end=False)
        )
        pump(self.dialer, self.listener)
        self._count = 0

    def is_unharmed(self) -> None:
        self._count = (self._count + 1) % 128
        self._call.send(bytes([self._count]))
        pump(self.dialer, self.listener)
        self._handler.turn()
        pump(self.dialer, self.listener)
        assert self._call.receive_nowait() == bytes([self._count])


class Bench:
    """What many sequences share, and what they found."""

    def __init__(self) -> None:
        self.budget = ReceiveBudget(2**28)
        self.neighbour = Neighbour(self.budget)
        self.used = self.budget.used
        self.count = 0
        self.most_cpu_s = 0.0
        self.closed: dict[str, int] = {}

    def run(self, steps: Steps, ending: tuple[str, Any], piece: int) -> None:
        began = time.process_time()
        handler = Handler()
        worker = Http2Connection(Options(peer="a caller"), self.budget, dialer=False, accept=handler.accept)
        caller = Caller(worker, handler)
        caller.piece = piece
        try:
            caller.say(PREFACE + frame(SETTINGS, 0, 0))
            for what, number in steps:
                caller.say(caller.step(what, number))
            self.end(caller, ending)
        finally:
            worker.connection_lost()
        assert worker.open_streams == 0
        assert self.budget.used == self.used
        self.neighbour.is_unharmed()
        self.count += 1
        self.closed[ending[0]] = self.closed.get(ending[0], 0) + bool(caller.goodbyes)
        cpu_s = time.process_time() - began
        self.most_cpu_s = max(self.most_cpu_s, cpu_s)
        assert cpu_s < MOST_CPU_S

    def end(self, caller: Caller, ending: tuple[str, Any]) -> None:
        match ending:
            case "right", None:
                caller.check()
            case "wrong", (str(name), make, allowed):
                caller.say(make(caller))
                told = {*caller.goodbyes, *caller.resets} - {CODES.NO_ERROR}
                assert told, f"{name}: it was let pass"
                assert told <= allowed, f"{name}: {told}"
            case "odd", frames:
                caller.say(odd(caller.next_id, frames))
            case "changed", (steps, changes):
                said = b"".join(caller.step(what, number) for what, number in steps)
                caller.asked.clear()
                caller.say(change(said, changes))
        assert caller.worker.closed or not caller.goodbyes
        assert set(caller.goodbyes) <= set(CODES)


def run_many(count: int) -> None:
    """In parts, since hypothesis remembers all that it tried."""
    bench, process, part = Bench(), psutil.Process(), min(count, 1000)
    before = 0
    for number in range(count // part):

        @seed(number)
        @settings(max_examples=part, database=None, suppress_health_check=list(HealthCheck))
        @given(*SEQUENCES)
        def sequence(steps: Steps, ending: tuple[str, Any], piece: int) -> None:
            bench.run(steps, ending, piece)

        sequence()
        if number == 1:
            before = process.memory_info().rss
    grown = (process.memory_info().rss - before) / 2**20 if before else 0.0
    print(
        f"\n{bench.count:,} sequences, at most {bench.most_cpu_s * 1000:.0f} ms of CPU each; "
        f"{grown:.1f} MiB resident; connections closed: {bench.closed}"
    )
    assert grown < 64
    assert bench.closed["right"] == 0
    assert bench.closed["wrong"] > bench.count / 20


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong[0])
def test_what_is_wrong_is_told_with_the_right_code(wrong: Wrong) -> None:
    for steps in ([], [("json", 0), ("native that stays", 5), ("item", 3)]):
        Bench().run(steps, ("wrong", wrong), 0)


def test_sequences_of_frames_harm_nobody() -> None:
    run_many(250)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_many_sequences_of_frames_harm_nobody() -> None:
    run_many(70_000)
