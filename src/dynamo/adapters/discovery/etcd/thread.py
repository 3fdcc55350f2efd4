"""A thread with an event loop of its own: what runs there goes on while the program's loop is blocked."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio

from dynamo.core.errors import ClosedError

T = TypeVar("T")

CLOSE_S = 5.0  # for what still runs there


class LoopThread:
    """Begins with ``start``, ends with ``close``; a daemon, so that a program that forgets it can exit."""

    def __init__(self, name: str) -> None:
        self._name, self._pid = name, os.getpid()
        self._loop = asyncio.new_event_loop()
        self._ended: Future[None] = Future()
        self._last: Callable[[], Awaitable[None]] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def forked(self) -> bool:
        """True in a forked child: the thread stayed in the parent."""
        return os.getpid() != self._pid

    def spawn(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` there. Cancelling the result cancels the work. Raises ClosedError."""
        if self.forked:
            work.close()
            raise ClosedError(f"{self._name} belongs to the process that made it, not to this fork of it")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise ClosedError(f"{self._name} is closed") from None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` there and wait for it here."""
        return await asyncio.wrap_future(self.spawn(work))

    def ending(self, last: Callable[[], Awaitable[None]]) -> None:
        """What is to be awaited there at the end, after all else was cancelled."""
        self._last = last

    async def close(self) -> None:
        """Cancel what runs there and wait for the thread's end; bounded, whatever happens to the caller."""
        if self.forked:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        with anyio.move_on_after(CLOSE_S + 1, shield=True):
            await asyncio.shield(asyncio.wrap_future(self._ended))
            await asyncio.to_thread(self._thread.join, 1.0)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._end())
        finally:
            self._loop.close()
            self._ended.set_result(None)

    async def _end(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=CLOSE_S)
        if self._last is not None:
            await self._last()
