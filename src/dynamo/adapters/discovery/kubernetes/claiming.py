"""Somebody else's object in our place: whether its owner lives is found out by asking it.

Who wants the place annotates the object. A live owner, which follows its object, takes the annotation away
within milliseconds; where nobody does, the object was left behind by a process that died.
"""

from __future__ import annotations

import asyncio
import logging
import time

from dynamo.adapters.discovery.kubernetes.access import Access, Object, Selection
from dynamo.adapters.discovery.kubernetes.errors import RECORDS, RefusedError
from dynamo.adapters.discovery.kubernetes.records import CLAIM, claims_of, incarnation_in
from dynamo.core.errors import ConflictError, UnavailableError
from dynamo.core.lifetime import backoff

ANSWER_S = 2.0  # for a live owner to answer
FIRST_LOOK_S, LONGEST_LOOK_S = 0.05, 0.4
AGAIN_S = 0.2  # until the next question

log = logging.getLogger(__name__)


class Place:
    """The object ``name``, as one incarnation wants to have it."""

    def __init__(self, access: Access, name: str, incarnation: int) -> None:
        self.selection = Selection(resource=RECORDS, fields=f"metadata.name={name}")
        self._access, self._name, self._incarnation = access, name, incarnation
        self._claim = f"{CLAIM}{incarnation:x}"

    async def look(self) -> Object | None:
        """What is there. Raises UnavailableError, AuthError, ConfigError."""
        found, _ = await self._access.list(self.selection)
        return found[0] if found else None

    async def foreign(self) -> Object | None:
        """What is there of another incarnation."""
        found = await self.look()
        return None if found is None or incarnation_in(found) == self._incarnation else found

    async def clear(self, deadline: float) -> None:
        """Wait until no other incarnation is there; take away what nobody answers for.

        Raises ConflictError where somebody answers after ``deadline``; UnavailableError, also where the
        object cannot be asked; AuthError.
        """
        while (found := await self.foreign()) is not None:
            uid = found["metadata"]["uid"]
            question = {"uid": uid, "annotations": {self._claim: "does its owner live?"}}
            try:
                await self._access.merge(self._name, {"metadata": question})
                answered = await self._answered(uid)
            except RefusedError as error:  # it changed meanwhile
                if time.monotonic() > deadline + ANSWER_S:
                    what = f"{self._name} in {self._access.where} changes faster than its owner can be asked"
                    raise UnavailableError(f"{what}: {error}") from error
                answered = False
            if answered and time.monotonic() > deadline:
                waited_s = self._access.config.takeover_s
                raise ConflictError(
                    f"{self._name} in namespace {self._access.namespace!r} belongs to incarnation "
                    f"{incarnation_in(found) or 0:x}, still alive after {waited_s:g} s; stop that one, "
                    "or give each container of the pod its own records (DYN_KUBE_DISCOVERY_MODE=container)"
                )
            await asyncio.sleep(AGAIN_S)

    async def _answered(self, uid: str) -> bool:
        """Whether a live owner took our question away; where nobody does, the object is deleted."""
        until, delays = time.monotonic() + ANSWER_S, backoff(FIRST_LOOK_S, LONGEST_LOOK_S)
        while True:
            await asyncio.sleep(next(delays))
            found = await self.foreign()
            if found is None or found["metadata"]["uid"] != uid:
                return False
            if self._claim not in claims_of(found):
                return True
            if time.monotonic() > until:
                version = found["metadata"]["resourceVersion"]
                log.info("%s was left behind by an earlier process and is replaced", self._name)
                await self._access.delete(self._name, {"uid": uid, "resourceVersion": version})
                return False
