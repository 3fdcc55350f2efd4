"""Who owns a name, where several processes may want it at once."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import nats.errors

from dynamo.adapters.request_plane.nats import addresses
from dynamo.adapters.request_plane.nats.broker import Broker
from dynamo.adapters.request_plane.nats.carrier import Carrier
from dynamo.core.config import Settings
from dynamo.core.errors import AuthError, ConflictError, UnavailableError

QUESTION = struct.Struct("<Q")  # who asks: its incarnation. Shorter than any message of a session
HERE = b"here"
LEAVING = b"leaving"
AGAIN_S: Final = 0.01  # for one who gave way to be gone
CLUSTER_S: Final = 0.3  # for the other servers of a cluster to know a subscription


@asynccontextmanager
async def claimed(broker: Broker, name: str, incarnation: int, settings: Settings) -> AsyncIterator[None]:
    """The name is ours alone, if its subscription is made in the block. Raises ConflictError, and as a start.

    First it is held, then others are asked for, by a connection that does not hear itself: only who finds
    nobody else owns it. So of two at once one finds the other at least. The lower incarnation stays, the
    other gives way.
    """
    async with broker.apart() as carrier:
        claim = _Claim(broker, carrier, name, incarnation, settings)
        await claim.hold()
        try:
            if broker.clustered:
                await asyncio.sleep(CLUSTER_S)
            await claim.settle()
            yield
        finally:
            await claim.leave()


class _Claim:
    def __init__(
        self, broker: Broker, carrier: Carrier, name: str, incarnation: int, settings: Settings
    ) -> None:
        self._broker, self._carrier, self._settings = broker, carrier, settings
        self._incarnation = incarnation
        self._subject = addresses.subject(addresses.PROBE, name)
        self._address = addresses.SCHEME + name
        self._number = 0
        self._owned = self._gave_way = self._forbidden = False
        self._patience = asyncio.timeout(None)
        carrier.on_forbidden = self._not_asked

    async def hold(self) -> None:
        with self._told():
            self._number = await self._carrier.subscribe_to(self._subject, "", self._asked)
            await self._carrier.heard(self._settings)

    async def settle(self) -> None:
        """Return when nobody else is there. Raises AuthError where we may not ask."""
        limit: Any = self._settings.connect_timeout_s  # nats-py says int, and takes any number
        question = QUESTION.pack(self._incarnation)
        try:
            async with asyncio.timeout(2 * limit) as self._patience:
                with self._told():
                    while not self._gave_way:
                        reply = await self._carrier.request(self._subject, question, limit)
                        if reply.data == HERE:
                            raise ConflictError(
                                f"{self._address} is served by another process; choose another name"
                            )
                        await asyncio.sleep(AGAIN_S)
        except nats.errors.NoRespondersError:
            pass
        except TimeoutError as error:
            if self._forbidden:
                raise self._broker.forbidden(self._subject, addresses.ALL) from None
            raise ConflictError(
                f"{self._address} is taken, by a process that did not answer within {limit:g} s "
                f"({self._settings.source('connect_timeout_s')}); choose another name, or end that one. "
                "After its host was lost, NATS takes up to ping_interval times ping_max to forget it"
            ) from error
        if self._gave_way:
            raise ConflictError(f"{self._address} is being taken by another process; choose another name")
        self._owned = True

    async def leave(self) -> None:
        """Let go, and answer first those who asked: they wait for it."""
        if not self._owned:
            self._gave_way = True
        self._carrier.unsubscribe_from(self._number)
        with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
            await self._carrier.heard(self._settings)

    def _asked(self, _: str, reply: str, data: bytes, nobody: bool) -> None:
        if len(data) == QUESTION.size and reply:
            if not self._owned and QUESTION.unpack(data)[0] < self._incarnation:
                self._gave_way = True
            self._carrier.send(answer(reply, LEAVING if self._gave_way else HERE))

    def _not_asked(self, subject: str) -> None:
        """The server threw our question away."""
        if subject == self._subject and not self._forbidden:
            self._forbidden = True
            self._patience.reschedule(0)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (nats.errors.NoRespondersError, TimeoutError, AuthError):
            raise
        except (nats.errors.Error, OSError) as error:
            raise UnavailableError(f"NATS was lost while {self._address} was claimed: {error}") from error


def answer(reply: str, word: bytes) -> list[bytes]:
    """The command that answers a question."""
    return [b"PUB %s %d\r\n%s\r\n" % (reply.encode(), len(word), word)]
