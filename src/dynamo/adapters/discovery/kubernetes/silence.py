"""Whether an API server that says nothing is still there.

Where nothing happens it sends a bookmark a minute, and does not promise even that. TCP's keep-alive is
answered by the kernel of a server that is frozen, or by a proxy before it. So who has heard nothing for a
while asks for the version, which it tells everybody, from memory.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable

from dynamo.adapters.discovery.kubernetes.access import Access
from dynamo.adapters.discovery.kubernetes.feed import Feed

QUIET_S = 15.0  # with an answer's time for the version, and for a new watch: stale within 30 s


async def notice(access: Access, feeds: Iterable[Feed]) -> None:
    """Until it is cancelled: where nothing answers, begin the watches again, which find out what is wrong."""
    while True:
        quiet_s = QUIET_S * random.uniform(0.8, 1.2)  # not all processes at once
        while (rest_s := access.heard_at + quiet_s - time.monotonic()) > 0:
            await asyncio.sleep(rest_s)
        try:
            await access.ping()
        except Exception:  # the watches have the words for it
            for feed in feeds:
                feed.watch_again()
            await asyncio.sleep(quiet_s)
