"""Signals, for runtimes that were asked to handle them: the first one drains, the second one exits at once
with 70.

Plain ``signal`` handlers, not the loop's: they also run while a handler blocks the loop, which is when they
are needed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from dynamo.core.errors import ConfigError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODE = 70  # EX_SOFTWARE, as Dynamo's workers exit
ECHO_S = (
    0.1  # timeout(1), shells and init processes pass on a signal that the whole process group got already
)

_drains: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = {}
_previous: dict[int, Any] = {}
_pid = 0
_first_at: float | None = None


def handle(key: object, loop: asyncio.AbstractEventLoop, drain: Callable[[], None]) -> None:
    """Call ``drain`` on ``loop`` at the first SIGINT or SIGTERM, until ``release``.

    Raises ConfigError outside the main thread.
    """
    global _pid, _first_at
    if not _drains:
        _pid, _first_at = os.getpid(), None
        try:
            for number in SIGNALS:
                _previous[number] = signal.signal(number, _on_signal)
        except ValueError as error:
            raise ConfigError(
                "handle_signals=True works in the main thread only, where Python delivers signals"
            ) from error
    _drains[key] = loop, drain


def release(key: object) -> None:
    """Undo ``handle``; the last one puts back the handlers that were there before."""
    if _drains.pop(key, None) is not None and not _drains and os.getpid() == _pid:
        for number, previous in _previous.items():
            if signal.getsignal(number) is _on_signal:
                signal.signal(number, signal.SIG_DFL if previous is None else previous)
        _previous.clear()


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _first_at
    now = time.monotonic()
    if os.getpid() != _pid:
        _as_if_unhandled(number)  # a forked child: the runtimes, and their drain, stayed in the parent
    elif _first_at is None:
        _first_at = now
        draining = [_drain(loop, drain) for loop, drain in list(_drains.values())]
        if not any(draining):
            _as_if_unhandled(number)
    elif now - _first_at > ECHO_S:
        os.write(2, f"dynamo: second signal, exiting at once with {EXIT_CODE}\n".encode())
        os._exit(EXIT_CODE)


def _drain(loop: asyncio.AbstractEventLoop, drain: Callable[[], None]) -> bool:
    try:
        loop.call_soon_threadsafe(drain)
    except RuntimeError:  # the loop ended before its runtime was closed
        return False
    return True


def _as_if_unhandled(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
