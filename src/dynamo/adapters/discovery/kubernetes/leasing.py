"""The object of one worker: applied, watched, put back, and deleted.

It lives as long as its pod, whose garbage it is then, so nothing is renewed and no silence loses it. Who owns
it is decided by the incarnation in it. Each incarnation applies under a field manager of its own, so that the
server itself refuses a second one; ``claiming`` finds out whether the first one still lives.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

from dynamo.adapters.discovery.kubernetes.access import Access, Object
from dynamo.adapters.discovery.kubernetes.claiming import Place
from dynamo.adapters.discovery.kubernetes.configuration import Pod
from dynamo.adapters.discovery.kubernetes.errors import RefusedError, pause_s
from dynamo.adapters.discovery.kubernetes.feed import Feed, Listener
from dynamo.adapters.discovery.kubernetes.records import (
    MANAGER,
    body_of,
    claims_of,
    data_in,
    data_of,
    incarnation_in,
    owner_of,
)
from dynamo.core.errors import ClosedError, DynamoError, LeaseLostError, UnavailableError
from dynamo.core.lifetime import backoff, retrieve
from dynamo.core.model import EndpointId, Instance

END_S = 2.0  # to delete the object; its pod's end does it later
CALM_S = 30.0  # without a mending: the next one is quick again
LONGEST_MEND_S = 10.0
RETRY_S, LONGEST_RETRY_S = 0.05, 2.0
OFTEN = 5  # mendings in a row that a person should know of
REMEMBERED = 32  # writes, whose echoes the watch brings later

T = TypeVar("T")

log = logging.getLogger(__name__)


class OwnLease(Listener):
    """Holds the object ``name`` for one incarnation."""

    def __init__(self, access: Access, pod: Pod, name: str, instance_id: int, incarnation: int) -> None:
        self.instance_id, self.incarnation = instance_id, incarnation
        self.lost = asyncio.Event()
        self.reason = ""  # why it is lost
        self._access, self._pod, self._name = access, pod, name
        self._place = Place(access, name, incarnation)
        self._manager = f"{MANAGER}{incarnation:x}"
        self._uid: str | None = None  # of our object
        self._touched = False  # something may be there
        self._wanted: dict[EndpointId, Instance] = {}
        self._sent: deque[Object] = deque(maxlen=REMEMBERED)
        self._seen: Object | None = None  # by the watch
        self._turn = asyncio.Lock()  # who may write
        self._writing: asyncio.Task[Any] | None = None
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wrong, self._noticed = False, asyncio.Event()
        self._asked: list[str] = []
        self._asking = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = False

    async def take(self) -> None:
        """Begin to follow the object. Raises UnavailableError, AuthError, ConfigError."""
        feed = Feed(self._access, self._place.selection, self)
        self._tasks = [
            asyncio.create_task(work, name=f"dynamo: {what} {self._name} on Kubernetes")
            for what, work in (
                ("watch of", feed.run()),
                ("mending", self._mend()),
                ("answering for", self._answer()),
            )
        ]
        await self._begun

    # Registrations.

    async def put(self, instance: Instance) -> None:
        """Raises ConflictError, LeaseLostError, UnavailableError, AuthError, ConfigError."""
        async with self._turn:
            self._check()
            wanted = {**self._wanted, instance.endpoint_id: instance}
            await self._write(data_of(self.incarnation, wanted.values()))
            self._wanted = wanted
            if self._seen is not None:  # somebody may have asked before we knew that it is ours
                self._hear(self._seen)

    async def remove(self, endpoint_id: EndpointId) -> None:
        """Raises UnavailableError, AuthError."""
        async with self._turn:
            self._wanted.pop(endpoint_id, None)
            if self.reason or not self._touched:
                return
            if self._wanted:
                await self._write(data_of(self.incarnation, self._wanted.values()))
            else:
                await self._through(self._delete())

    def _check(self) -> None:
        if self.reason:
            raise LeaseLostError(self.reason)
        if self._ended:
            raise ClosedError(f"the lease of {self._name} has ended")

    async def _write(self, data: Object) -> None:
        """Make the object say ``data``."""
        deadline = time.monotonic() + self._access.config.takeover_s
        while True:
            self._sent.append(data)
            self._touched = True
            if await self._through(self._apply(data)):
                return
            await self._place.clear(deadline)
            self._check()

    async def _through(self, work: Coroutine[Any, Any, T]) -> T:
        """A write that was begun is seen to its end, also if we are cancelled: ``end`` waits for it."""
        self._writing = task = asyncio.ensure_future(work)
        task.add_done_callback(retrieve)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._doubt)  # a later write may have overtaken it
            raise

    async def _apply(self, data: Object) -> bool:
        """False: the object is another incarnation's."""
        force = False
        for _ in range(3):
            body = body_of(self._name, self._access.namespace, self._pod, data, self._uid)
            try:
                answer = await self._access.apply(self._name, body, manager=self._manager, force=force)
            except RefusedError as error:
                if error.status not in (404, 409):
                    raise
                found = await self._place.look()  # gone, made again, or changed by hand
                if found is not None and incarnation_in(found) != self.incarnation:
                    if self._uid is not None:
                        self._lose(found)
                        raise LeaseLostError(self.reason) from error
                    return False
                self._uid = None if found is None else found["metadata"]["uid"]
                force = found is not None
                continue
            self._uid = answer["metadata"]["uid"]
            return True
        raise UnavailableError(f"{self._name} in {self._access.where} changes faster than it can be written")

    async def _delete(self) -> None:
        """Delete our object, and no other."""
        if self._uid is None:  # what was written last was not answered
            found = await self._place.look()
            ours = found is not None and incarnation_in(found) == self.incarnation
            self._uid = found["metadata"]["uid"] if ours and found is not None else None
        if self._uid is not None:
            try:
                await self._access.delete(self._name, {"uid": self._uid})
            except RefusedError:  # gone, or another one by now
                pass
        self._uid, self._touched = None, False

    # Our own object, followed.

    def listed(self, found: dict[str, Object], *, listing: int, resync: bool) -> None:
        if not self._begun.done():
            self._begun.set_result(None)
        self._see(found.get(self._name))

    def changed(self, name: str, found: Object | None) -> None:
        self._see(found)

    def failed(self, error: DynamoError) -> None:
        if not self._begun.done():
            self._begun.set_exception(error)

    def _see(self, found: Object | None) -> None:
        self._seen = found
        if self._uid is None or not self._wanted:
            return
        ours = found is not None and owner_of(found) == (self._pod.name, self._pod.uid)
        if found is not None and ours and self._is_echo(data_in(found)):
            self._hear(found)
        else:
            self._doubt()

    def _is_echo(self, data: Object) -> bool:
        """Whether it is what we wrote last, or on its way to that: nothing from before an echo comes after
        it, but by somebody's hand.
        """
        if data not in self._sent:
            return False
        while self._sent[0] != data:
            self._sent.popleft()
        return True

    def _hear(self, found: Object) -> None:
        if incarnation_in(found) == self.incarnation and (asked := claims_of(found)):
            self._asked = asked
            self._asking.set()

    def _doubt(self, _: object = None) -> None:
        """The object may not be as it should."""
        self._wrong = True
        self._noticed.set()

    async def _answer(self) -> None:
        """Tell who asks that we live."""
        retries = backoff(RETRY_S, LONGEST_RETRY_S)
        while True:
            await self._asking.wait()
            self._asking.clear()
            answer: Object = {"uid": self._uid, "annotations": dict.fromkeys(self._asked)}
            try:
                if self._uid is not None:
                    await self._access.merge(self._name, {"metadata": answer})
            except RefusedError:
                pass  # another object by now, which the watch will show
            except DynamoError as error:
                self._asking.set()
                await asyncio.sleep(pause_s(error, next(retries)))
                continue
            retries = backoff(RETRY_S, LONGEST_RETRY_S)

    async def _mend(self) -> None:
        """Put back what was deleted or changed by hand."""
        delays, mended_at, often = backoff(RETRY_S, LONGEST_MEND_S), 0.0, 0
        retries = backoff(RETRY_S, LONGEST_RETRY_S)
        while True:
            await self._noticed.wait()
            self._noticed.clear()
            try:
                async with self._turn:
                    if not self._wrong or not self._wanted:
                        continue
                    self._wrong = False
                    await self._write(data_of(self.incarnation, self._wanted.values()))
            except (LeaseLostError, ClosedError):
                return
            except DynamoError as error:
                self._doubt()
                await asyncio.sleep(pause_s(error, next(retries)))
                continue
            retries, now = backoff(RETRY_S, LONGEST_RETRY_S), time.monotonic()
            if now - mended_at > CALM_S:
                delays, often = backoff(RETRY_S, LONGEST_MEND_S), 0
            mended_at, often = now, often + 1
            if often == OFTEN:
                log.warning(
                    "%s in namespace %r is deleted or changed again and again; objects whose pod is gone are "
                    "deleted: is POD_UID=%s the uid of pod %s?",
                    self._name, self._access.namespace, self._pod.uid, self._pod.name,
                )  # fmt: skip
            await asyncio.sleep(next(delays))

    def _lose(self, found: Object) -> None:
        if not self.reason:
            self.reason = (
                f"{self._name} on Kubernetes now belongs to incarnation {incarnation_in(found) or 0:x}"
            )
            self._wanted = {}
            self.lost.set()

    async def end(self) -> None:
        """Delete the object, bounded; a lost one is somebody else's."""
        self._ended = True
        for task in self._tasks:
            task.cancel()
        with anyio.move_on_after(END_S, shield=True):
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._written()
            delays = backoff(RETRY_S, 0.5)
            while self._touched and not self.reason:
                try:
                    await self._delete()
                    return
                except UnavailableError:
                    await asyncio.sleep(next(delays))
                except DynamoError as error:
                    log.warning("%s on Kubernetes stays until its pod ends: %s", self._name, error)
                    return

    async def _written(self) -> None:
        """Wait for what is being written, or give it up."""
        if self._writing is not None:
            try:
                await asyncio.wait((self._writing,))
            finally:
                self._writing.cancel()
