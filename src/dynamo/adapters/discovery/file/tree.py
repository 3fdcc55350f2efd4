"""One directory tree, followed by one thread for all runtimes of the process.

The thread does every disk call, so a disk that hangs hangs nobody else; the loops notice that by the clock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import anyio
from attrs import frozen

from dynamo.adapters.discovery.file import locks
from dynamo.adapters.discovery.file.beats import BeatingLeases
from dynamo.adapters.discovery.file.events import Events
from dynamo.adapters.discovery.file.keeping import Keeper, Leases
from dynamo.adapters.discovery.file.layout import Layout
from dynamo.adapters.discovery.file.locks import LockedLeases
from dynamo.adapters.discovery.file.records import Records
from dynamo.adapters.discovery.file.sweeping import Sweeper
from dynamo.core.errors import ClosedError, UnavailableError
from dynamo.core.model import Scope
from dynamo.core.watching import ConflatingWatch

LOOK_S = 0.5  # at our own keys: what was deleted is back within a second
PROBE_S = 0.25  # at the others' locks: no event tells of a dead owner
IDLE_S = 5.0  # between sweeps while nobody watches, which only clean up
SHARE = 50  # a sweep is followed by this many times its own duration: at most 2 % of a core
HUNG_S = 3.0  # without an answer, and the disk is away
ANSWER_S = 5.0  # the longest that a put, a removal or a probe waits for the disk

T = TypeVar("T")

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class TreeKey:
    """What runtimes must agree on to share a tree."""

    root: str
    shared: bool
    ttl_s: float
    events: bool


class Tree:
    """``run`` and ``submit`` reach ``keeper`` and ``sweeper``, which belong to the thread."""

    def __init__(self, key: TreeKey, source: str) -> None:
        self.key = key
        self.layout = Layout(Path(key.root), source, durable=key.shared)
        records = Records(self.layout, settle_s=3.0 if key.shared else 0.1)
        self._leases: Leases = (
            BeatingLeases(self.layout, records, key.ttl_s)
            if key.shared
            else LockedLeases(self.layout, records)
        )
        self.keeper = Keeper(self.layout, records, self._leases, key.ttl_s)
        self.sweeper = Sweeper(self.layout, records, self._leases, key.ttl_s if key.shared else IDLE_S)
        self.sweeper.on_new_root = self._restart_events
        self.users = 0
        self._pid = os.getpid()
        self._look_at = time.monotonic() + LOOK_S
        self._sweep_at = self._look_at + IDLE_S
        self._not_before = 0.0
        self._busy_since: float | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._events: Events | None = None
        self._ended: Future[None] = Future()
        threading.Thread(target=self._main, name=f"dynamo file {key.root}", daemon=True).start()

    # From any thread

    @property
    def forked(self) -> bool:
        """We are a child of the process that the thread runs in."""
        return self._pid != os.getpid()

    async def run(self, job: Callable[[], T], doing: str, *, surely: bool = False) -> T:
        """The job's result, after at most ``ANSWER_S``.

        A job that had not begun when its caller left or gave up is done only if it must ``surely`` be. Raises
        what the job raises, UnavailableError if the disk does not answer, ClosedError in a forked child.
        """
        if self.forked:
            raise ClosedError(f"cannot {doing} in a forked child; open a runtime of its own there")
        result: Future[T] = Future()

        def answer() -> None:
            wanted = result.set_running_or_notify_cancel()
            if wanted or surely:
                try:
                    value = job()
                except BaseException as error:  # noqa: ASYNC103 - runs in the tree's thread; the waiter raises it
                    if wanted:
                        result.set_exception(error)
                else:
                    if wanted:
                        result.set_result(value)

        self._jobs.put(answer)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.wrap_future(result)
        except TimeoutError as error:
            raise UnavailableError(
                f"cannot {doing} in {self.layout.root} ({self.layout.source}): "
                f"the disk did not answer in {ANSWER_S:g} s"
            ) from error

    def submit(self, job: Callable[[], None]) -> None:
        """Have it done, in order."""
        self._jobs.put(job)

    def hung(self) -> str:
        """Why the disk must be taken for away, or nothing. The loops ask every now and then."""
        since = self._busy_since
        if since is None or time.monotonic() - since < HUNG_S:
            return ""
        reason = f"{self.layout.root} ({self.layout.source}) does not answer"
        self.sweeper.say_away(reason)
        return reason

    def follow(self, watch: ConflatingWatch, scope: Scope) -> None:
        """Feed the watch, from a sweep on that has yet to begin: so it shows whatever was put before."""

        def add() -> None:
            self.sweeper.add(watch, scope)
            self._sweep_at = 0.0
            if self._events is None:
                self._restart_events()

        self._jobs.put(add)

    def unfollow(self, watch: ConflatingWatch) -> None:
        """Feed it no more."""
        self._jobs.put(lambda: self.sweeper.drop(watch))

    async def stop(self) -> None:
        """End the thread once what was submitted is done; bounded."""
        if not self.forked:
            self._jobs.put(None)
            with anyio.CancelScope(shield=True):
                await asyncio.wait({asyncio.wrap_future(self._ended)}, timeout=ANSWER_S)

    # In the thread

    def sweep_soon(self) -> None:
        """Something changed; a burst of changes is swept up together."""
        self._sweep_at = min(self._sweep_at, self._not_before)

    def _restart_events(self) -> None:
        if self.key.events and not self.key.shared:
            if self._events is not None:
                self._events.stop()
            self._events = Events(self.layout.services, lambda: self._jobs.put(self._on_events))

    def _on_events(self) -> None:
        self._look_at = 0.0
        self.sweep_soon()

    def _main(self) -> None:
        while True:
            wait_s = min(self._look_at, self._sweep_at) - time.monotonic()
            try:
                job = self._jobs.get(timeout=max(wait_s, 0.0))
                self._busy_since = time.monotonic()
                while job is not None:
                    job()
                    job = self._jobs.get_nowait()
                break
            except queue.Empty:
                self._busy_since = time.monotonic()
            try:
                self._turn()
            except Exception as error:  # whatever it is, others depend on this thread: it must go on
                log.exception("following %s failed", self.layout.root)
                self.sweeper.say_away(f"{self.layout.root}: {error!r}")
                self._look_at = self._sweep_at = time.monotonic() + 1.0
            self._busy_since = None
        if self._events is not None:
            self._events.stop()
        self.sweeper.close()
        self._ended.set_result(None)

    def _turn(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self.keeper.look(now)
            self._look_at = now + min(LOOK_S, self.key.ttl_s / 6)
        if now >= self._sweep_at:
            self.sweeper.sweep(now)
            took_s = time.monotonic() - now
            now += took_s
            self._not_before = now + min(took_s * SHARE / 5, LOOK_S)
            if self.key.shared:
                wait_s = min(self.key.ttl_s / 3, max(self._leases.next_end - now, 0.02))
            else:
                wait_s = max(PROBE_S, min(took_s * SHARE, 1.0)) if self.sweeper.watched else IDLE_S
            if self.sweeper.away:
                wait_s = min(wait_s, max(PROBE_S, self.sweeper.trusted_from - now))
            self._sweep_at = now + wait_s


_trees: dict[TreeKey, Tree] = {}
_trees_lock = threading.Lock()


def _in_child() -> None:
    _trees.clear()  # their threads are the parent's
    _trees_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_trees_lock.acquire, after_in_parent=_trees_lock.release, after_in_child=_in_child
    )


def join(key: TreeKey, source: str) -> Tree:
    """The process's tree for this key; ``leave`` it in the end."""
    with _trees_lock:
        tree = _trees.get(key)
        if tree is None:
            tree = _trees[key] = Tree(key, source)
        tree.users += 1
        return tree


async def leave(tree: Tree) -> None:
    """The last one to leave ends the thread."""
    with _trees_lock:
        tree.users -= 1
        if tree.users or _trees.get(tree.key) is not tree:
            return
        del _trees[tree.key]
    await tree.stop()


LOCKS = locks.AVAILABLE
