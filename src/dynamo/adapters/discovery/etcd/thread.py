"""A thread with an event loop of its own: what runs there goes on while the program's loop is blocked.

There is one a process, begun at first use and kept: gRPC's asyncio side hands every event of the process to
whichever loop looks first, and an event for a loop that was closed meanwhile makes it stumble over the next.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

from dynamo.core.errors import ClosedError

T = TypeVar("T")

CLOSE_S = 5.0  # for what still runs when a client ends

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a fork does not inherit the thread


def _loop() -> asyncio.AbstractEventLoop:
    with _lock:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            # A daemon, so that a program that forgets to close its runtime can exit.
            threading.Thread(target=_run, args=(loop,), name="dynamo-etcd", daemon=True).start()
        return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


class Tasks:
    """What one client has running on the thread.

    Nothing here is a ``concurrent.futures.Future``: those make cycles with what they are chained to, and a
    cycle keeps a closed client's connections open until the garbage collector comes by.
    """

    def __init__(self, name: str) -> None:
        self._name, self._pid, self._loop = name, os.getpid(), _loop()
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def forked(self) -> bool:
        """True in a forked child: the thread stayed in the parent."""
        return os.getpid() != self._pid

    def spawn(
        self, work: Coroutine[Any, Any, T], done: Callable[[asyncio.Task[T]], None] | None = None
    ) -> Callable[[], None]:
        """Run ``work`` there; what is returned cancels it, ``done`` is called there. Raises ClosedError."""
        if self.forked or self._closed:
            work.close()
            why = "belongs to the process that made it, not to this fork" if self.forked else "is closed"
            raise ClosedError(f"{self._name} {why}")
        started: list[asyncio.Task[Any]] = []

        def forget(task: asyncio.Task[Any]) -> None:
            self._running.discard(task)
            started.clear()

        def start() -> None:
            task = self._loop.create_task(work)
            started.append(task)
            self._running.add(task)
            task.add_done_callback(forget)
            if done is not None:
                task.add_done_callback(done)

        def cancel() -> None:
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in started])

        self._loop.call_soon_threadsafe(start)
        return cancel

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` there and wait for it here; cancelling cancels it there too. Raises ClosedError."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        cancel = self.spawn(work, lambda task: _deliver(task, answer))
        try:
            return await answer
        finally:
            if answer.cancelled():
                cancel()

    async def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Cancel what runs there, then await ``last`` there; bounded, whatever happens to the caller."""
        if self.forked:
            return
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closed = True

        def end() -> None:
            self._loop.create_task(self._end(last)).add_done_callback(lambda task: _deliver(task, ended))

        self._loop.call_soon_threadsafe(end)
        with anyio.move_on_after(CLOSE_S + 1, shield=True):
            await ended

    async def _end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=CLOSE_S)
        await last()


def _bare(error: BaseException) -> BaseException:
    """Without the frames of the thread: they hold calls, and those hold connections."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _deliver(task: asyncio.Task[T], answer: asyncio.Future[T]) -> None:
    """Hand the task's end to a future of another loop."""

    def settle() -> None:
        if answer.done():
            return
        if task.cancelled():
            answer.set_exception(ClosedError("the client was closed meanwhile"))
        elif (error := task.exception()) is not None:
            answer.set_exception(_bare(error))
        else:
            answer.set_result(task.result())

    if not task.cancelled():
        task.exception()  # seen, also if nobody waits any more
    try:
        answer.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:  # that loop is closed: nobody waits
        pass
