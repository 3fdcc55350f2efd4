"""Everybody's registrations, fed to our watches; the dead removed. Synchronous; for the tree's thread."""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from dynamo.adapters.discovery.file.keeping import Leases
from dynamo.adapters.discovery.file.layout import Layout
from dynamo.adapters.discovery.file.records import Records
from dynamo.core.errors import DynamoError
from dynamo.core.model import Instance, InstanceKey, Scope
from dynamo.core.watching import ConflatingWatch

WHOLE_S = 5.0  # between sweeps that trust no modification time
REAP_S = 0.2  # of a sweep, to clean up after the dead; the next sweep goes on
RESTORE_S = 1.5  # owners put everything back within a second after the root was deleted

log = logging.getLogger(__name__)


class Sweeper:
    """The watches of this process under one root; a record without a lease is left alone for ``orphan_s``."""

    def __init__(self, layout: Layout, records: Records, leases: Leases, orphan_s: float) -> None:
        self._layout, self._records, self._leases, self._orphan_s = layout, records, leases, orphan_s
        self._watches: dict[ConflatingWatch, Scope] = {}
        self._new: set[ConflatingWatch] = set()
        self._live: dict[InstanceKey, Instance] = {}
        self._orphans: dict[int, float] = {}  # since when
        self._folders = (layout.services, layout.leases)
        self._root: list[tuple[int, int]] = []
        self._held: list[int] = []  # open, so that no folder made later gets the inode of a deleted one
        self._whole_at = 0.0
        self._unreaped = ""
        self._lock = threading.Lock()  # over what the loops may do as well: say that the disk hangs
        self.away = ""  # why
        self.trusted_from = 0.0
        self.on_new_root: Callable[[], None] = lambda: None

    @property
    def watched(self) -> bool:
        return bool(self._watches)

    def add(self, watch: ConflatingWatch, scope: Scope) -> None:
        """Follow from the next sweep on, which begins with a snapshot."""
        with self._lock:
            self._watches[watch] = scope
            self._new.add(watch)

    def drop(self, watch: ConflatingWatch) -> None:
        with self._lock:
            self._watches.pop(watch, None)
            self._new.discard(watch)

    def say_away(self, reason: str) -> None:
        """What is known stays in force; the next sweep that succeeds is a snapshot. From any thread."""
        with self._lock:
            if not self.away:
                log.warning("%s", reason)
            self.away = reason
            for watch in self._watches:
                watch.stale(reason)

    def sweep(self, now: float) -> None:
        """Look at everything that may have changed, and tell the watches."""
        try:
            self._check_root(now)
            if now < self.trusted_from:
                self.say_away(f"{self._layout.root} was deleted; waiting for the owners to put it back")
                return
            whole = now >= self._whole_at
            records = self._records.scan(now, whole=whole)  # before the leases: who registers has a lease
            alive = self._leases.alive(now)
            if self._identity() != self._root:  # what we looked at was on its way out
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._layout.services))
        except (OSError, DynamoError) as error:
            self.say_away(str(self._layout.error("read", error)))
            return
        if whole:
            self._whole_at = now + WHOLE_S
        live = {key: one for key, one in records.items() if alive.get(one.instance_id) == one.incarnation}
        self._feed(live)
        self._reap(now)

    def _check_root(self, now: float) -> None:
        """Make a deleted root again; until its owners had time to come back, nothing is read from it."""
        try:
            root = self._identity()
        except FileNotFoundError:
            self._layout.make()
            root = self._identity()
        if root != self._root:
            if self._root:
                self.on_new_root()
                if self._live:
                    self.trusted_from = now + RESTORE_S
            self.close()
            self._root = root
            if sys.platform != "win32":
                for folder in self._folders:
                    self._held.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))

    def close(self) -> None:
        """Let go of the folders."""
        while self._held:
            os.close(self._held.pop())

    def _identity(self) -> list[tuple[int, int]]:
        found = [os.stat(folder) for folder in self._folders]
        return [(status.st_dev, status.st_ino) for status in found]

    def _feed(self, live: dict[InstanceKey, Instance]) -> None:
        with self._lock:
            before, self._live = self._live, live
            gone = before.keys() - live.keys()
            come = [one for key, one in live.items() if before.get(key) is not one and before.get(key) != one]
            for watch, scope in self._watches.items():
                if self.away or watch in self._new:
                    watch.reset(tuple(one for one in live.values() if scope.covers(one.endpoint_id)))
                    continue
                for endpoint_id, instance_id in gone:
                    if scope.covers(endpoint_id):
                        watch.remove(endpoint_id, instance_id)
                for one in come:
                    if scope.covers(one.endpoint_id):
                        watch.put(one)
            self._new.clear()
            if self.away:
                log.warning("%s can be read again", self._layout.root)
                self.away = ""

    def _reap(self, now: float) -> None:
        unowned = (self._records.ids() | self._leases.unfinished) - self._leases.present
        self._orphans = {key: self._orphans.get(key, now) for key in unowned}
        late = {key for key, since in self._orphans.items() if now - since > self._orphan_s}
        until = time.monotonic() + REAP_S
        for instance_id in self._leases.dead | late:
            if time.monotonic() > until:
                break
            try:
                self._leases.reap(instance_id)
            except OSError as error:  # a reader who may not write leaves it to others
                if self._unreaped != str(error):
                    self._unreaped = str(error)
                    log.warning("%s", self._layout.error("clean up after a dead owner", error))
