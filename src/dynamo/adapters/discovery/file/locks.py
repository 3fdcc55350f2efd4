"""Who is alive, on a disk that one host uses: the owner of a lease holds an flock on its file.

The kernel drops the lock with the process, however that ends, so an unlocked lease is dead at once and a
stopped process is alive. The rule that keeps cleaning safe: only who holds the lock of the file *at the
path* may touch it or the records of its id. Whoever gets a lock therefore compares the file that it locked
with the one at the path, and starts again if another process has replaced it meanwhile.

An flock belongs to the open file, which a forked child shares: a child that lives on would keep its dead
parent's lease alive. So no fork happens between opening and noting a descriptor, and the child closes what
is noted, which leaves the parent's lock alone.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from pathlib import Path

from attrs import define, field

from dynamo.adapters.discovery.file.layout import NOT_OURS, Layout, Signature, signature, unlink, write_all
from dynamo.adapters.discovery.file.lease_file import content_of, incarnation_of
from dynamo.adapters.discovery.file.records import Records
from dynamo.core.errors import LeaseLostError

if sys.platform != "win32":
    import fcntl

AVAILABLE = sys.platform != "win32"
TAKEN_S = 1.0  # for so long another process may hold our file before we call it taken

_guard = threading.Lock()  # held from opening to noting, and by every fork
_noted: set[int] = set()


def _in_child() -> None:
    for descriptor in _noted:
        os.close(descriptor)
    _noted.clear()
    _guard.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_in_child)


def lock(path: Path, mode: int, *, create: bool) -> int | None:
    """A descriptor that holds the lock of the file at ``path``; None: another holds it. Raises OSError."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    while True:
        with _guard:
            descriptor = os.open(path, flags, mode)
            _noted.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            close(descriptor)
            return None
        except BaseException:
            close(descriptor)
            raise
        close(descriptor)


def close(descriptor: int) -> None:
    """Close, and so unlock."""
    with _guard:
        _noted.discard(descriptor)
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at the path. Raises OSError, not for an absent one."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


@define
class _Known:
    """What a lease file said, and when to believe it still does."""

    state: Signature
    incarnation: int | None


@define(eq=False)
class LockedLease:
    """A lease of ours: ``descriptor`` holds the lock."""

    instance_id: int
    incarnation: int
    leases: LockedLeases
    descriptor: int
    written: Signature
    taken_from_us_at: float | None = None

    def renew(self, now: float) -> bool:
        """See that the file is there and ours, or make it so again; False: somebody holds its lock just now.

        Raises LeaseLostError where another process keeps it, OSError where the disk is away.
        """
        if is_at(self.descriptor, self.leases.layout.lease(self.instance_id)):
            self.taken_from_us_at = None
            if signature(os.fstat(self.descriptor)) != self.written:
                self.written = self.leases.fill(self.descriptor, self.incarnation)
            return True
        descriptor = self.leases.claim(self.instance_id, self.incarnation)
        if descriptor is None:  # who cleans or looks holds the lock for an instant only
            self.taken_from_us_at = self.taken_from_us_at or now
            if now - self.taken_from_us_at > TAKEN_S:
                raise LeaseLostError(f"another process took the lease {self.instance_id}")
            return False
        close(self.descriptor)
        self.descriptor, self.taken_from_us_at = descriptor, None
        self.written = signature(os.fstat(descriptor))
        return True

    def owns(self) -> bool:
        """Whether what lies at the path, and the records of the id, are ours to remove. Raises OSError."""
        return is_at(self.descriptor, self.leases.layout.lease(self.instance_id))

    def release(self) -> None:
        """Give the lease up, and with it the right to touch its records."""
        try:
            if self.owns():
                unlink(self.leases.layout.lease(self.instance_id))
        except OSError:
            pass  # the lock goes all the same, and the next process that can will remove the file
        self.leases.ours.pop(self.instance_id, None)
        close(self.descriptor)


@define(eq=False)
class LockedLeases:
    """The leases under one root."""

    layout: Layout
    records: Records
    ours: dict[int, LockedLease] = field(factory=dict)
    present: set[int] = field(factory=set)
    unfinished: set[int] = field(factory=set)
    dead: set[int] = field(factory=set)
    _known: dict[int, _Known] = field(factory=dict)

    @property
    def next_end(self) -> float:
        """No lock has a date of expiry."""
        return float("inf")

    def take(self, instance_id: int, incarnation: int, now: float) -> LockedLease | None:
        """Take the lease; None: another owner is alive. Raises OSError, ConfigError."""
        descriptor = self.claim(instance_id, incarnation)
        if descriptor is None:
            return None
        written = signature(os.fstat(descriptor))
        lease = self.ours[instance_id] = LockedLease(instance_id, incarnation, self, descriptor, written)
        return lease

    def claim(self, instance_id: int, incarnation: int) -> int | None:
        """Lock the file, remove what a dead owner of another incarnation left, and write ours into it."""
        path = self.layout.lease(instance_id)
        try:
            descriptor = lock(path, 0o600, create=True)
        except FileNotFoundError:
            self.layout.make()
            descriptor = lock(path, 0o600, create=True)
        if descriptor is None:
            return None
        try:
            content = os.read(descriptor, 4096)
            if incarnation_of(content) == incarnation:
                return descriptor
            if content:
                self.records.scan(time.monotonic())
                self.records.remove_all(instance_id)
            self.layout.share(path)
            self.fill(descriptor, incarnation)
            return descriptor
        except BaseException:
            unlink(path)
            close(descriptor)
            raise

    def fill(self, descriptor: int, incarnation: int) -> Signature:
        """Write our incarnation into a lease file that we hold. Raises OSError."""
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        write_all(descriptor, content_of(incarnation))
        return signature(os.fstat(descriptor))

    def alive(self, now: float) -> dict[int, int]:
        """The incarnation that holds each lease; ``dead`` are the ids whose lock is free. Raises OSError."""
        found: dict[int, int] = {}
        known, self._known = self._known, {}
        self.present, self.unfinished = self.layout.lease_ids()
        self.dead = set()
        for instance_id in self.present:
            if instance_id in self.ours:
                found[instance_id] = self.ours[instance_id].incarnation
            elif (incarnation := self._probe(instance_id, known.get(instance_id))) is not None:
                found[instance_id] = incarnation
        return found

    def _probe(self, instance_id: int, known: _Known | None) -> int | None:
        try:
            with _guard:
                descriptor = os.open(
                    self.layout.lease(instance_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                )
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    self.dead.add(instance_id)
                    return None
                except BlockingIOError:
                    state = signature(os.fstat(descriptor))
                    if known is None or known.state != state or known.incarnation is None:
                        known = _Known(state, incarnation_of(os.read(descriptor, 4096)))
                finally:
                    os.close(descriptor)
        except OSError as error:
            if error.errno == errno.ENOENT or error.errno in NOT_OURS:
                return None
            raise
        self._known[instance_id] = known
        return known.incarnation

    def reap(self, instance_id: int) -> None:
        """Remove a dead owner's lease and records, unless somebody has taken it meanwhile. Raises OSError."""
        try:
            descriptor = lock(self.layout.lease(instance_id), 0o600, create=instance_id not in self.dead)
        except FileNotFoundError:
            return  # another process was quicker
        if descriptor is not None:
            try:
                self.records.remove_all(instance_id)
                if instance_id in self.unfinished:
                    self.layout.remove_temporaries(instance_id)
                unlink(self.layout.lease(instance_id))
            finally:
                close(descriptor)
