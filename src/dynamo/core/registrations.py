"""What this runtime has registered, kept true under one lease after another."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from dynamo.core.errors import ClosedError, DynamoError, LeaseLostError, UnavailableError
from dynamo.core.lifetime import backoff, ended, lone, retrieve
from dynamo.core.model import EndpointId, Instance
from dynamo.core.ports.discovery import Discovery, Lease
from dynamo.core.ports.telemetry import Telemetry

logger = logging.getLogger("dynamo.runtime")


class Registrations:
    """Holds what is wanted and follows it: ``want`` and ``unwant`` return at once, ``settled`` waits for
    the backend.

    One task takes the lease, puts what is wanted, and after a loss takes the next lease, under the same
    instance id, and puts everything again, for as long as the runtime lives; nothing else retries."""

    def __init__(
        self,
        discovery: Discovery,
        *,
        instance_id: int,
        incarnation: int,
        telemetry: Telemetry | None,
        lost: Callable[[str], None],
    ) -> None:
        self._discovery, self._telemetry, self._tell_lost = discovery, telemetry, lost
        self._instance_id, self._incarnation = instance_id, incarnation
        self._wanted: dict[EndpointId, Instance] = {}
        self._registered: dict[EndpointId, Instance] = {}
        self._moving: EndpointId | None = None  # asked of the backend, and not answered yet
        self._failures: dict[EndpointId, DynamoError] = {}
        self._lease_failure: DynamoError | None = None
        self._held = False
        self._closing = False
        self._changed = asyncio.Event()  # wakes the one that follows
        self._moved = asyncio.Event()  # wakes those who wait for it; replaced at each move
        self._task = asyncio.get_running_loop().create_task(self._run(), name="dynamo: lease")

    @property
    def trouble(self) -> DynamoError | None:
        """Why what is wanted is not registered; None while all is well or nothing is wanted."""
        if self._lease_failure is not None:
            return self._lease_failure
        return next(iter(self._failures.values()), None)

    @property
    def pending(self) -> DynamoError | None:
        """What the backend was asked and has not answered; a restarted process may wait long."""
        if self._moving is None:
            return None
        ttl_s = self._discovery.capability.ttl_s
        bound = f", up to {ttl_s:g} s" if math.isfinite(ttl_s) else ""
        return UnavailableError(
            f"{self._moving} is not registered yet (an earlier process of this id may hold it{bound})"
        )

    @property
    def held(self) -> bool:
        """True while a lease is held."""
        return self._held

    def want(self, instance: Instance) -> None:
        """Register it, or replace what is registered for its endpoint."""
        self._wanted[instance.endpoint_id] = instance
        self._failures.pop(instance.endpoint_id, None)
        self._changed.set()

    def unwant(self, endpoint_id: EndpointId) -> None:
        """Remove the endpoint's registration; an absent one is fine."""
        self._wanted.pop(endpoint_id, None)
        self._failures.pop(endpoint_id, None)
        self._changed.set()

    def registered(self, endpoint_id: EndpointId) -> bool:
        """Whether the backend has it, as far as is known here."""
        return endpoint_id in self._registered

    def wanted(self, endpoint_id: EndpointId) -> Instance | None:
        return self._wanted.get(endpoint_id)

    async def settled(self, endpoint_id: EndpointId) -> None:
        """Wait until the backend has what is wanted for the endpoint, for as long as it may be away.

        Raises what waiting does not mend: ConflictError (another live owner), ConfigError (not allowed here),
        ClosedError.
        """
        known = self._lease_failure  # from before: the next attempt may well go better
        while self._moving == endpoint_id or self._registered.get(endpoint_id) is not self._wanted.get(
            endpoint_id
        ):
            if self._closing:
                raise ClosedError("the runtime was closed")
            for failure in (self._lease_failure, self._failures.get(endpoint_id)):
                if failure not in (None, known) and not isinstance(
                    failure, (UnavailableError, LeaseLostError)
                ):
                    raise failure
            await self._moved.wait()

    async def close(self, bound_s: float) -> None:
        """Leave the lease, which removes what is registered under it; who still waits gets a ClosedError."""
        self._closing = True
        self._move()
        self._changed.set()
        if not self._held or not await ended(self._task, bound_s):
            self._task.cancel()
            if not await ended(self._task, 1.0):
                logger.error("the lease does not end within %g s, even cancelled; it is left behind", bound_s)

    # The one task.

    async def _run(self) -> None:
        try:
            await self._hold_leases()
        finally:
            self._closing = True
            self._move()

    async def _hold_leases(self) -> None:
        delays = backoff()
        while not self._closing:
            try:
                async with self._discovery.lease(
                    instance_id=self._instance_id, incarnation=self._incarnation
                ) as lease:
                    self._take()
                    delays = backoff()
                    reason = await self._keep(lease)
                    self._registered.clear()
                    self._held = False
                if not self._closing:
                    self._lose(LeaseLostError(reason))
            except Exception as error:
                self._lose(_ours(error))
            if not self._closing:
                await self._pause(next(delays))

    def _take(self) -> None:
        if self._lease_failure is not None:
            logger.info("the lease of instance %d is held again", self._instance_id)
        self._held, self._lease_failure = True, None
        if self._telemetry is not None:
            self._telemetry.lease_changed(True, "")
        self._move()

    def _lose(self, error: DynamoError) -> None:
        if self._closing:
            return
        lost, before = self._held or isinstance(error, LeaseLostError), self._lease_failure
        self._held, self._lease_failure = False, error
        self._registered.clear()
        for removal in self._failures.keys() - self._wanted.keys():
            del self._failures[removal]  # the loss has removed it
        if lost:
            logger.warning("the lease of instance %d is lost (%s); taking the next", self._instance_id, error)
            if self._telemetry is not None:
                self._telemetry.lease_changed(False, str(error))
            self._tell_lost(str(error))
        elif not isinstance(error, UnavailableError) and type(error) is not type(before):
            logger.error("no lease for instance %d, trying again: %s", self._instance_id, error)
        self._move()

    async def _keep(self, lease: Lease) -> str:
        """Follow what is wanted until the lease is lost, and return why, or until the end."""
        lost = asyncio.ensure_future(lease.lost())
        following = asyncio.ensure_future(self._follow(lease))
        try:
            await asyncio.wait((lost, following), return_when=asyncio.FIRST_COMPLETED)
            if lost.done():
                return lost.result()
            following.result()
            return ""
        finally:
            for task in (lost, following):
                task.cancel()
                task.add_done_callback(retrieve)
            await asyncio.wait((lost, following), timeout=1.0)

    async def _follow(self, lease: Lease) -> None:
        delays = backoff()
        while not self._closing:
            if await self._push(lease):
                delays, pause = backoff(), None
            else:
                pause = next(delays)
            await self._pause(pause)

    async def _pause(self, bound_s: float | None) -> None:
        """Until something is wanted that was not, or the time has come to try again."""
        try:
            async with asyncio.timeout(bound_s):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()

    async def _push(self, lease: Lease) -> bool:
        """Bring each registration where it is wanted; False if one has to be tried again. Raises
        LeaseLostError.
        """
        well = True
        for endpoint_id in {**self._registered, **self._wanted}:
            wanted = self._wanted.get(endpoint_id)
            if wanted is self._registered.get(endpoint_id):
                continue
            self._moving = endpoint_id
            try:
                if wanted is None:
                    await lease.remove(endpoint_id)
                    del self._registered[endpoint_id]
                else:
                    await lease.put(wanted)
                    self._registered[endpoint_id] = wanted
                self._failures.pop(endpoint_id, None)
            except LeaseLostError:
                raise
            except Exception as error:
                well = False
                if self._wanted.get(endpoint_id) is not wanted:
                    continue  # of no interest: another thing is wanted meanwhile, or nothing
                failure = _ours(error)
                if endpoint_id not in self._failures and not isinstance(failure, UnavailableError):
                    logger.error(
                        "cannot register %s as instance %d: %s", endpoint_id, self._instance_id, failure
                    )
                self._failures[endpoint_id] = failure
            finally:
                self._moving = None
                self._move()
        return well

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def _ours(error: Exception) -> DynamoError:
    error = lone(error)
    if isinstance(error, DynamoError):
        return error
    wrapped = DynamoError(f"the discovery adapter failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
