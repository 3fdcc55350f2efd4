"""What a client may leave behind in its process, and a bounded wait until it is gone."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable


def descriptors() -> set[str]:
    """Open descriptors of this process, by what they point to; empty where the system does not tell."""
    found: set[str] = set()
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except OSError:  # the one that listed them
            pass
    return found


def threads() -> set[str]:
    """Running threads, those of the loop's and anyio's pools aside: these live as long as their loop."""
    pools = ("asyncio_", "uvloop_", "AnyIO worker")
    return {f"{t.name} {t.ident}" for t in threading.enumerate() if not t.name.startswith(pools)}


async def settles(nothing_left: Callable[[], object]) -> None:
    """Wait until what ``nothing_left`` returns is empty, at most two seconds."""
    deadline = time.monotonic() + 2.0
    while rest := nothing_left():
        assert time.monotonic() < deadline, f"left behind: {rest}"
        await asyncio.sleep(0.01)
