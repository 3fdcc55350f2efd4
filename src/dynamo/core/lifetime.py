"""Lifetimes: who may use a runtime, how something is opened and closed, how a wait is bounded."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import AsyncExitStack
from typing import Any, Generic, TypeVar
from weakref import WeakSet

import anyio
from attrs import frozen

from dynamo.core.errors import ClosedError, DynamoError, UnavailableError

logger = logging.getLogger("dynamo.runtime")

T = TypeVar("T")

FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 5.0
NOTICE_S = 0.5  # a wait that lasts longer says what it waits for

_owners: WeakSet[Owner] = WeakSet()


class Owner:
    """The event loop and the process that something belongs to; anybody else gets a ClosedError that says
    so.
    """

    __slots__ = ("__weakref__", "_forked", "_loop", "_what")

    def __init__(self, what: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._what, self._loop, self._forked = what, loop, False
        _owners.add(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that it belongs to; None until somebody used it."""
        return self._loop

    def check_process(self) -> None:
        """Raise ClosedError in a forked child."""
        if self._forked:
            raise ClosedError(
                f"{self._what} belongs to the process that made it, and pid {os.getpid()} is a fork of that: "
                "make a new one here, after the fork"
            )

    def enter(self) -> asyncio.AbstractEventLoop:
        """The running loop, which becomes the owner if there is none yet. Raises ClosedError on any other
        loop.
        """
        self.check_process()
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            raise ClosedError(
                f"{self._what} was used outside an event loop: use it in a coroutine, under asyncio.run()"
            ) from None
        if self._loop is None:
            self._loop = running
        elif self._loop is not running:
            state = "closed" if self._loop.is_closed() else "still open"
            thread = threading.current_thread().name
            raise ClosedError(
                f"{self._what} belongs to the event loop that opened it ({state}), not to the one "
                f"in thread {thread!r}: make one there, or use asyncio.run_coroutine_threadsafe"
            )
        return running

    def _disown(self) -> None:
        self._forked = True


def _after_fork() -> None:
    for owner in list(_owners):
        owner._disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def backoff(first_s: float = FIRST_DELAY_S, longest_s: float = LONGEST_DELAY_S) -> Iterator[float]:
    """Doubling delays, each drawn from its upper half so that many processes do not come back at once."""
    delay_s = first_s
    while True:
        yield delay_s * random.uniform(0.5, 1.0)
        delay_s = min(delay_s * 2, longest_s)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def runs_in(task: asyncio.Task[Any] | None) -> bool:
    """Whether this runs as ``task``. Its coroutine does not where it is only closed, its loop being gone."""
    return task is not None and running_loop() is not None and asyncio.current_task() is task


def lone(error: Exception) -> Exception:
    """The one error inside nested groups of one: a single failure is never shown as a group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def ended(task: asyncio.Future[T], bound_s: float) -> bool:
    """Wait for the task's end at most ``bound_s`` seconds, whatever it ends in; True if it came."""
    await asyncio.wait([task], timeout=bound_s)
    return task.done()


async def within(bound_s: float, waiting: Awaitable[object]) -> bool:
    """Wait at most ``bound_s`` seconds, then cancel the waiting; True if it came to its end."""
    try:
        async with asyncio.timeout(bound_s):
            await waiting
    except TimeoutError:
        return False
    return True


async def see_through(task: asyncio.Future[T]) -> T:
    """The task's result, waited for through cancellations, which are raised again afterwards.

    For ends only, whose every phase is bounded.
    """
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:  # noqa: ASYNC103 - raised again once the task ended
                cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()


@frozen(kw_only=True)
class Wait:
    """What is waited for, what is known to stand in the way, and what a person can do instead."""

    what: str
    trouble: DynamoError | None
    way_out: str


class Ending(Awaitable[None]):
    """The end of something under way: to await, or not."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()


class Held(Generic[T]):
    """Something opened and closed in one task of its own: whoever asked first may be gone when it closes.

    ``enter`` gets the stack that closes what it opens; ``trouble`` is what keeps it from opening, for
    whoever waits."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        enter: Callable[[AsyncExitStack, Held[T]], Awaitable[T]],
    ) -> None:
        self.name = name
        self.trouble: DynamoError | None = None
        self._ready: asyncio.Future[T] = loop.create_future()
        self._ready.add_done_callback(retrieve)
        self._leave = asyncio.Event()
        self._task = loop.create_task(self._run(enter), name=f"dynamo: {name}")

    async def _run(self, enter: Callable[[AsyncExitStack, Held[T]], Awaitable[T]]) -> None:
        try:
            async with AsyncExitStack() as stack:
                value = await enter(stack, self)
                self._ready.set_result(value)
                await self._leave.wait()
        except Exception as error:
            error = lone(error)
            if self._ready.done():
                self.trouble = (
                    error if isinstance(error, DynamoError) else DynamoError(f"{self.name}: {error!r}")
                )
                logger.error("%s failed", self.name, exc_info=error)
            else:
                self._ready.set_exception(error)
        finally:
            if not self._ready.done():
                self._ready.set_exception(ClosedError(f"{self.name} was closed while it was being opened"))

    @property
    def value(self) -> T | None:
        """What was opened, or None while it is not open."""
        return None if self.failed or not self._ready.done() else self._ready.result()

    @property
    def failed(self) -> bool:
        """True once it ended, or could not be opened."""
        return self._task.done() or (self._ready.done() and self._ready.exception() is not None)

    async def get(self) -> T:
        """Wait until it is open; raises what opening raised. Cancelling the wait leaves the opening alone."""
        return await asyncio.shield(self._ready)

    async def close(self, bound_s: float) -> None:
        """Leave what was entered; cancelled past ``bound_s``, and reported and left behind if that does not
        help.
        """
        self._leave.set()
        if not self._ready.done():
            self._task.cancel()
        if not await ended(self._task, bound_s):
            logger.warning("%s did not close within %g s; cancelling it", self.name, bound_s)
            self._task.cancel()
            if not await ended(self._task, 1.0):
                logger.error("%s does not end even when cancelled; it is left behind", self.name)


def retrieve(future: asyncio.Future[T]) -> None:
    """A done callback: whoever asks gets the exception, and the loop need not warn when nobody does."""
    if not future.cancelled():
        future.exception()


async def patiently(
    opening: Awaitable[T],
    *,
    timeout_s: float,
    bound: str,
    wait: Callable[[], Wait],
    say: Callable[[str], None],
) -> T:
    """Wait for a backend at most ``timeout_s``, telling ``say`` soon what for; then one clear
    UnavailableError.

    ``bound`` names the variable that sets the time, ``wait`` tells how things stand.
    """
    opened = asyncio.ensure_future(opening)
    opened.add_done_callback(retrieve)
    try:
        if not await ended(opened, min(NOTICE_S, timeout_s)) and timeout_s > NOTICE_S:
            now = wait()
            seen = now.trouble or "no answer yet"
            say(f"waiting for {now.what}, up to {timeout_s:g} s ({bound}): {seen}; {now.way_out}")
            await ended(opened, timeout_s - NOTICE_S)
        if opened.done():
            return opened.result()
        now = wait()
    finally:
        opened.cancel()
    seen = now.trouble or f"no answer from {now.what}"
    raise UnavailableError(f"{seen}, after {timeout_s:g} s ({bound}); {now.way_out}") from now.trouble
