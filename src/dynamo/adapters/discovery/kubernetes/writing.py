"""The object of one worker, as it is written: applied, and deleted.

Who owns it is decided by the incarnation in it. Each incarnation applies under a field manager of its own, so
that the server itself refuses a second one; ``claiming`` finds out whether the first one still lives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dynamo.adapters.discovery.kubernetes.access import Access, Object
from dynamo.adapters.discovery.kubernetes.claiming import Place
from dynamo.adapters.discovery.kubernetes.configuration import Pod
from dynamo.adapters.discovery.kubernetes.errors import RefusedError
from dynamo.adapters.discovery.kubernetes.records import MANAGER, body_of, incarnation_in
from dynamo.core.errors import ClosedError, LeaseLostError, UnavailableError
from dynamo.core.lifetime import retrieve

T = TypeVar("T")


class OwnObject:
    """One write at a time, which the caller sees to.

    ``uid`` is known once it is ours; ``touched``: something of us may be there. ``lost`` is set, with a
    ``reason``, when another incarnation has it. ``abandoned`` is called when a write ends that nobody waits
    for any more.
    """

    def __init__(
        self, access: Access, pod: Pod, name: str, incarnation: int, abandoned: Callable[[object], None]
    ) -> None:
        self.name, self.incarnation, self.pod = name, incarnation, pod
        self.place = Place(access, name, incarnation)
        self.uid: str | None = None
        self.touched = self.ended = False
        self.lost, self.reason = asyncio.Event(), ""
        self._access, self._abandoned = access, abandoned
        self._manager = f"{MANAGER}{incarnation:x}"
        self._writing: asyncio.Task[Any] | None = None

    def check(self) -> None:
        """Whether it may still be written. Raises LeaseLostError, ClosedError."""
        if self.reason:
            raise LeaseLostError(self.reason)
        if self.ended:
            raise ClosedError(f"the lease of {self.name} has ended")

    async def write(self, data: Object) -> None:
        """Make it say ``data``, once no other incarnation is there.

        Raises ConflictError, LeaseLostError, ClosedError, UnavailableError, AuthError, ConfigError.
        """
        self.check()
        deadline = time.monotonic() + self._access.config.takeover_s
        self.touched = True
        while not await self._through(self._apply(data)):
            await self.place.clear(deadline)
            self.check()

    async def remove(self) -> None:
        """Delete it, as it is written: to the end. Raises UnavailableError, AuthError."""
        await self._through(self.delete())

    async def delete(self) -> None:
        """Delete it, if it is ours, and no other. Raises UnavailableError, AuthError."""
        if self.uid is None:  # what was written last was not answered
            found = await self.place.look()
            ours = found is not None and incarnation_in(found) == self.incarnation
            self.uid = found["metadata"]["uid"] if ours and found is not None else None
        if self.uid is not None:
            try:
                await self._access.delete(self.name, {"uid": self.uid})
            except RefusedError:  # gone, or another one by now
                pass
        self.uid, self.touched = None, False

    async def settled(self) -> None:
        """Wait for what is being written, or give it up."""
        if self._writing is not None:
            try:
                await asyncio.wait((self._writing,))
            finally:
                self._writing.cancel()

    async def _through(self, work: Coroutine[Any, Any, T]) -> T:
        """A write that was begun is seen to its end, also if we are cancelled: ``settled`` waits for it."""
        self._writing = task = asyncio.ensure_future(work)
        task.add_done_callback(retrieve)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._abandoned)  # a later write may have overtaken it
            raise

    async def _apply(self, data: Object) -> bool:
        """False: it is another incarnation's."""
        force = False
        for _ in range(3):
            body = body_of(self.name, self._access.namespace, self.pod, data, self.uid)
            try:
                answer = await self._access.apply(self.name, body, manager=self._manager, force=force)
            except RefusedError as error:
                if error.status not in (404, 409):
                    raise
                found = await self.place.look()  # gone, made again, or changed by hand
                if found is not None and incarnation_in(found) != self.incarnation:
                    if self.uid is not None:
                        self._lose(found)
                        raise LeaseLostError(self.reason) from error
                    return False
                self.uid = None if found is None else found["metadata"]["uid"]
                force = found is not None
                continue
            self.uid = answer["metadata"]["uid"]
            return True
        raise UnavailableError(f"{self.name} in {self._access.where} changes faster than it can be written")

    def _lose(self, found: Object) -> None:
        if not self.reason:
            owner = incarnation_in(found) or 0
            self.reason = f"{self.name} on Kubernetes now belongs to incarnation {owner:x}"
            self.lost.set()
