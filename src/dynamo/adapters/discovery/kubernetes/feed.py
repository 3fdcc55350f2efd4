"""Objects of one kind, followed: a listing at some version, then every change after it.

The vendor's own watch goes on at a version that is gone, waits for nothing between attempts and knows no
silence. Here:

- A watch that ends in good order, or breaks, goes on at the last version seen; bookmarks move that on.
- If that version is gone (410, as a status or as an event), all is listed again.
- If it cannot be begun again at once, or the server refuses or cannot be understood, listeners are told that
  it is away; afterwards all is listed again, so that an outage ends in the whole state.
- Servers that are busy (429) are left alone for as long as they ask.
- A watch that sends nothing is begun again after ``SILENCE_S``: bookmarks come every minute. A server
  that says nothing at all is noticed sooner: see ``silence``.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any, Protocol

from dynamo.adapters.discovery.kubernetes.access import Access, Object, Selection
from dynamo.adapters.discovery.kubernetes.errors import BusyError, RefusedError, pause_s, rest_s
from dynamo.core.errors import DynamoError, UnavailableError
from dynamo.core.lifetime import backoff

WATCH_S = 300  # then the server ends it, and another one takes the next
SILENCE_S = 150.0
SHORT_S = 1.0  # a watch that ended sooner, without an event, is no progress
FIRST_DELAY_S, LONGEST_DELAY_S = 0.05, 5.0

log = logging.getLogger(__name__)


class Listener(Protocol):
    """``failed`` may come many times, ``listed`` ends it. ``resync``: history was lost before it."""

    def listed(self, found: dict[str, Object], *, listing: int, resync: bool) -> None: ...

    def changed(self, name: str, found: Object | None) -> None: ...

    def failed(self, error: DynamoError) -> None: ...


class Feed:
    """Follows ``selection`` until its task is cancelled. ``listings`` counts those that were begun."""

    def __init__(self, access: Access, selection: Selection, listener: Listener) -> None:
        self._access, self._selection, self._listener = access, selection, listener
        self.listings = 0
        self._version = ""  # of the last thing seen; empty: to be listed
        self._resync = False
        self._reading: asyncio.Timeout | None = None
        self._again = False
        self._told = ""  # what keeps it from watching, of what waiting does not mend

    def list_again(self) -> int:
        """Have everything listed anew; the number of the listing that will be new enough."""
        self._again = True
        self.watch_again()
        return self.listings + 1

    def watch_again(self) -> None:
        """End the watch that is open, if one is; another one goes on where it ended."""
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(0.0)

    async def run(self) -> None:
        """Ends only by cancellation."""
        delays = backoff(FIRST_DELAY_S, LONGEST_DELAY_S)
        while True:
            delay_s = 0.0
            try:
                if self._again or not self._version:
                    await self._list()
                if await self._follow():
                    delays = backoff(FIRST_DELAY_S, LONGEST_DELAY_S)
                elif not self._again:
                    delay_s = next(delays)
            except RefusedError as error:
                if error.status == 410 and not self._resync:  # twice, and there was no listing in between
                    self._version, self._resync = "", True
                else:
                    self._fail(error)
                delay_s = next(delays)
            except Exception as error:
                if not isinstance(error, DynamoError):
                    log.exception("following Kubernetes failed, going on from a new listing")
                    error = UnavailableError(f"{type(error).__name__}: {error}")
                self._fail(error)
                delay_s = pause_s(error, next(delays))
            await asyncio.sleep(delay_s)

    def _fail(self, error: DynamoError) -> None:
        self._version = ""
        if not isinstance(error, UnavailableError) and str(error) != self._told:
            self._told = str(error)
            log.error("%s", error)
        self._listener.failed(error)

    async def _list(self) -> None:
        self._again = False
        self.listings += 1
        listing = self.listings
        found, version = await self._access.list(self._selection)
        named = {str(one["metadata"]["name"]): one for one in found}
        self._version = version
        resync, self._resync = self._resync, False
        self._listener.listed(named, listing=listing, resync=resync)

    async def _follow(self) -> bool:
        """Read one watch to its end; whether it was worth it. Raises what kept it from beginning."""
        if self._again:
            return True
        timeout_s = round(WATCH_S * random.uniform(0.8, 1.2))
        began = time.monotonic()
        version = self._version
        async with self._access.watch(self._selection, version, timeout_s) as watching:
            self._told = ""
            while not self._again:
                try:
                    async with asyncio.timeout(SILENCE_S) as self._reading:
                        events = await watching.events()
                except TimeoutError:
                    break  # asked to, or silence: the next one tells
                finally:
                    self._reading = None
                if not events:
                    break
                for event in events:
                    self._take(event)
        return self._version != version or time.monotonic() - began > SHORT_S

    def _take(self, event: Object) -> None:
        """One line of the watch. Raises RefusedError, UnavailableError."""
        kind, found = event.get("type"), event.get("object")
        if kind == "ERROR" or not isinstance(found, dict):
            status: dict[str, Any] = found if isinstance(found, dict) else {}
            said = f"{self._access.where} ended the watch: {status.get('message') or event}"
            if status.get("code") == 410 or status.get("reason") in ("Expired", "Gone"):
                raise RefusedError(said, 410)
            if status.get("code") == 429:
                raise BusyError(said, rest_s((status.get("details") or {}).get("retryAfterSeconds")))
            raise UnavailableError(said)
        metadata = found["metadata"]
        self._version = str(metadata["resourceVersion"])
        if kind in ("ADDED", "MODIFIED"):
            self._listener.changed(str(metadata["name"]), found)
        elif kind == "DELETED":
            self._listener.changed(str(metadata["name"]), None)
