"""Owners, things held open, and waits that end."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from dynamo.core.errors import ClosedError, DynamoError
from dynamo.core.lifetime import Held, Owner, backoff, lone, see_through, within
from unit.deployments import bounded, until

pytestmark = pytest.mark.anyio


def test_an_owner_needs_a_loop() -> None:
    with pytest.raises(ClosedError, match="outside an event loop"):
        Owner("it").enter()


async def test_an_owner_belongs_to_the_loop_that_entered_it() -> None:
    owner = Owner("it")
    assert owner.loop is None
    assert owner.enter() is owner.enter() is owner.loop

    async def elsewhere() -> None:
        owner.enter()

    with pytest.raises(ClosedError, match=r"still open.*run_coroutine_threadsafe"):
        await asyncio.to_thread(asyncio.run, elsewhere())


def test_an_owner_whose_loop_is_closed_says_so() -> None:
    owner = Owner("it")

    async def enter() -> None:
        owner.enter()

    asyncio.run(enter())
    with pytest.raises(ClosedError, match="closed"):
        asyncio.run(enter())


def test_delays_grow_to_a_limit_and_are_spread() -> None:
    delays = list(itertools.islice(backoff(1.0, 8.0), 6))
    for delay, whole in zip(delays, [1, 2, 4, 8, 8, 8], strict=True):
        assert whole / 2 <= delay <= whole
    assert next(backoff()) != next(backoff())


def test_a_single_failure_is_taken_out_of_its_groups() -> None:
    error = ValueError("one")
    assert lone(ExceptionGroup("outer", [ExceptionGroup("inner", [error])])) is error
    two = ExceptionGroup("two", [error, KeyError("other")])
    assert lone(two) is two
    assert lone(error) is error


async def test_within_cancels_what_takes_too_long_and_raises_what_fails() -> None:
    assert await within(1.0, asyncio.sleep(0))
    waiting = asyncio.get_running_loop().create_future()
    assert not await within(0.01, waiting)
    assert waiting.cancelled()

    async def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await within(1.0, fail())


async def test_an_end_is_seen_through_repeated_cancellation_which_is_raised_afterwards() -> None:
    gate = asyncio.Event()
    end = asyncio.ensure_future(gate.wait())
    waiting = asyncio.ensure_future(see_through(end))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await bounded(waiting)
    assert end.result() is True


async def test_an_end_is_seen_through_a_cancelled_scope_of_anyio() -> None:
    end = asyncio.ensure_future(asyncio.sleep(0.01, "done"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await see_through(end) == "done"


# Held.


class Thing:
    """Counts who entered and who left it, by task."""

    def __init__(self) -> None:
        self.entered_by: asyncio.Task[object] | None = None
        self.left_by: asyncio.Task[object] | None = None
        self.stubborn = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Thing]:
        self.entered_by = asyncio.current_task()
        with anyio.CancelScope():  # which only the task that entered it may leave
            try:
                yield self
            finally:
                while self.stubborn:
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        self.stubborn = False
                self.left_by = asyncio.current_task()


def hold(thing: Thing) -> Held[Thing]:
    async def enter(stack: AsyncExitStack, held: Held[Thing]) -> Thing:
        return await stack.enter_async_context(thing.open())

    return Held(asyncio.get_running_loop(), "the thing", enter)


async def test_what_is_held_is_left_by_the_task_that_entered_it_though_its_user_is_gone() -> None:
    thing = Thing()
    held = hold(thing)
    assert held.value is None
    user = asyncio.ensure_future(held.get())
    assert await bounded(user) is thing is held.value
    await bounded(held.close(1.0))
    assert thing.left_by is thing.entered_by not in (None, user)
    assert held.value is None
    assert held.failed


async def test_a_cancelled_user_leaves_the_opening_to_others() -> None:
    gate = asyncio.Event()

    async def enter(stack: AsyncExitStack, held: Held[str]) -> str:
        await gate.wait()
        return "open"

    held = Held(asyncio.get_running_loop(), "it", enter)
    impatient, patient = asyncio.ensure_future(held.get()), asyncio.ensure_future(held.get())
    await asyncio.sleep(0)
    impatient.cancel()
    gate.set()
    assert await bounded(patient) == "open"
    await held.close(1.0)


async def test_who_waits_for_an_opening_that_is_closed_is_told() -> None:
    async def enter(stack: AsyncExitStack, held: Held[str]) -> str:
        await asyncio.Event().wait()
        return "never"

    held = Held(asyncio.get_running_loop(), "it", enter)
    waiting = asyncio.ensure_future(held.get())
    await asyncio.sleep(0)
    await bounded(held.close(1.0))
    with pytest.raises(ClosedError, match="it was closed"):
        await bounded(waiting)


async def test_a_failed_opening_is_the_users_error_and_nobodys_if_nobody_asks() -> None:
    async def enter(stack: AsyncExitStack, held: Held[str]) -> str:
        raise ExceptionGroup("from a task group", [DynamoError("no")])

    held = Held(asyncio.get_running_loop(), "it", enter)
    await until(lambda: held.failed)
    with pytest.raises(DynamoError, match=r"^no$"):
        await held.get()


async def test_what_does_not_close_in_time_is_cancelled_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thing = Thing()
    held = hold(thing)
    await held.get()
    thing.stubborn = True
    with caplog.at_level(logging.WARNING):
        await bounded(held.close(0.01))
    assert thing.left_by is thing.entered_by
    assert "the thing did not close within 0.01 s" in caplog.text
