"""The event loop that a process of ours runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes uvloop's where it is installed (extra ``fast``); None, for asyncio's own, elsewhere."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop
