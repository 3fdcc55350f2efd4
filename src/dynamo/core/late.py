"""A request plane whose adapter is still opening, so that starting a call need not wait for it."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from dynamo.core.errors import CallCancelledError, DynamoError, UnavailableError, UnsupportedError
from dynamo.core.health import Health, Status
from dynamo.core.lifetime import retrieve
from dynamo.core.ports.request_plane import (
    Accept,
    Capability,
    OutgoingCall,
    Payload,
    Request,
    RequestPlane,
    Server,
)


class OpeningPlane(RequestPlane):
    """Stands in for one: its calls wait until the adapter is open, and are then turned away, SAFE, to come
    again.
    """

    def __init__(self, scheme: str, opening: asyncio.Task[RequestPlane], connect_timeout_s: float) -> None:
        self._scheme, self._opening, self._connect_timeout_s = scheme, opening, connect_timeout_s
        opening.add_done_callback(retrieve)

    @property
    def capability(self) -> Capability:
        return Capability(
            schemes=(self._scheme,),
            cross_process=False,
            cross_host=False,
            window_bytes=0,
            max_message_bytes=0,
        )

    def serve(
        self, accept: Accept, *, instance_id: int, incarnation: int, address: str | None = None
    ) -> AbstractAsyncContextManager[Server]:
        raise UnsupportedError(f"the {self._scheme} adapter is still opening")

    def call(
        self, address: str, request: Request, *, instance_id: int = 0, incarnation: int = 0
    ) -> OutgoingCall:
        return _LateCall(address, self._opening, self._connect_timeout_s)

    async def check(self, address: str) -> Health:
        try:
            return await (await asyncio.shield(self._opening)).check(address)
        except DynamoError as error:
            return Health(status=Status.DOWN, detail=str(error))


class _LateCall(OutgoingCall):
    """Sends nothing; ends once the adapter is open, or could not be opened in time."""

    def __init__(self, address: str, opening: asyncio.Task[RequestPlane], connect_timeout_s: float) -> None:
        self._opening = opening
        self._address = address
        self._killed = False
        self._over = asyncio.Event()
        if opening.done():
            self._over.set()
        else:
            timer = asyncio.get_running_loop().call_later(connect_timeout_s, self._over.set)
            opening.add_done_callback(lambda _: timer.cancel())
            opening.add_done_callback(lambda _: self._over.set())

    def send(self, payload: Payload, *, end: bool = False) -> bool:
        return False

    def end(self) -> None:
        pass

    async def writable(self) -> None:
        await self._over.wait()

    def receive_nowait(self) -> Payload | None:
        return None

    @property
    def ended(self) -> bool:
        return self._over.is_set()

    @property
    def error(self) -> DynamoError | None:
        if self._killed:
            return CallCancelledError("the call was killed by its caller")
        if not self.ended:
            return None
        if not self._opening.done():
            return UnavailableError(f"the adapter that dials {self._address} did not open in time")
        cause = None if self._opening.cancelled() else self._opening.exception()
        if cause is not None:
            return UnavailableError(f"cannot dial {self._address}: {cause}")
        return UnavailableError(f"the adapter that dials {self._address} was still opening; it is open now")

    @property
    def received(self) -> int:
        return 0

    async def wait(self) -> None:
        await self._over.wait()

    @property
    def answered(self) -> bool:
        return False

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        if not self.ended:
            self._killed = True
            self._over.set()
