"""Our own leases and registrations: taken, kept, put back, given up. Synchronous; for the tree's thread."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Protocol

from attrs import define, field

from dynamo.adapters.discovery.file.layout import Layout, Signature, read_regular, signature, unlink
from dynamo.adapters.discovery.file.lease_file import holder_of
from dynamo.adapters.discovery.file.records import Records
from dynamo.core.errors import ClosedError, DynamoError, LeaseLostError
from dynamo.core.model import EndpointId

LEFTOVER_S = (
    2.0  # core has registered everything again this long after it took a lease that follows a lost one
)

log = logging.getLogger(__name__)


class Held(Protocol):
    """One lease of ours on the disk, by lock or by beat."""

    def renew(self, now: float) -> bool:
        """Prove that we live; False: not sure that it is still ours. Raises LeaseLostError, OSError."""
        ...

    def owns(self) -> bool:
        """Whether what lies at the path, and the records of the id, are ours to remove. Raises OSError."""
        ...

    def release(self) -> None:
        """Give it up, and with it the right to touch the records of its id."""
        ...


class Leases(Protocol):
    """Everybody's leases, by lock or by beat. The sets are of ids, as of the last ``alive``."""

    @property
    def present(self) -> set[int]:
        """Those that have a lease file."""
        ...

    @property
    def unfinished(self) -> set[int]:
        """Those that have a temporary one, being written or left by a process that died then."""
        ...

    @property
    def dead(self) -> set[int]:
        """Those whose owner is dead."""
        ...

    @property
    def next_end(self) -> float:
        """When the first lease ends, unless it is renewed before; ``inf`` where none is known to."""
        ...

    def take(self, instance_id: int, incarnation: int, now: float) -> Held | None:
        """Take a lease; None: another owner is alive, as far as we know. Raises OSError, ConfigError."""
        ...

    def alive(self, now: float) -> dict[int, int]:
        """The incarnation that holds each live lease. Raises OSError."""
        ...

    def reap(self, instance_id: int) -> None:
        """Remove a dead owner's lease and records, unless somebody lives there after all. Raises OSError."""
        ...


@define(eq=False)
class OwnLease:
    """A lease of one runtime. ``turns`` counts those of its loop; ``on_lost`` is called from the thread."""

    instance_id: int
    incarnation: int
    stall_s: float
    on_lost: Callable[[], None]
    held: Held | None = None
    reason: str = ""  # why it is lost
    wanted: dict[EndpointId, bytes] = field(factory=dict)
    written: dict[EndpointId, Signature] = field(factory=dict)
    unwanted: set[EndpointId] = field(factory=set)  # whose removal failed
    taken_at: float = 0.0
    kept_at: float = 0.0
    leftovers: bool = True  # of an earlier lease of the same runtime, perhaps
    turns: int = 0
    turns_seen: int = 0
    stalled_s: float = 0.0

    def lose(self, reason: str) -> None:
        """Say that it is lost; once."""
        if not self.reason:
            self.reason = reason
            self.on_lost()


