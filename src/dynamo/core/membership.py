"""The one watch of an endpoint inside a runtime, shared by all clients of that endpoint."""

from __future__ import annotations

import asyncio
import difflib
import logging
import random
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from dynamo.core.availability import Availability
from dynamo.core.errors import ClosedError, DeadlineError
from dynamo.core.model import EndpointId, Instance, Phase, Scope
from dynamo.core.peers import Peers
from dynamo.core.ports.discovery import Change, Discovery, Put, Removed, Snapshot, Stale
from dynamo.core.ports.telemetry import Telemetry

logger = logging.getLogger("dynamo.runtime")

LISTING_TIMEOUT_S = 0.5  # how long an error message may look for what else is registered
REWATCH_LIMIT_S = 5.0  # between attempts to watch again after an adapter's watch raised

_running: set[asyncio.Task[None]] = set()  # the loop itself would let the collector take a task that waits


class Membership:
    """Follows one endpoint while somebody uses it: ``retain`` starts the watch, the last ``release`` ends it.

    ``peers`` is the live table. ``stale`` says why the backend is away, or is None; the last known table
    stays in force. ``synced`` is False until the backend has answered once.
    """

    def __init__(
        self, endpoint_id: EndpointId, discovery: Discovery, telemetry: Telemetry | None = None
    ) -> None:
        self.endpoint_id = endpoint_id
        self.discovery = discovery
        self.peers = Peers()
        self.availability = Availability(self.peers)
        self.stale: str | None = None
        self.synced = False
        self.closed = False
        self.waiters: set[asyncio.Future[None]] = set()  # woken by the next change, or the end
        self._telemetry = telemetry
        self._listeners: dict[int, Callable[[], None]] = {}
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._listing: asyncio.Task[Counter[str] | None] | None = None

    @property
    def version(self) -> int:
        """Grows with every change of the table, of who is put aside too."""
        return self.peers.version

    def instances(self) -> list[Instance]:
        """All live instances, draining ones too."""
        return [peer.instance for peer in self.peers.by_id.values()]

    def ready(self) -> list[Instance]:
        """What routing uses: without those that drain."""
        return [instance for instance in self.instances() if instance.phase is Phase.READY]

    def retain(self) -> None:
        """One more user."""
        if self.closed:
            raise ClosedError(f"the watch of {self.endpoint_id} is closed: its runtime has ended")
        self._users += 1
        if self._task is None:
            self._task = self._spawn(self.run())

    def release(self) -> None:
        """One user less; the last one ends the watch."""
        self._users -= 1
        if self._users <= 0:
            self._stop()
        self._changed()

    async def aclose(self) -> None:
        """End the watch, whoever uses it; those who wait for an instance are told."""
        self.closed = True
        self._stop()
        self._changed()
        if self._listing is not None:
            self._listing.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self.availability.aclose()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"watch {self.endpoint_id}")
        for kept in (self._ending, _running):
            kept.add(task)
            task.add_done_callback(kept.discard)
        return task

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.availability.stop()
        self.peers.replace(())
        self.synced, self.stale = False, None

    async def run(self) -> None:
        """The watch itself; ends only by cancellation. One that raises is an outage, and begun again."""
        failures = 0
        while True:
            try:
                async with self.discovery.watch(Scope.of(self.endpoint_id)) as watch:
                    while True:
                        self.apply(await watch.receive())
                        failures = 0
            except Exception as error:
                logger.warning(
                    "watching %s failed, trying again: %s: %s", self.endpoint_id, type(error).__name__, error
                )
                self.apply(Stale(reason=f"{type(error).__name__}: {error}"))
            failures += 1
            await asyncio.sleep(
                min(REWATCH_LIMIT_S, 0.1 * 2 ** min(failures, 8)) * (0.5 + random.random() / 2)
            )

    def apply(self, change: Change) -> None:
        """Fold one change into the table and tell whoever waits or listens."""
        match change:
            case Snapshot(instances=instances):
                self.peers.replace(instances)
                self.synced, self.stale = True, None
            case Put(instance=instance):
                self.peers.put(instance)
            case Removed(instance_id=instance_id):
                self.peers.remove(instance_id)
            case Stale(reason=reason):
                self.stale = reason
        if self._telemetry is not None:
            self._telemetry.instances_changed(change)
        self._changed()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after every change, on the loop; the result ends that."""
        self._listeners[id(listener)] = listener

        def unsubscribe() -> None:
            self._listeners.pop(id(listener), None)

        return unsubscribe

    def _changed(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()
        for listener in list(self._listeners.values()):
            listener()

    async def wait_for(
        self,
        predicate: Callable[[Membership], bool],
        timeout_s: float | None = None,
        *,
        wanted: str = "a change",
    ) -> None:
        """Wait until ``predicate`` holds; it is asked now and after every change.

        Raises DeadlineError after ``timeout_s``, which says what was ``wanted``; ClosedError when the runtime
        ends.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(self):
                    if self.closed:
                        raise ClosedError(
                            f"the runtime ended while waiting for instances of {self.endpoint_id}"
                        )
                    waiter = asyncio.get_running_loop().create_future()
                    self.waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self.waiters.discard(waiter)
        except TimeoutError as error:
            raise DeadlineError(
                f"{self.endpoint_id}: waited {timeout_s:g} s for {wanted}; {self.describe()}"
            ) from error

    def describe(self) -> str:
        """What discovery says about this endpoint, for a message."""
        backend = f"discovery '{self.discovery.capability.scheme}'"
        if not self.synced:
            return f"{backend} has not answered yet" + (f" ({self.stale})" if self.stale else "")
        known = self.instances()
        draining = sum(instance.phase is Phase.DRAINING for instance in known)
        parts = [f"{backend} lists {len(known) - draining or 'none'}"]
        if draining:
            parts.append(f"{draining} draining")
        if self.peers.aside:
            parts.append(f"{len(self.peers.aside)} put aside after failures")
        if self.stale:
            parts.append(f"and is away now: {self.stale}")
        return ", ".join(parts)

    async def others(self) -> str:
        """What else is registered there, for a message; one look at a time, bounded."""
        if self._listing is None or self._listing.done():
            self._listing = asyncio.get_running_loop().create_task(self._list())
        try:
            found = await asyncio.shield(self._listing)
        except asyncio.CancelledError:  # noqa: ASYNC103 - the shielded task's own is no cancellation of ours
            if not self._listing.cancelled():
                raise  # it is the caller that was cancelled
            found = None
        if found is None:
            return "what else is registered there could not be read"
        if not found:
            return "nothing else is registered there"
        wanted = str(self.endpoint_id)
        close = difflib.get_close_matches(wanted, found, n=3, cutoff=0.8) or sorted(found)[:5]
        rest = len(found) - len(close)
        listed = ", ".join(f"{name} ({found[name]})" for name in close)
        return f"registered there: {listed}" + (f" and {rest} more" if rest else "")

    async def _list(self) -> Counter[str] | None:
        try:
            async with asyncio.timeout(LISTING_TIMEOUT_S), self.discovery.watch(Scope()) as watch:
                while True:
                    change = await watch.receive()
                    if isinstance(change, Snapshot):
                        names = Counter(str(instance.endpoint_id) for instance in change.instances)
                        del names[str(self.endpoint_id)]
                        return names
        except Exception:  # it is for a message only; the outage itself is reported by the watch
            return None


class Memberships:
    """The watches of one runtime: one per endpoint, while somebody holds it."""

    def __init__(self, discovery: Discovery, telemetry: Telemetry | None = None) -> None:
        self._discovery, self._telemetry = discovery, telemetry
        self._known: weakref.WeakValueDictionary[EndpointId, Membership] = weakref.WeakValueDictionary()

    def of(self, endpoint_id: EndpointId) -> Membership:
        """The membership of that endpoint, not yet retained; a client retains it."""
        if (membership := self._known.get(endpoint_id)) is None:
            membership = Membership(endpoint_id, self._discovery, self._telemetry)
            self._known[endpoint_id] = membership
        return membership

    @property
    def watched(self) -> tuple[Membership, ...]:
        """Those that somebody holds."""
        return tuple(self._known.values())

    @property
    def stale(self) -> str | None:
        """Why one of them is on its last known state; None where all are up to date."""
        return next((known.stale for known in self._known.values() if known.stale is not None), None)

    async def aclose(self) -> None:
        """End all watches."""
        for membership in list(self._known.values()):
            await membership.aclose()
