"""Who is alive, on a disk that hosts share: the owner of a lease counts up in its file.

No lock and no time on the disk is believed. Every third of the TTL the owner writes its next beat; an owner
whose beat has not changed for one TTL of *our* monotonic clock, while we could look, is dead. The owner for
its part takes its lease for lost as soon as it failed to write for one TTL, so it is the first to know. Two
processes that take a dead lease at the same time both write it: the one that finds the other's incarnation
when it looks next has lost.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from attrs import define, evolve, field, frozen

from dynamo.adapters.discovery.file.layout import NOT_OURS, Layout, read_regular, unlink, write_all
from dynamo.adapters.discovery.file.lease_file import content_of, incarnation_of
from dynamo.adapters.discovery.file.records import Records
from dynamo.core.errors import LeaseLostError


@frozen
class _Pulse:
    """What a lease file said, and since when it says so."""

    content: bytes
    since: float


@define(eq=False)
class BeatingLease:
    """A lease of ours."""

    instance_id: int
    incarnation: int
    leases: BeatingLeases
    beat: int
    renewed_at: float

    @property
    def path(self) -> Path:
        return self.leases.layout.lease(self.instance_id)

    def renew(self, now: float) -> bool:
        """Write the next beat if it is time, or if the file is gone; True.

        Raises LeaseLostError where the TTL passed or another owner wrote there, OSError where the disk is
        away.
        """
        if now - self.renewed_at >= self.leases.ttl_s:
            raise LeaseLostError(f"unrenewed for {now - self.renewed_at:.1f} s, more than its TTL")
        gone = False
        try:
            written = incarnation_of(read_regular(self.path)[0])
            if written not in (None, self.incarnation):
                raise LeaseLostError(f"another process took the lease {self.instance_id}")
        except FileNotFoundError:
            gone = True
        if gone or now - self.renewed_at >= self.leases.ttl_s / 3:
            self.beat += 1
            self.leases.write(self.instance_id, self.incarnation, self.beat)
            self.renewed_at = now
        return True

    def owns(self) -> bool:
        """Whether what lies at the path, and the records of the id, are ours to remove. Raises OSError."""
        try:
            return incarnation_of(read_regular(self.path)[0]) == self.incarnation
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lease up, and with it the right to touch its records."""
        try:
            if self.owns():
                unlink(self.path)
        except (OSError, ValueError):
            pass  # it ends with its beat, and is then removed by whoever notices
        self.leases.ours.pop(self.instance_id, None)


@define(eq=False)
class BeatingLeases:
    """The leases under one root."""

    layout: Layout
    records: Records
    ttl_s: float
    ours: dict[int, BeatingLease] = field(factory=dict)
    present: set[int] = field(factory=set)
    unfinished: set[int] = field(factory=set)
    dead: set[int] = field(factory=set)
    _pulses: dict[int, _Pulse] = field(factory=dict)
    _looked_at: float = 0.0

    @property
    def next_end(self) -> float:
        """When the first lease ends, unless it beats before."""
        return min((pulse.since + self.ttl_s for pulse in self._pulses.values()), default=float("inf"))

    def take(self, instance_id: int, incarnation: int, now: float) -> BeatingLease | None:
        """Take the lease; None: another owner is alive, as far as we know. Raises OSError, ConfigError."""
        pulse = self._look(instance_id, now)
        held_by = None if pulse is None else incarnation_of(pulse.content)
        beat = 1
        if pulse is None:
            if not self._create(instance_id, incarnation):
                return None
        elif held_by == incarnation or now - pulse.since >= self.ttl_s:
            beat = time.time_ns()  # above what the earlier owner wrote; nobody reads a time in it
            self.write(instance_id, incarnation, beat)
        else:
            return None
        if pulse is not None and held_by != incarnation:
            self.records.scan(now)
            self.records.remove_all(instance_id)
        lease = self.ours[instance_id] = BeatingLease(instance_id, incarnation, self, beat, now)
        return lease

    def write(self, instance_id: int, incarnation: int, beat: int) -> None:
        self.layout.write(
            self.layout.lease(instance_id), content_of(incarnation, beat), instance_id, incarnation
        )

    def _create(self, instance_id: int, incarnation: int) -> bool:
        """Write the first beat, unless another process is quicker."""
        path = self.layout.lease(instance_id)
        self.layout.make()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        try:
            write_all(descriptor, content_of(incarnation, 1))
            os.fsync(descriptor)
        except OSError:
            unlink(path)
            raise
        finally:
            os.close(descriptor)
        self.layout.share(path)
        return True

    def alive(self, now: float) -> dict[int, int]:
        """The incarnation that holds each lease; ``dead`` are the ids that ceased to beat. Raises OSError."""
        if now - self._looked_at > self.ttl_s / 2:  # nobody is dead for a beat that we could not have seen
            self._pulses = {key: evolve(pulse, since=now) for key, pulse in self._pulses.items()}
        found: dict[int, int] = {}
        known, self._pulses = self._pulses, {}
        self.present, self.unfinished = self.layout.lease_ids()
        self.dead = set()
        for instance_id in self.present:
            pulse = self._look(instance_id, now, known.get(instance_id))
            if pulse is None:
                continue
            if now - pulse.since >= self.ttl_s and instance_id not in self.ours:
                self.dead.add(instance_id)
            elif (incarnation := incarnation_of(pulse.content)) is not None:
                found[instance_id] = incarnation
        self._looked_at = now
        return found

    def _look(self, instance_id: int, now: float, before: _Pulse | None = None) -> _Pulse | None:
        before = before or self._pulses.get(instance_id)
        try:
            content = read_regular(self.layout.lease(instance_id))[0]
        except ValueError:
            return None
        except OSError as error:
            if error.errno == errno.ENOENT or error.errno in NOT_OURS:
                return None
            raise
        pulse = before if before is not None and before.content == content else _Pulse(content, now)
        self._pulses[instance_id] = pulse
        return pulse

    def reap(self, instance_id: int) -> None:
        """Remove a dead owner's lease and records, unless it beats again. Raises OSError."""
        now = time.monotonic()
        pulse = self._look(instance_id, now)
        if pulse is None or now - pulse.since >= self.ttl_s:
            self.records.remove_all(instance_id)
            if instance_id in self.unfinished:
                self.layout.remove_temporaries(instance_id)
            unlink(self.layout.lease(instance_id))
            self._pulses.pop(instance_id, None)
