"""Canaries: an endpoint that nobody calls is asked now and then, so that a dead engine shows before a user
meets it.

Off unless ``DYN_HEALTH_CHECK_ENABLED`` says so; only endpoints served with a ``health_check_payload`` are
asked. A probe is sent when no call began, gave its first item or ended for ``DYN_CANARY_WAIT_TIME`` seconds,
and no handler would have to wait for it. It passes with its first item, or with an end that is no error,
within ``DYN_HEALTH_CHECK_REQUEST_TIMEOUT``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable

from dynamo.core.codec import encode
from dynamo.core.config import Settings
from dynamo.core.errors import DynamoError
from dynamo.core.lifetime import within
from dynamo.core.ports.request_plane import Accept, IncomingCall, Payload, Request
from dynamo.core.ports.telemetry import EndpointTelemetry

logger = logging.getLogger("dynamo.runtime")


class Activity(EndpointTelemetry):
    """Notes when an endpoint was last alive, and tells what it is told to another telemetry, if there is
    one.
    """

    __slots__ = ("_next", "last", "running")

    def __init__(self, following: EndpointTelemetry | None) -> None:
        self._next = following
        self.last = time.monotonic()
        self.running = 0  # calls that began and have not ended, probes too

    def started(self) -> None:
        self.running += 1
        self.last = time.monotonic()
        if self._next is not None:
            self._next.started()

    def first_item(self, after_s: float) -> None:
        self.last = time.monotonic()
        if self._next is not None:
            self._next.first_item(after_s)

    def ended(self, after_s: float, error: str | None) -> None:
        self.running -= 1
        self.last = time.monotonic()
        if self._next is not None:
            self._next.ended(after_s, error)

    def refused(self, error: str) -> None:
        if self._next is not None:
            self._next.refused(error)

    def retried(self, error: str) -> None:
        if self._next is not None:
            self._next.retried(error)


class Probe(IncomingCall):
    """A call that comes from nowhere: its items are counted and dropped."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.on_cancel: Callable[[bool], object] | None = None
        self.items = 0
        self._ended = asyncio.Event()
        self.failure: DynamoError | None = None

    def send(self, payload: Payload, *, end: bool = False) -> bool:
        self.items += 1
        if end:
            self._ended.set()
        return True

    def end(self) -> None:
        self._ended.set()

    def refuse(self, error: DynamoError) -> None:
        self.fail(error)

    def fail(self, error: DynamoError) -> None:
        if not self._ended.is_set():
            self.failure = error
            self._ended.set()

    async def writable(self) -> None:
        return

    async def wait(self) -> None:
        return

    @property
    def done(self) -> bool:
        """True once the answer has ended."""
        return self._ended.is_set()

    async def over(self) -> None:
        """Wait for the end of the answer."""
        await self._ended.wait()

    def receive_nowait(self) -> Payload | None:
        return None

    @property
    def ended(self) -> bool:
        return True  # of what the handler may read: nothing follows the request

    @property
    def error(self) -> DynamoError | None:
        return None

    @property
    def received(self) -> int:
        return 0

    @property
    def stopped(self) -> bool:
        return False

    @property
    def killed(self) -> bool:
        return False


class Canary:
    """Probes one endpoint until ``close``; ``trouble`` is what the last probe met, None if it passed."""

    def __init__(
        self,
        endpoint: str,
        payload: object,
        accept: Accept,
        activity: Activity,
        max_inflight: int | None,
        settings: Settings,
    ) -> None:
        self.trouble: str | None = None
        self._endpoint, self._payload = endpoint, encode(payload)
        self._accept, self._activity = accept, activity
        self._limit, self._settings = max_inflight, settings
        self._numbers = itertools.count(1)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"dynamo: canary of {endpoint}")

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        wait_s, activity = self._settings.canary_wait_s, self._activity
        while True:
            left_s = wait_s - (time.monotonic() - activity.last)
            if left_s > 0:
                await asyncio.sleep(left_s)
            elif self._limit is not None and activity.running >= self._limit:
                await asyncio.sleep(wait_s)  # it would wait behind real work: what is known stands
            else:
                trouble = await self._probe()
                if trouble is not None and self.trouble is None:
                    logger.error("%s does not pass its health check: %s", self._endpoint, trouble)
                elif trouble is None and self.trouble is not None:
                    logger.info("%s passes its health check again", self._endpoint)
                self.trouble = trouble
                activity.last = time.monotonic()

    async def _probe(self) -> str | None:
        timeout_s = self._settings.health_check_timeout_s
        request = Request(
            endpoint=self._endpoint, request_id=f"canary-{next(self._numbers):x}", payload=self._payload
        )
        probe = Probe(request)
        self._accept(probe)
        try:
            ended = await within(timeout_s, probe.over())
        finally:
            if not probe.done and probe.on_cancel is not None:
                probe.on_cancel(True)
        if ended and probe.failure is not None:
            return f"{type(probe.failure).__name__}: {probe.failure}"
        if ended or probe.items:
            return None
        bound = self._settings.source("health_check_timeout_s")
        return f"no answer to its health_check_payload within {timeout_s:g} s ({bound})"
