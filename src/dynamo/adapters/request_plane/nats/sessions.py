"""All sessions of one process, dialled and served: their one inbox, and what they have to say, in turns."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import deque
from collections.abc import Callable
from time import perf_counter

from dynamo.adapters.request_plane.nats import addresses
from dynamo.adapters.request_plane.nats.broker import Broker
from dynamo.adapters.request_plane.nats.carrier import INBOX
from dynamo.adapters.request_plane.nats.link import HEAD, LINGER_S, SessionLink
from dynamo.core.wire.connection import Connection

log = logging.getLogger(__name__)

CLOSE_S = 1.0  # for what closing sessions still say to be sent
HOLD_S = 100e-6  # after a message the next one may wait for so long, if there is more to come: it costs
# three processes about 50 us, so nothing is sent before its tick ends either
_BOUNCED = re.compile(r"\.(caller|worker)\.([0-9a-f]{16})\.([01])$")


class Sessions:
    """Carries between the connections of the sessions and the broker; ``start`` opens the inbox."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._inbox = f"{INBOX}.{secrets.token_hex(11)}"
        # Dialled and (True) served: a process that calls itself has both ends of one session.
        self._links: dict[tuple[bool, int], SessionLink] = {}
        self._ready: deque[SessionLink] = deque()  # with something to say
        self._scheduled = False
        self._sent_at = 0.0
        self._held = 0  # bytes that were held at the end of the last tick
        self._full, self._idle = asyncio.Event(), asyncio.Event()
        self._refill: asyncio.Task[None] | None = None
        self._warned = False  # since NATS was last there

    async def start(self) -> None:
        """Connect, and open the inbox. Raises UnavailableError, AuthError."""
        self._broker.on_up = self._resume
        self._broker.on_forbidden = self._forbidden
        await self._broker.subscribe(f"{self._inbox}.>", self._receive)
        await self._broker.start()
        self._refill = self._loop.create_task(self._send_on())

    async def aclose(self) -> None:
        """End every session, in bounded time, and leave NATS."""
        for link in list(self._links.values()):
            link.close()
        try:
            async with asyncio.timeout(CLOSE_S if self._broker.up else 0):
                while self._links:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            pass
        for link in list(self._links.values()):
            link.finish()
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.wait((self._refill,))
        await self._broker.aclose()

    def served(self, session: int) -> SessionLink | None:
        return self._links.get((True, session))

    def dial(
        self,
        connection: Connection,
        target: str,
        closed: Callable[[SessionLink], None],
        pinned: Callable[[int], str] | None = None,
    ) -> SessionLink:
        """Open a session with ``target``, which is taken at once and begins when there is a way to NATS."""
        link = self._add(connection, (False, secrets.randbits(64)), target, closed, pinned=pinned)
        connection.on_idle = lambda: self._left(link)
        return link

    def serve(
        self, connection: Connection, session: int, target: str, closed: Callable[[SessionLink], None]
    ) -> SessionLink:
        """Take a session that a caller opened, whose inbox is ``target``."""
        return self._add(connection, (True, session), target, closed, LINGER_S)

    def _add(
        self,
        connection: Connection,
        key: tuple[bool, int],
        target: str,
        closed: Callable[[SessionLink], None],
        linger_s: float = 0,
        pinned: Callable[[int], str] | None = None,
    ) -> SessionLink:
        def ended(link: SessionLink) -> None:
            del self._links[key]
            if link.queued:
                self._ready.remove(link)
            closed(link)
            self._idle.set()

        served, session = key
        inbox = f"{self._inbox}.{'worker' if served else 'caller'}.{session:016x}"
        link = SessionLink(connection, session, target, inbox, self._queue, ended, linger_s, pinned)
        self._links[key] = link
        return link

    def _left(self, link: SessionLink) -> None:
        """Its last call ended."""
        if link.connection.draining or link.retired:
            self._loop.call_soon(link.close_if_idle)

    def _receive(self, subject: str, reply: str, data: bytes, nobody: bool) -> None:
        """What came to the inbox: responses, and word of messages that nobody took."""
        if nobody:
            found = _BOUNCED.search(subject)  # anybody may publish to an inbox, and say so
            link = self._links.get((found[1] == "worker", int(found[2], 16))) if found else None
            if found and link is not None:
                link.nobody(first=found[3] == "0")
        elif len(data) >= HEAD.size:
            session, sequence = HEAD.unpack_from(data)
            if (link := self._links.get((False, session))) is not None:
                link.received(sequence, memoryview(data)[HEAD.size :])

    def _forbidden(self, subject: str) -> None:
        """The server threw away what sessions said there: what is under way in them will not end well."""
        links = [(served, link) for (served, _), link in self._links.items() if link.target == subject]
        for served, link in links:
            error = self._broker.forbidden(subject, f"{INBOX}.>" if served else addresses.ALL)
            if served and not self._warned:
                self._warned = True
                log.warning("callers do not hear us: %s", error)
            if served or link.heard:
                link.finish(error)
            elif not link.untouched:
                link.fail(error)

    def _queue(self, link: SessionLink) -> None:
        self._ready.append(link)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._end_tick)

    def _resume(self) -> None:
        self._warned = False
        for link in list(self._links.values()):
            link.resumed()
        self._send()

    def _end_tick(self) -> None:
        """Send what the tick brought. Right after another message it is held for one more tick, and again
        while each brings more: handlers that only let others run between items then share messages.
        """
        if perf_counter() - self._sent_at < HOLD_S:
            waiting = sum(link.connection.waiting_bytes for link in self._ready)
            if waiting != self._held:
                self._held = waiting
                self._loop.call_soon(self._end_tick)
                return
        self._held = 0
        self._scheduled = False
        self._send()

    def _send(self) -> None:
        """Send what there is while NATS takes it; what it does not stays in the sessions' windows."""
        broker, ready = self._broker, self._ready
        self._sent_at = perf_counter()
        while ready and broker.writable:
            link = ready.popleft()
            link.queued = False
            for command in link.commands(broker.max_payload):
                broker.send(command)
            if link.has_output and not link.queued and not link.closed:
                link.queued = True
                ready.append(link)
        if ready and broker.up:
            self._full.set()

    async def _send_on(self) -> None:
        while True:
            await self._full.wait()
            self._full.clear()
            await self._broker.drained()
            self._send()
