"""The memory request plane, broken in one way at a time, under its contract.

``test_broken_request_plane`` runs it and says which tests must fail on each breakage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from dynamo.adapters.request_plane.mem import MemRequestPlane, MemServer, open_mem
from dynamo.adapters.request_plane.mem import calls as mem_calls
from dynamo.adapters.request_plane.mem import end as mem_end
from dynamo.adapters.request_plane.mem import plane as mem_plane
from dynamo.adapters.request_plane.mem.calls import Call
from dynamo.adapters.request_plane.mem.end import Budget, End, Message
from dynamo.core.config import Settings
from dynamo.core.errors import DynamoError, Retry, UnavailableError
from dynamo.core.health import Health
from dynamo.core.ports.request_plane import Payload, Request
from dynamo.testing.request_plane import RequestPlaneContract, RequestPlaneHarness

Patch = Callable[[pytest.MonkeyPatch], None]
BREAKAGES: dict[str, Patch] = {}


def breakage(patch: Patch) -> Patch:
    BREAKAGES[patch.__name__] = patch
    return patch


@breakage
def nothing(patch: pytest.MonkeyPatch) -> None:
    """The suite passes as it is run here."""


@breakage
def r1_raw_becomes_messagepack(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mem_end, "snapshot", bytes)
    patch.setattr(mem_plane, "snapshot", bytes)


@breakage
def r1_the_last_two_items_change_places(patch: pytest.MonkeyPatch) -> None:
    deliver = End._deliver

    def swap(self: End, batch: list[Message], credit: int) -> None:
        deliver(self, [], credit)
        for message in batch:
            deliver(self, [message], 0)
            if isinstance(message, (bytes, memoryview)) and len(self._inbox) > 1:
                self._inbox[-1], self._inbox[-2] = self._inbox[-2], self._inbox[-1]

    patch.setattr(End, "_deliver", swap)


@breakage
def r1_a_buffer_is_shared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mem_end, "snapshot", lambda payload: payload)
    patch.setattr(mem_plane, "snapshot", lambda payload: payload)


@breakage
def r1_in_a_crowd_items_go_to_another_stream(patch: pytest.MonkeyPatch) -> None:
    deliver = Call._deliver

    def stray(self: Call, batch: list[Message], credit: int) -> None:
        deliver(self, [], credit)
        for message in batch:
            others = [call for call in self.plane.calls if self in self.plane.calls and call is not self]
            others = [call for call in others if call._inbox]
            astray = isinstance(message, (bytes, memoryview)) and len(others) > 20
            deliver(others[0] if astray else self, [message], 0)

    patch.setattr(Call, "_deliver", stray)


@breakage
def r2_call_raises_where_nobody_serves(patch: pytest.MonkeyPatch) -> None:
    def give_up(self: Call, error: DynamoError) -> None:
        raise error

    patch.setattr(Call, "give_up", give_up)


@breakage
def r3_a_refusal_keeps_its_verdict(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Call, "refuse", Call.fail)


@breakage
def r3_anybody_answers(patch: pytest.MonkeyPatch) -> None:
    reason_to_refuse = MemServer.reason_to_refuse
    patch.setattr(
        MemServer, "reason_to_refuse", lambda self, request, *_: reason_to_refuse(self, request, 0, 0)
    )


@breakage
def r4_there_is_always_room(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(End, "_has_room", property(lambda self: True))


@breakage
def r5_no_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Budget, "fits", lambda self, size: True)


@breakage
def r5_the_budget_goes_to_streams_that_nobody_reads(patch: pytest.MonkeyPatch) -> None:
    def promise(self: End, size: int) -> None:
        self.promised = size
        self._ask()

    patch.setattr(End, "_promise", promise)


@breakage
def r5_nothing_is_larger_than_the_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Budget, "fits", lambda self, size: size <= self._free)


@breakage
def r6_kill_stays_here(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Call, "leave", lambda self, error: self._close(error, keep=False))


@breakage
def r7_stop_kills(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Call, "stop", Call.kill)


@breakage
def r7_stop_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Call, "stop", lambda self: None)


@breakage
def r8_a_broken_link_looks_like_an_end(patch: pytest.MonkeyPatch) -> None:
    break_off = Call.break_off

    def end(self: Call, reason: str) -> None:
        if self._server is None:
            self._close(None, keep=True)
        else:
            break_off(self, reason)

    patch.setattr(Call, "break_off", end)


@breakage
def r8_the_worker_is_not_told(patch: pytest.MonkeyPatch) -> None:
    break_off = Call.break_off

    def tell_the_caller(self: Call, reason: str) -> None:
        if self._server is None:
            break_off(self, reason)
        else:
            self._post(lambda peer: peer.break_off(reason))

    patch.setattr(Call, "break_off", tell_the_caller)


@breakage
def r9_an_error_overtakes_items(patch: pytest.MonkeyPatch) -> None:
    def fail(self: Call, error: DynamoError) -> None:
        if not self._output_over:
            self._queued.clear()
            self._fail(mem_end.twin(error))

    patch.setattr(Call, "fail", fail)


@breakage
def r9_every_error_is_remote(patch: pytest.MonkeyPatch) -> None:
    def fail(self: Call, error: DynamoError) -> None:
        arrived = mem_end.twin(error)
        arrived.remote, arrived.retry = True, Retry.NEVER
        self._fail(arrived)

    patch.setattr(Call, "fail", fail)


@breakage
def r9_an_error_loses_what_it_carries(patch: pytest.MonkeyPatch) -> None:
    def lose(error: DynamoError, retry: Retry | None = None) -> DynamoError:
        return type(error)(str(error), retry=retry or error.retry, remote=error.remote)

    patch.setattr(mem_calls, "twin", lose)


@breakage
def r10_the_end_of_the_input_ends_the_call(patch: pytest.MonkeyPatch) -> None:
    end_input = Call._end_input

    def end_both(self: Call, error: DynamoError | None) -> None:
        end_input(self, error)
        self.end()

    patch.setattr(Call, "_end_input", end_both)


@breakage
def r11_the_request_is_shared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemRequestPlane, "_copy", lambda self, request, other: request)


@breakage
def r11_attempts_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    copy = MemRequestPlane._copy

    def lose(self: MemRequestPlane, request: Request, other: MemRequestPlane) -> Request:
        copied = copy(self, request, other)
        copied.attempt = 1
        return copied

    patch.setattr(MemRequestPlane, "_copy", lose)


@breakage
def r12_drain_is_not_announced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemServer, "drain", lambda self: None)


@breakage
def r12_refuse_cuts_what_runs(patch: pytest.MonkeyPatch) -> None:
    refuse = MemServer.refuse

    def cut(self: MemServer) -> None:
        refuse(self)
        self.break_links()

    patch.setattr(MemServer, "refuse", cut)


@breakage
def r13_one_window_for_all_streams(patch: pytest.MonkeyPatch) -> None:
    """Of one plane and direction; what an ended stream did not read comes back to the others."""

    pools: dict[tuple[MemRequestPlane, bool], list[int]] = {}
    spent: dict[End, int] = {}
    pool_of: dict[End, list[int]] = {}

    def start(
        self: Call, plane: MemRequestPlane, other: MemRequestPlane, request: Request,
        server: MemServer | None = None,
    ) -> None:  # fmt: skip
        init(self, plane, other, request, server)
        pool_of[self] = pools.setdefault((plane, server is None), [other.capability.window_bytes])

    def get(self: End) -> int:
        return pool_of.get(self, [0])[0]

    def put(self: End, value: int) -> None:
        if self in pool_of:
            spent[self] = spent.get(self, 0) + get(self) - value
            pool_of[self][0] = value

    def finish(self: Call, error: DynamoError | None, *, keep: bool) -> None:
        close(self, error, keep=keep)
        put(self, get(self) + spent.get(self, 0))

    def finish_a_direction(self: Call) -> None:
        end_output(self)
        if self.ended:
            put(self, get(self) + spent.get(self, 0))

    init, close, end_output = Call.__init__, Call._close, Call._end_output
    patch.setattr(Call, "_end_output", finish_a_direction)
    patch.setattr(Call, "__init__", start)
    patch.setattr(Call, "_close", finish)
    patch.setattr(End, "_credit", property(get, put), raising=False)


@breakage
def r14_no_item_is_too_large(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mem_end, "check_size", lambda payload, limit: None)
    patch.setattr(mem_plane, "check_size", lambda payload, limit: None)


@breakage
def r14_a_large_item_ends_the_call(patch: pytest.MonkeyPatch) -> None:
    send = End.send

    def send_or_die(self: End, payload: Payload, *, end: bool = False) -> bool:
        try:
            return send(self, payload, end=end)
        except DynamoError:
            self.end()
            raise

    patch.setattr(End, "send", send_or_die)


@breakage
def r15_wait_holds_the_item_while_it_waits(patch: pytest.MonkeyPatch) -> None:
    wait = End.wait

    async def hold(self: End) -> None:
        await wait(self)
        if self._inbox:
            item = self._inbox.popleft()
            await asyncio.sleep(0)
            self._inbox.appendleft(item)
            self.ended = False

    patch.setattr(End, "wait", hold)


@breakage
def r15_a_cancelled_writable_empties_the_queue(patch: pytest.MonkeyPatch) -> None:
    writable = End.writable

    async def lose(self: End) -> None:
        try:
            await writable(self)
        except asyncio.CancelledError:
            self._queued.clear()
            raise

    patch.setattr(End, "writable", lose)


@breakage
def r16_a_task_for_each_killed_call(patch: pytest.MonkeyPatch) -> None:
    kill, kept = Call.kill, list[asyncio.Task[None]]()

    def leak(self: Call) -> None:
        kill(self)
        kept.append(asyncio.get_running_loop().create_task(asyncio.sleep(30)))

    patch.setattr(Call, "kill", leak)


@breakage
def r16_a_killed_call_keeps_its_budget(patch: pytest.MonkeyPatch) -> None:
    release = End._release

    def keep(self: End) -> None:
        if not self._output_over:
            release(self)

    patch.setattr(End, "_release", keep)


@breakage
def r16_leaving_serve_ends_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemServer, "abort", lambda self: None)


@breakage
def r17_check_raises(patch: pytest.MonkeyPatch) -> None:
    check = MemRequestPlane.check

    async def complain(self: MemRequestPlane, address: str) -> Health:
        health = await check(self, address)
        if not health.ok:
            raise UnavailableError(health.detail)
        return health

    patch.setattr(MemRequestPlane, "check", complain)


class MemHarness(RequestPlaneHarness):
    def open_plane(self, **settings: Any) -> AbstractAsyncContextManager[MemRequestPlane]:
        return open_mem("mem://", Settings(**settings))


class TestBrokenMemRequestPlane(RequestPlaneContract):
    patience_s = 1.0
    quiet_s = 0.01
    many_streams = 30

    @pytest.fixture(params=BREAKAGES)
    def harness(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MemHarness:
        monkeypatch.setattr(mem_plane, "HOLD_S", 0.0)  # else time says what comes together, so what breaks
        BREAKAGES[request.param](monkeypatch)
        return MemHarness()
