"""What one serving runtime is to its callers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import cast

from dynamo.adapters.request_plane.carried import CarriedServer
from dynamo.adapters.request_plane.nats.link import SessionLink
from dynamo.adapters.request_plane.tcp.link import Call
from dynamo.core.ports.request_plane import Accept
from dynamo.core.wire.stream import Stream

MAX_OPENING = 1024  # sessions that have not said who they are; one more costs the oldest its place
CLOSE_S = 1.5  # for sessions to end by themselves when the server closes


def _nothing() -> None:
    pass


class NatsServer(CarriedServer):
    """All sessions that callers opened here."""

    def __init__(self, accept: Accept, address: str) -> None:
        super().__init__()
        self._accept = accept
        self._address = address
        self._links: set[SessionLink] = set()
        self._opening: dict[SessionLink, None] = {}  # insertion order: the first is the oldest
        self._ended = asyncio.Event()
        self._closing = False
        self.withdraw: Callable[[], None] = _nothing  # called before callers are told to leave
        self.open = True

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    def accept(self, stream: Stream) -> None:
        self._accept(cast(Call, stream))

    def began(self, link: SessionLink) -> None:
        """A caller opened a session."""
        self._links.add(link)
        link.connection.on_ready = lambda: self._ready(link)
        self._opening[link] = None
        if len(self._opening) > MAX_OPENING:
            next(iter(self._opening)).finish()

    def ended(self, link: SessionLink) -> None:
        self._links.discard(link)
        self._opening.pop(link, None)
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

    def _carrying(self) -> Iterable[SessionLink]:
        return self._links

    def _ready(self, link: SessionLink) -> None:
        self._opening.pop(link, None)
        self._greeted(link)
        if self._closing:
            link.linger_s = 0  # its caller may not be able to reach us any more
            asyncio.get_running_loop().call_soon(link.close)  # this is in the middle of its first message

    def _go_away(self, times: int) -> None:
        self.withdraw()
        super()._go_away(times)
