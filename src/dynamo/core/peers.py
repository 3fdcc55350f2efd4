"""The table of an endpoint's live instances, with what this runtime knows of each.

No change costs more than O(1), whatever the number of instances, so that a table of thousands is as fast as
one of three.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from random import random
from typing import TYPE_CHECKING, TypeAlias

from dynamo.core.errors import ConflictError
from dynamo.core.model import Instance, Phase
from dynamo.core.ports.request_plane import RequestPlane

if TYPE_CHECKING:
    from dynamo.core.routing import Strategy

Way: TypeAlias = tuple[RequestPlane, str, int]
"""How an instance is dialled: the plane, the address, and that address's place in the instance's list."""


class Peer:
    """One live instance as this runtime sees it: its record, the calls from here, what went wrong there."""

    __slots__ = (
        "answers",
        "answers_before_way",
        "failures",
        "in_flight",
        "incarnation",
        "instance",
        "instance_id",
        "load_position",
        "position",
        "timer",
        "unreachable",
        "way",
    )

    def __init__(self, instance: Instance) -> None:
        self.instance_id = instance.instance_id
        self.incarnation = instance.incarnation
        self.instance = instance
        self.in_flight = 0  # calls of this runtime that have not ended
        self.answers = 0  # calls of this runtime that it answered: one that moves is alive
        self.failures = 0  # in a row
        self.way: Way | None = None  # found when first called
        self.answers_before_way = 0  # more since then: that way has worked
        self.unreachable: str | None = None  # why no address of it can be dialled from here
        self.timer: asyncio.TimerHandle | None = None  # ends its time aside
        self.position = self.load_position = -1  # in Peers.ready and in its load's bucket; -1: not there

    def __repr__(self) -> str:
        return f"<{self.instance} in_flight={self.in_flight} failures={self.failures}>"


class Peers:
    """The live instances of one endpoint.

    ``ready`` is what strategies pick from: the READY instances that are not aside; where all of those are
    aside, the least recently failed one alone, on trial. The list is not to be changed, and its order means
    nothing.
    """

    __slots__ = ("_loads", "_names", "_trial", "aside", "by_id", "ready", "unreachable", "version")

    def __init__(self) -> None:
        self.by_id: dict[int, Peer] = {}  # draining ones too
        self.ready: list[Peer] = []
        self.aside: OrderedDict[int, Peer] = OrderedDict()  # least recently failed first
        self.unreachable: dict[int, Peer] = {}  # READY, but no address of theirs has an adapter here
        self.version = 0
        self._names: dict[str, dict[int, Peer]] = {}
        self._trial: Peer | None = None
        self._loads: _Loads | None = None

    @property
    def count(self) -> int:
        """The READY instances, aside and unreachable ones too."""
        return len(self.ready) - (self._trial is not None) + len(self.aside) + len(self.unreachable)

    def put(self, instance: Instance) -> None:
        """Add or replace; a changed record is a fresh start, another incarnation another peer."""
        peer = self.by_id.get(instance.instance_id)
        if peer is not None and peer.incarnation != instance.incarnation:
            self.remove(instance.instance_id)
            peer = None
        if peer is None:
            peer = self.by_id[instance.instance_id] = Peer(instance)
        elif peer.instance == instance:
            return
        else:
            self._unname(peer)
            self._withdraw(peer)
            peer.instance = instance
            peer.failures, peer.way = 0, None
        if instance.name is not None:
            self._names.setdefault(instance.name, {})[peer.instance_id] = peer
        if instance.phase is Phase.READY:
            self._add(peer)
        self._settle()

    def remove(self, instance_id: int) -> None:
        peer = self.by_id.pop(instance_id, None)
        if peer is not None:
            self._unname(peer)
            self._withdraw(peer)
            self._settle()

    def replace(self, instances: Iterable[Instance]) -> None:
        """Make this the whole table; what stays the same keeps its counts and its failures."""
        listed = {instance.instance_id: instance for instance in instances}
        for instance_id in [known for known in self.by_id if known not in listed]:
            self.remove(instance_id)
        for instance in listed.values():
            self.put(instance)

    def set_aside(self, peer: Peer) -> bool:
        """Route past it until ``restore``; False if it is no longer routed to anyway."""
        if not self._is_live(peer):
            return False
        self._withdraw(peer)
        self.aside[peer.instance_id] = peer
        self._settle()
        return True

    def end_trial(self, peer: Peer) -> None:
        """It failed while it was aside: the others are tried before it."""
        self.aside.move_to_end(peer.instance_id)
        if peer is self._trial:
            self._take_out(peer)
            self._trial = None
            self._settle()

    def restore(self, peer: Peer) -> None:
        """Route to it again, if it is still there."""
        if self.aside.get(peer.instance_id) is peer:
            self._withdraw(peer)
            self._add(peer)
            self._settle()

    def set_unreachable(self, peer: Peer, why: str) -> None:
        """No address of it can be dialled from here: route past it until its record changes."""
        if self._is_live(peer):
            self._withdraw(peer)
            peer.unreachable = why
            self.unreachable[peer.instance_id] = peer
            self._settle()

    def find(self, target: int | str) -> Peer | None:
        """The READY instance of that id or name. Raises ConflictError where two bear the name."""
        if isinstance(target, int):
            peer = self.by_id.get(target)
            return peer if peer is not None and peer.instance.phase is Phase.READY else None
        found = [peer for peer in self._names.get(target, {}).values() if peer.instance.phase is Phase.READY]
        if len(found) > 1:
            ids = ", ".join(str(peer.instance_id) for peer in found)
            raise ConflictError(
                f"the name {target!r} is borne by several instances ({ids}): give an instance id"
            )
        return found[0] if found else None

    def pick_without(self, tried: Iterable[Peer], strategy: Strategy) -> Peer | None:
        """Let ``strategy`` pick among those not tried yet, as long as there is one."""
        hidden = [peer for peer in tried if peer.position >= 0]
        if len(hidden) >= len(self.ready):
            return strategy.pick(self)
        for peer in hidden:
            self._take_out(peer)
        try:
            return strategy.pick(self)
        finally:
            for peer in hidden:
                self._add(peer)

    def begin(self, peer: Peer) -> None:
        """A call to ``peer`` starts."""
        peer.in_flight += 1
        if self._loads is not None and peer.position >= 0:
            self._loads.moved(peer, peer.in_flight - 1)

    def finish(self, peer: Peer) -> None:
        """A call to ``peer`` is over."""
        peer.in_flight -= 1
        if self._loads is not None and peer.position >= 0:
            self._loads.moved(peer, peer.in_flight + 1)

    def least_loaded(self) -> Peer | None:
        """A random one of the ready peers with the fewest calls in flight from this runtime."""
        if self._loads is None:
            self._loads = _Loads(self.ready)  # kept from now on; runtimes that never ask do not pay for it
        return self._loads.least()

    def _is_live(self, peer: Peer) -> bool:
        return self.by_id.get(peer.instance_id) is peer and peer.instance.phase is Phase.READY

    def _withdraw(self, peer: Peer) -> None:
        """Out of every list but the table itself."""
        if peer.position >= 0:
            self._take_out(peer)
        if peer is self._trial:
            self._trial = None
        self.aside.pop(peer.instance_id, None)
        self.unreachable.pop(peer.instance_id, None)
        peer.unreachable = None
        if peer.timer is not None:
            peer.timer.cancel()
            peer.timer = None

    def _settle(self) -> None:
        """Keep exactly one aside peer on trial while nobody else is ready."""
        if self._trial is not None and len(self.ready) > 1:
            self._take_out(self._trial)
            self._trial = None
        elif not self.ready and self.aside:
            self._trial = next(iter(self.aside.values()))
            self._add(self._trial)
        self.version += 1

    def _add(self, peer: Peer) -> None:
        peer.position = len(self.ready)
        self.ready.append(peer)
        if self._loads is not None:
            self._loads.add(peer)

    def _take_out(self, peer: Peer) -> None:
        last = self.ready.pop()
        if last is not peer:
            self.ready[peer.position] = last
            last.position = peer.position
        peer.position = -1
        if self._loads is not None:
            self._loads.remove(peer)

    def _unname(self, peer: Peer) -> None:
        if (name := peer.instance.name) is not None and (bearers := self._names.get(name)) is not None:
            bearers.pop(peer.instance_id, None)
            if not bearers:
                del self._names[name]


class _Loads:
    """Ready peers in buckets by calls in flight."""

    __slots__ = ("buckets", "lowest")

    def __init__(self, peers: Iterable[Peer]) -> None:
        self.buckets: dict[int, list[Peer]] = {}
        self.lowest = 0
        for peer in peers:
            self.add(peer)

    def add(self, peer: Peer) -> None:
        if not self.buckets or peer.in_flight < self.lowest:
            self.lowest = peer.in_flight
        self._append(peer)

    def remove(self, peer: Peer) -> None:
        if self._take(peer, peer.in_flight) and peer.in_flight == self.lowest:
            # A search through distinct loads: at most the square root of twice the calls in flight.
            self.lowest = min(self.buckets, default=0)

    def moved(self, peer: Peer, before: int) -> None:
        """``peer`` went from ``before`` to its present load, one up or down."""
        emptied = self._take(peer, before)
        self._append(peer)
        if peer.in_flight < self.lowest or (emptied and before == self.lowest):
            self.lowest = peer.in_flight

    def _append(self, peer: Peer) -> None:
        bucket = self.buckets.setdefault(peer.in_flight, [])
        peer.load_position = len(bucket)
        bucket.append(peer)

    def _take(self, peer: Peer, load: int) -> bool:
        """Out of its bucket; True if that is now empty."""
        bucket = self.buckets[load]
        last = bucket.pop()
        if last is not peer:
            bucket[peer.load_position] = last
            last.load_position = peer.load_position
        peer.load_position = -1
        if bucket:
            return False
        del self.buckets[load]
        return True

    def least(self) -> Peer | None:
        if not self.buckets:
            return None
        bucket = self.buckets[self.lowest]
        return bucket[int(random() * len(bucket))]
