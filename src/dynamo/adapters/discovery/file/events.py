"""File events through watchfiles (extra ``file``), a hint that it is time to sweep.

One watcher for a whole tree: inotify instances are scarce (128 a user, by default). Where there is no
watchfiles, or no instance left, the sweeps alone do, a quarter of a second later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

DEBOUNCE_MS = 100  # the longest that a burst of changes is gathered
STEP_MS = 20  # changes are told when this long nothing followed

log = logging.getLogger(__name__)


class Events:
    """Calls ``changed`` from a thread of its own whenever something under ``path`` did."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path, self._changed = path, changed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name=f"dynamo file events {path}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits for it, some steps at most."""
        self._stop.set()
        self._thread.join(1.0)

    def _main(self) -> None:
        try:
            from watchfiles._rust_notify import RustNotify
        except ModuleNotFoundError:
            log.debug("no watchfiles: changes under %s are found by looking", self._path)
            return
        try:
            with RustNotify([str(self._path)], False, False, 0, True, True) as notify:
                while not self._stop.is_set():
                    changes = notify.watch(DEBOUNCE_MS, STEP_MS, 0, self._stop)
                    if isinstance(changes, set):
                        self._changed()
        except Exception as error:  # no inotify instance left, say; its class is watchfiles' own affair
            log.info("no file events for %s (%s): changes are found by looking", self._path, error)
