"""Checks that a block of code leaves nothing behind: no asyncio task, no thread, no open descriptor."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import frozen

PATIENCE_S = 5.0
POLL_S = 0.01
_POOLED_THREADS = (
    "asyncio_",
    "uvloop_",
    "AnyIO worker thread",
)  # as long as their loop, idle or not
_FD_FOLDER = "/proc/self/fd"


@frozen(kw_only=True)
class Traces:
    """What runs and is open in this process at one moment."""

    tasks: frozenset[asyncio.Task[object]]
    threads: frozenset[threading.Thread]  # but for the idle ones of the loop's pools
    descriptors: frozenset[tuple[int, str]]  # number and what it points to; empty where there is no /proc

    @classmethod
    def now(cls) -> Traces:
        return cls(
            tasks=frozenset(asyncio.all_tasks()),
            threads=frozenset(
                thread for thread in threading.enumerate() if not thread.name.startswith(_POOLED_THREADS)
            ),
            descriptors=_descriptors(),
        )

    def beyond(self, earlier: Traces) -> list[str]:
        """What is here now and was not there earlier, one line each.

        A descriptor is told by its number and target: one opened under the number of a closed one counts.
        """
        return [
            *(f"task {task!r}" for task in self.tasks - earlier.tasks if not task.done()),
            *(f"thread {thread.name}" for thread in self.threads - earlier.threads if thread.is_alive()),
            *(
                f"descriptor {number} -> {target}"
                for number, target in sorted(self.descriptors - earlier.descriptors)
            ),
        ]


def _descriptors() -> frozenset[tuple[int, str]]:
    try:
        numbers = os.listdir(_FD_FOLDER)
    except FileNotFoundError:
        return frozenset()
    found: set[tuple[int, str]] = set()
    for number in numbers:
        try:
            target = os.readlink(f"{_FD_FOLDER}/{number}")
        except FileNotFoundError:
            continue  # the one that listed the folder
        if target != os.devnull:  # libuv keeps one in reserve, to refuse connections when descriptors run out
            found.add((int(number), target))
    return frozenset(found)


@asynccontextmanager
async def no_leaks(*, patience_s: float = PATIENCE_S) -> AsyncIterator[None]:
    """Fail with AssertionError when the block leaves a task, a thread or a descriptor behind.

    What is on its way out may take ``patience_s`` seconds. A block that raises is not checked.
    """
    gc.collect()
    before = Traces.now()
    yield
    deadline = time.monotonic() + patience_s
    while left := Traces.now().beyond(before):
        if time.monotonic() > deadline:
            raise AssertionError(f"left behind after {patience_s:g} s:\n  " + "\n  ".join(left))
        gc.collect()
        await asyncio.sleep(POLL_S)
