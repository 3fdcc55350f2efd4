"""What the planes share whose connections are told by ``wire.opening.Options``, whatever carries them."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, Protocol

from dynamo.core.config import Settings
from dynamo.core.errors import DynamoError
from dynamo.core.health import Health, Status
from dynamo.core.ports.request_plane import Capability, RequestPlane, Server
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.opening import Options


class CarriedPlane(RequestPlane):
    """Its limits, its memory, and what each of its connections begins with."""

    schemes: ClassVar[tuple[str, ...]]

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._budget = ReceiveBudget(settings.receive_budget_bytes)
        self._instance_id = self._incarnation = 0  # ours, once serving
        self._closed = False
        self._capability = Capability(
            schemes=self.schemes,
            cross_process=True,
            cross_host=True,
            window_bytes=settings.window_bytes,
            max_message_bytes=settings.max_message_bytes,
        )

    @property
    def capability(self) -> Capability:
        return self._capability

    @property
    def budget(self) -> ReceiveBudget:
        """What this plane may hold of items larger than a window; ``used`` is 0 when nothing is in flight."""
        return self._budget

    async def check(self, address: str) -> Health:
        ready: asyncio.Future[DynamoError | None] = self._loop.create_future()

        def settle() -> None:
            if not ready.done():
                ready.set_result(link.connection.error)

        try:
            link = self._probe(address, settle)
        except DynamoError as error:
            return Health(status=Status.DOWN, detail=str(error))
        link.connection.on_ready = settle
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s * 2):
                problem = await ready
        except TimeoutError:
            return Health(status=Status.DOWN, detail=f"no answer from {address}")
        finally:
            link.close()
        return Health(status=Status.UP if problem is None else Status.DOWN, detail=str(problem or address))

    @abstractmethod
    def _probe(self, address: str, closed: Callable[[], None]) -> Carrying:
        """Dial ``address`` for nothing but to see whether it answers; ``closed`` is called when it closed."""

    def _options(self, peer: str, instance_id: int = 0, incarnation: int = 0) -> Options:
        settings = self._settings
        return Options(
            instance_id=self._instance_id,
            incarnation=self._incarnation,
            expected_instance_id=instance_id,
            expected_incarnation=incarnation,
            window_bytes=settings.window_bytes,
            max_message_bytes=settings.max_message_bytes,
            token=settings.auth_token,
            early=False,  # a process that is frozen, starved or dying is connected to all the same
            keepalive_s=settings.keepalive_s,
            opening_s=settings.connect_timeout_s,
            peer=peer,
        )


class Carrying(Protocol):
    """Drives one connection."""

    connection: Connection

    def close(self) -> None: ...


class CarriedServer(Server):
    """Counts the calls on its connections, and tells them to leave."""

    def __init__(self) -> None:
        self._goaways = 0

    @property
    def calls(self) -> int:
        return sum(link.connection.open_streams for link in self._carrying())

    def drain(self) -> None:
        self._go_away(1)

    def refuse(self) -> None:
        self._go_away(2)

    @abstractmethod
    def _carrying(self) -> Iterable[Carrying]:
        """All connections that came in."""

    def _greeted(self, link: Carrying) -> None:
        """Its opening is done: it hears what the others were told before."""
        for _ in range(self._goaways):
            link.connection.goaway()

    def _go_away(self, times: int) -> None:
        for link in self._carrying():
            if link.connection.ready:
                for _ in range(self._goaways, times):
                    link.connection.goaway()
        self._goaways = max(self._goaways, times)
