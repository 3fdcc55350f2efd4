"""One request in its method: a task of its own, which whoever loses interest cuts short."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import Any

from attrs import define

from dynamo.adapters.http.admission import Admission
from dynamo.adapters.http.answers import Answer, ClientLeft
from dynamo.adapters.http.problems import Refusal, problem_of
from dynamo.core.context import Context
from dynamo.core.distributed import DistributedRuntime
from dynamo.core.errors import BadPayloadError, CallCancelledError, ClosedError, DeadlineError
from dynamo.core.lifetime import runs_in
from dynamo.core.ports.telemetry import EndpointTelemetry
from dynamo.sdk.routes import Route, encode_json

logger = logging.getLogger("dynamo.http")

CANCEL_S = 5.0  # a cancelled method that runs on for longer is reported, and not waited for


@define(eq=False)
class OpenRoute:
    """A route, and what is under way on it."""

    route: Route
    runtime: DistributedRuntime
    admission: Admission
    telemetry: EndpointTelemetry | None


class RouteCall:
    """From the admission to the end. ``over`` is done once the answer is written, or nobody waits for it;
    the method may still be on its way out then, and keeps its place until it is.
    """

    def __init__(self, opened: OpenRoute, payload: Any, context: Context, answer: Answer) -> None:
        self._opened, self._payload, self._context, self._answer = opened, payload, context, answer
        self._loop = asyncio.get_running_loop()
        self._began_at = time.monotonic()
        self._admitted = self._running = False
        self._report: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.over: asyncio.Future[None] = self._loop.create_future()
        self.over.add_done_callback(lambda over: over.cancelled() or over.exception())
        if (timeout_s := context.timeout_s) is not None:
            self._deadline = self._loop.call_later(timeout_s, self._expire, timeout_s)
        self.task = self._loop.create_task(self._run())

    def cut(self, error: BaseException) -> None:
        """Cancel the method, and what it calls; ``over`` fails with ``error``."""
        if self.over.done():
            return
        self.over.set_exception(error)
        self._stop(self._deadline)
        self._context.kill()
        self.task.cancel()
        if self._running:
            self._report = self._loop.call_later(CANCEL_S, self._report_running)

    async def _run(self) -> None:
        telemetry = self._opened.telemetry
        error: BaseException | None = None
        try:
            with self._opened.runtime._answering():
                await self._opened.admission.enter()
                self._admitted = self._running = True
                if telemetry is not None:
                    telemetry.started()
                try:
                    await self._answered()
                finally:
                    self._opened.admission.leave()
            if not self.over.done():
                self.over.set_result(None)
        except asyncio.CancelledError as cancelled:
            error = cancelled
            if not self.over.done():
                if self.task.cancelling():  # not by us: the loop ends
                    closed = ClosedError(f"{self._opened.route.endpoint}: the server was closed")
                    self.over.set_exception(closed)
                else:
                    self.over.set_exception(self._refusal(cancelled))
            raise
        except Exception as raised:
            error = raised
            if isinstance(raised, ClientLeft):
                self._context.kill()
            if not self.over.done():
                self.over.set_exception(raised)
            elif self._running:
                logger.warning(
                    "%s failed after it was cancelled", self._opened.route.endpoint, exc_info=raised
                )
        except BaseException as raised:
            if isinstance(raised, GeneratorExit) and not runs_in(self.task):
                raise  # the loop is gone
            error = raised
            if not self.over.done():
                self.over.set_exception(self._refusal(raised))
            if isinstance(raised, (SystemExit, KeyboardInterrupt)):
                raise  # it is meant for the process
        finally:
            self._ended(error)

    def _refusal(self, raised: BaseException) -> Refusal:
        """What a method raised that is no Exception, such as a panic of native code, as whoever waits for
        ``over`` may raise it.
        """
        problem = problem_of(raised, self._opened.route.endpoint)
        refusal = Refusal(problem.status, problem.detail, members=problem.members)
        refusal.__cause__ = raised
        return refusal

    async def _answered(self) -> None:
        route, answer = self._opened.route, self._answer
        try:
            produced = route.call(self._payload, self._context)
        except BadPayloadError as error:
            raise Refusal(400, str(error), members={"error": "BadPayloadError"}) from error
        self._payload = None
        if not route.is_streaming:
            item = await produced
            self._note_first()
            if not self.over.done():
                await answer.item(encode_json(item))
                await answer.end()
            return
        is_first = True
        async with aclosing(produced):
            async for item in produced:
                if is_first:
                    is_first = False
                    self._note_first()
                if self.over.done():  # it did not heed its cancellation
                    return
                await answer.item(encode_json(item))
        if not self.over.done():
            await answer.end()

    def _note_first(self) -> None:
        if (telemetry := self._opened.telemetry) is not None:
            telemetry.first_item(time.monotonic() - self._began_at)

    def _expire(self, timeout_s: float) -> None:
        where = "in the method" if self._running else "in the queue"
        self.cut(
            DeadlineError(
                f"the deadline of {round(timeout_s, 3):g} s passed {where} of {self._opened.route.endpoint}"
            )
        )

    def _stop(self, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()

    def _report_running(self) -> None:
        logger.warning(
            "%s still runs %g s after its request %s was cancelled; nobody waits for it",
            self._opened.route.endpoint, CANCEL_S, self._context.id(),
        )  # fmt: skip

    def _ended(self, error: BaseException | None) -> None:
        self._stop(self._deadline)
        self._stop(self._report)
        if (telemetry := self._opened.telemetry) is None:
            return
        if self.over.done() and not self.over.cancelled():
            error = self.over.exception() or error
        if isinstance(error, Refusal):
            error = error.__cause__
        elif isinstance(error, ClientLeft):  # counted as over the request plane
            error = CallCancelledError()
        kind = None if error is None else type(error).__name__
        if self._admitted:
            telemetry.ended(time.monotonic() - self._began_at, kind)
        elif kind is not None:
            telemetry.refused(kind)
