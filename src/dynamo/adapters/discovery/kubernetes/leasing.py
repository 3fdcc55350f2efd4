"""The lease of one worker: what it registers is in its object, which is followed, and put back.

The object lives as long as its pod, whose garbage it is then, so nothing is renewed and no silence loses it;
only another incarnation in its place does, which ``writing`` finds out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

import anyio

from dynamo.adapters.discovery.kubernetes.access import Access, Object
from dynamo.adapters.discovery.kubernetes.configuration import Pod
from dynamo.adapters.discovery.kubernetes.errors import RefusedError, pause_s
from dynamo.adapters.discovery.kubernetes.feed import Feed, Listener
from dynamo.adapters.discovery.kubernetes.records import (
    claims_of,
    data_in,
    data_of,
    incarnation_in,
    owner_of,
)
from dynamo.adapters.discovery.kubernetes.writing import OwnObject
from dynamo.core.errors import ClosedError, DynamoError, LeaseLostError, UnavailableError
from dynamo.core.lifetime import backoff
from dynamo.core.model import EndpointId, Instance

END_S = 2.0  # to delete the object; its pod's end does it later
CALM_S = 30.0  # without a mending: the next one is quick again
LONGEST_MEND_S = 10.0
RETRY_S, LONGEST_RETRY_S = 0.05, 2.0
OFTEN = 5  # mendings in a row that a person should know of
REMEMBERED = 32  # writes, whose echoes the watch brings later

log = logging.getLogger(__name__)


class OwnLease(Listener):
    """Holds the object ``name`` for one incarnation."""

    def __init__(self, access: Access, pod: Pod, name: str, instance_id: int, incarnation: int) -> None:
        self.instance_id, self.incarnation = instance_id, incarnation
        self._access, self._pod, self._name = access, pod, name
        self._object = OwnObject(access, pod, name, incarnation, abandoned=self._doubt)
        self._wanted: dict[EndpointId, Instance] = {}
        self._sent: deque[Object] = deque(maxlen=REMEMBERED)
        self._seen: Object | None = None  # by the watch
        self._turn = asyncio.Lock()  # who may write
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wrong, self._noticed = False, asyncio.Event()
        self._asked: list[str] = []
        self._asking = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def reason(self) -> str:
        """Why it is lost; empty while it is not."""
        return self._object.reason

    async def until_lost(self) -> None:
        await self._object.lost.wait()

    async def take(self) -> None:
        """Begin to follow the object. Raises UnavailableError, AuthError, ConfigError."""
        feed = Feed(self._access, self._object.place.selection, self)
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
        """Raises ConflictError, LeaseLostError, ClosedError, UnavailableError, AuthError, ConfigError."""
        async with self._turn:
            wanted = {**self._wanted, instance.endpoint_id: instance}
            await self._write(data_of(self.incarnation, wanted.values()))
            self._wanted = wanted
            if self._seen is not None:  # somebody may have asked before we knew that it is ours
                self._hear(self._seen)

    async def remove(self, endpoint_id: EndpointId) -> None:
        """Raises UnavailableError, AuthError."""
        async with self._turn:
            self._wanted.pop(endpoint_id, None)
            if self.reason or not self._object.touched:
                return
            if self._wanted:
                await self._write(data_of(self.incarnation, self._wanted.values()))
            else:
                await self._object.remove()

    async def _write(self, data: Object) -> None:
        self._sent.append(data)
        await self._object.write(data)

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
        if self._object.uid is None or not self._wanted or self.reason:
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
            uid = self._object.uid
            answer: Object = {"uid": uid, "annotations": dict.fromkeys(self._asked)}
            try:
                if uid is not None:
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

    async def end(self) -> None:
        """Delete the object, bounded; a lost one is somebody else's."""
        self._object.ended = True
        for task in self._tasks:
            task.cancel()
        with anyio.move_on_after(END_S, shield=True):
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._object.settled()
            delays = backoff(RETRY_S, 0.5)
            while self._object.touched and not self.reason:
                try:
                    await self._object.delete()
                    return
                except UnavailableError:
                    await asyncio.sleep(next(delays))
                except DynamoError as error:
                    log.warning("%s on Kubernetes stays until its pod ends: %s", self._name, error)
                    return