class Keeper:
    """The leases of this process under one root."""

    def __init__(self, layout: Layout, records: Records, leases: Leases, ttl_s: float) -> None:
        self._layout, self._records, self._leases, self._ttl_s = layout, records, leases, ttl_s
        self._own: list[OwnLease] = []
        self._looked_at = time.monotonic()

    def take(self, own: OwnLease) -> str | None:
        """Take the lease; if another owner is alive, say who. Raises OSError, ConfigError."""
        now = time.monotonic()
        own.held = self._leases.take(own.instance_id, own.incarnation, now)
        if own.held is None:
            try:
                return holder_of(read_regular(self._layout.lease(own.instance_id))[0])
            except (OSError, ValueError):
                return "another process"
        own.taken_at = own.kept_at = now
        self._own.append(own)
        return None

    def put(self, own: OwnLease, endpoint_id: EndpointId, record: bytes) -> None:
        """Write a registration. Raises OSError, LeaseLostError, ClosedError."""
        self._check(own)
        path = self._layout.record(endpoint_id, own.instance_id)
        own.written[endpoint_id] = self._layout.write(path, record, own.instance_id, own.incarnation)
        own.wanted[endpoint_id] = record
        own.unwanted.discard(endpoint_id)

    def remove(self, own: OwnLease, endpoint_id: EndpointId) -> None:
        """Remove a registration; if the disk is away, later. Raises OSError."""
        own.wanted.pop(endpoint_id, None)
        if own.held is not None:
            own.unwanted.add(endpoint_id)
            self._layout.remove(endpoint_id, own.instance_id)
            own.unwanted.discard(endpoint_id)

    def release(self, own: OwnLease) -> None:
        """Remove what is registered under the lease, and the lease, as far as the disk lets us."""
        held, own.held = own.held, None
        if held is None:
            return
        self._own.remove(own)
        try:
            if held.owns():
                for endpoint_id in [*own.wanted, *own.unwanted]:
                    self._layout.remove(endpoint_id, own.instance_id)
        except (OSError, ValueError) as error:
            log.warning(
                "%s; whoever cleans up after the dead will do it", self._layout.error("remove", error)
            )
        finally:
            unlink(self._layout.temporary(own.instance_id, own.incarnation))
            held.release()

    def look(self, now: float) -> None:
        """Renew all leases and put back what was deleted or changed by hand."""
        passed_s = min(now - self._looked_at, 1.0)  # while the whole process is stopped, no loop stalls
        self._looked_at = now
        for own in list(self._own):
            try:
                self._check_loop(own, passed_s)
                if own.held is not None and own.held.renew(now):
                    self._restore(own)
                    own.kept_at = now
            except LeaseLostError as error:
                self._lose(own, str(error))
            except (OSError, DynamoError, ValueError) as error:
                if now - own.kept_at >= self._ttl_s:
                    self._lose(own, f"{self._layout.error('renew', error)}, for {self._ttl_s:g} s")
        try:
            self._tidy(now)
        except (OSError, DynamoError):
            pass  # the next look comes soon, and the watches are told by the sweeps

    def _check(self, own: OwnLease) -> None:
        if own.reason:
            raise LeaseLostError(own.reason)
        if own.held is None:
            raise ClosedError(f"the lease of {own.instance_id} has ended")

    def _check_loop(self, own: OwnLease, passed_s: float) -> None:
        turns, own.turns_seen = own.turns_seen, own.turns
        own.stalled_s = own.stalled_s + passed_s if turns == own.turns else 0.0
        if own.stalled_s >= own.stall_s:
            raise LeaseLostError(f"the event loop has not run for {own.stall_s:g} s (DYN_LOOP_STALL_S)")

    def _restore(self, own: OwnLease) -> None:
        for endpoint_id in list(own.unwanted):
            self._layout.remove(endpoint_id, own.instance_id)
            own.unwanted.discard(endpoint_id)
        for endpoint_id, record in own.wanted.items():
            path = self._layout.record(endpoint_id, own.instance_id)
            try:
                if signature(os.lstat(path)) == own.written[endpoint_id]:
                    continue
            except FileNotFoundError:
                pass
            own.written[endpoint_id] = self._layout.write(path, record, own.instance_id, own.incarnation)
            log.warning("%s was deleted or changed by another hand; restored", path)

    def _tidy(self, now: float) -> None:
        """Remove what earlier leases of our runtimes left, once they had time to put everything again."""
        due = [own for own in self._own if own.leftovers and now - own.taken_at > LEFTOVER_S]
        if due:
            self._records.scan(now)
            for own in due:
                self._records.remove_all(own.instance_id, keep=own.wanted)
                own.leftovers = False

    def _lose(self, own: OwnLease, reason: str) -> None:
        log.warning("lease %d lost: %s", own.instance_id, reason)
        own.lose(reason)
        self.release(own)
