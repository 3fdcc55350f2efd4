"""What one serving runtime is to its callers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import cast

from dynamo.adapters.request_plane.nats.link import SessionLink
from dynamo.adapters.request_plane.tcp.link import Call
from dynamo.core.ports.request_plane import Accept, Server
from dynamo.core.wire.stream import Stream

CLOSE_S = 1.5  # for sessions to end by themselves when the server closes


def _nothing() -> None:
    pass


class NatsServer(Server):
    """All sessions that callers opened here."""

    def __init__(self, accept: Accept, address: str) -> None:
        self._accept = accept
        self._address = address
        self._links: set[SessionLink] = set()
        self._ended = asyncio.Event()
        self._goaways = 0
        self._closing = False
        self.withdraw: Callable[[], None] = _nothing  # called before callers are told to leave
        self.open = True

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    @property
    def calls(self) -> int:
        return sum(link.connection.open_streams for link in self._links)

    def drain(self) -> None:
        self._go_away(1)

    def refuse(self) -> None:
        self._go_away(2)

    def accept(self, stream: Stream) -> None:
        self._accept(cast(Call, stream))

    def began(self, link: SessionLink) -> None:
        """A caller opened a session."""
        self._links.add(link)
        link.connection.on_ready = lambda: self._greeted(link)

    def ended(self, link: SessionLink) -> None:
        self._links.discard(link)
        self._ended.set()

    def abort(self) -> None:
        """Forget every session without a word, and take no more, as a killed process does."""
        self.open = False
        for link in list(self._links):
            link.finish()

    async def close(self) -> None:
        """End every call and session, in bounded time; those that still come are told to go elsewhere."""
        self._closing = True
        leaving = set(self._links)
        for link in leaving:
            link.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while leaving & self._links:
                    self._ended.clear()
                    await self._ended.wait()
        for link in leaving & self._links:
            link.finish()

    def _greeted(self, link: SessionLink) -> None:
        for _ in range(self._goaways):
            link.connection.goaway()
        if self._closing:
            link.linger_s = 0  # its caller may not be able to reach us any more
            asyncio.get_running_loop().call_soon(link.close)  # this is in the middle of its first message

    def _go_away(self, times: int) -> None:
        self.withdraw()
        for link in self._links:
            if link.connection.ready:
                for _ in range(self._goaways, times):
                    link.connection.goaway()
        self._goaways = max(self._goaways, times)
