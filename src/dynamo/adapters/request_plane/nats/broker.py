"""The way to NATS: one connection at a time to one of the servers, and a new one when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import nats.errors
from attrs import define

from dynamo.adapters.request_plane.nats import access
from dynamo.adapters.request_plane.nats.carrier import CLOSE_S, Carrier, Receive
from dynamo.core.config import Settings
from dynamo.core.errors import AuthError, DynamoError, UnavailableError

FIRST_WAIT_S: Final = 0.05  # at most between attempts to connect, doubled each time
LONGEST_WAIT_S: Final = 0.5
SHORT_S: Final = 1.0  # a connection that lived for less is not replaced at once
DOUBT: Final = 0.1  # of the keep-alive: a server that takes longer to answer a ping is sent no calls


@define(eq=False)
class Subscription:
    """Kept over all connections until it is dropped."""

    subject: str
    queue: str
    receive: Receive
    carrier: Carrier | None = None  # where it is held, under what number
    number: int = 0


class Broker:
    """Keeps one connection until ``aclose``; ``on_up`` is called each time when it stands, ``on_forbidden``
    as the carrier's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._servers = access.servers(settings)
        self._options = access.options(settings)
        self._subscriptions: list[Subscription] = []
        self._carrier: Carrier | None = None
        self._task: asyncio.Task[None] | None = None
        self._sure = asyncio.Event()  # the server answered lately
        self.on_up: Callable[[], None] | None = None
        self.on_forbidden: Callable[[str], None] | None = None
        self.problem: DynamoError | None = None  # why it is down

    @property
    def shown(self) -> str:
        return ", ".join(map(access.hidden, self._servers))

    @property
    def up(self) -> bool:
        return self._carrier is not None

    @property
    def writable(self) -> bool:
        """It is up, takes more, and is not known to be slow to answer: what it got may be lost with it."""
        return self._carrier is not None and self._sure.is_set() and self._carrier.writable

    @property
    def max_payload(self) -> int:
        return self._carrier.max_payload if self._carrier is not None else 0

    @property
    def clustered(self) -> bool:
        return self._carrier is not None and bool(self._carrier._server_info.get("cluster"))

    async def start(self) -> None:
        """Connect; a runtime waits for servers that are away. Raises UnavailableError, AuthError."""
        self._carrier = carrier = await self._connect_somewhere()
        self._task = asyncio.get_running_loop().create_task(self._keep(carrier))

    async def aclose(self) -> None:
        """Leave once the server has read what was said: closing a socket with input unread would undo it."""
        if self._carrier is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError, AuthError):
                async with asyncio.timeout(CLOSE_S):
                    await self._carrier.heard(self._settings)
        if self._task is not None:
            # nats-py swallows a cancellation here and there
            while not self._task.done():
                self._task.cancel()
                await asyncio.wait((self._task,), timeout=0.1)
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            await carrier.leave()

    @asynccontextmanager
    async def apart(self) -> AsyncIterator[Carrier]:
        """A connection that hears nothing of what it says. Raises UnavailableError, AuthError."""
        carrier = await self._connect_in_time(no_echo=True)
        try:
            yield carrier
        finally:
            await carrier.leave()

    async def subscribe(self, subject: str, receive: Receive, queue: str = "") -> Subscription:
        """Call ``receive`` with all that comes, from now on. Raises AuthError."""
        one = Subscription(subject, queue, receive)
        self._subscriptions.append(one)
        if self._carrier is not None:
            try:
                await self._renew(self._carrier, one)
                await self._carrier.heard(self._settings)
            except (nats.errors.Error, OSError, TimeoutError) as error:
                if isinstance(error, AuthError):
                    self.withdraw(one)
                    raise
            except BaseException:
                self.withdraw(one)
                raise
        return one

    def withdraw(self, one: Subscription) -> None:
        """Ask for no more; what is on its way still comes. Twice is fine."""
        if one in self._subscriptions:
            self._subscriptions.remove(one)
            if one.carrier is not None:
                one.carrier.unsubscribe_from(one.number)

    async def drop(self, one: Subscription) -> None:
        """Withdraw it, and wait, bounded, until all has come that was on its way."""
        self.withdraw(one)
        if (carrier := one.carrier) is not None:
            if carrier is self._carrier:
                with contextlib.suppress(nats.errors.Error, OSError, TimeoutError, AuthError):
                    await carrier.heard(self._settings)
            carrier.forget(one.number)

    def forbidden(self, subject: str, all_subjects: str) -> AuthError:
        """What tells that we may not publish to ``subject``; ``all_subjects`` is the pattern that we need."""
        return access.forbidden(self.shown, self._settings, subject, all_subjects)

    def send(self, parts: Iterable[bytes | memoryview]) -> None:
        """Hand on whole commands; what is lost with the connection shows to the receiver as a gap."""
        if self._carrier is not None:
            self._carrier.send(parts)

    async def drained(self) -> None:
        """Wait until there may be room again; at once while NATS is away."""
        if self._carrier is not None:
            await self._sure.wait()
        if self._carrier is not None:
            await self._carrier.drained()

    async def _connect_in_time(self, *, no_echo: bool) -> Carrier:
        limit = self._settings.startup_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._connect_patiently(no_echo=no_echo)
        except TimeoutError:
            raise UnavailableError(f"{self.problem or self._away('no answer')}, after {limit:g} s") from None

    async def _connect_patiently(self, *, no_echo: bool = False) -> Carrier:
        wait_s = FIRST_WAIT_S
        while True:
            with contextlib.suppress(UnavailableError, AuthError):
                return await self._connect_somewhere(no_echo)
            await asyncio.sleep(random.uniform(wait_s / 2, wait_s))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _connect_somewhere(self, no_echo: bool = False) -> Carrier:
        """Go to each server once. Raises UnavailableError, AuthError."""
        problem: DynamoError = self._away("no answer")
        for server in list(self._servers):
            try:
                return await self._connect(server, no_echo)
            except AuthError as error:
                problem = error
                if self._task is None:
                    raise  # at the start; a server that was there before may have forgotten its users
            except Exception as error:  # where something else answers, nats-py raises all kinds
                where = f"{access.hidden(server)}: " if len(self._servers) > 1 else ""
                problem = self._away(f"{where}{_reason(error)}")
                problem.__cause__ = error
            self.problem = problem
            self._servers.append(self._servers.pop(0))
        raise problem

    def _away(self, reason: str) -> UnavailableError:
        source = self._settings.source("nats_server")
        return UnavailableError(f"no NATS server at {self.shown} ({source}): {reason}")

    async def _connect(self, server: str, no_echo: bool) -> Carrier:
        carrier = await Carrier.open(server, self._settings, self._options, no_echo=no_echo)
        if no_echo:
            return carrier
        carrier.on_forbidden = self.on_forbidden
        try:
            while missing := [one for one in self._subscriptions if one.carrier is not carrier]:
                for one in missing:
                    await self._renew(carrier, one)
                await carrier.heard(self._settings)  # others may be made meanwhile
        except BaseException:
            await carrier.leave()
            raise
        return carrier

    async def _renew(self, carrier: Carrier, one: Subscription) -> None:
        one.number = await carrier.subscribe_to(one.subject, one.queue, one.receive)
        one.carrier = carrier
        if one not in self._subscriptions:  # it was withdrawn meanwhile
            carrier.unsubscribe_from(one.number)
            carrier.forget(one.number)

    async def _keep(self, carrier: Carrier) -> None:
        """Announce each connection, watch it, and replace it when it is lost."""
        loop = asyncio.get_running_loop()
        while True:
            self._carrier, self.problem = carrier, None
            began_at = loop.time()
            self._sure.set()
            try:
                if self.on_up is not None:
                    self.on_up()
                await self._watch(carrier)
            finally:
                self._carrier = None
                self._sure.set()  # who waits for it is to look again
                carrier.abort()  # else its closing waits for what nobody reads
                await carrier.leave()
            self.problem = UnavailableError(f"the connection to NATS at {self.shown} was lost")
            if loop.time() - began_at < SHORT_S:  # it lets us in, and not stay
                await asyncio.sleep(random.uniform(LONGEST_WAIT_S / 2, LONGEST_WAIT_S))
            carrier = await self._connect_patiently()

    async def _watch(self, carrier: Carrier) -> None:
        """Return when the connection is lost, or its server is silent."""
        interval_s = self._settings.keepalive_s / 3
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await carrier.lost.wait()
            if carrier.lost.is_set() or not carrier.is_connected:
                return
            late = asyncio.get_running_loop().call_later(DOUBT * self._settings.keepalive_s, self._sure.clear)
            try:
                await carrier.rtt(self._settings.keepalive_s)  # type: ignore[arg-type]
            except Exception:  # whatever it is: a new connection is the way out
                return
            finally:
                late.cancel()
            self._sure.set()


def _reason(error: Exception) -> str:
    """The system's words, which asyncio quotes by their number."""
    if quoted := re.search(r"\[Errno (\d+)\]", str(error)):
        return os.strerror(int(quoted[1]))
    return str(error) or type(error).__name__
