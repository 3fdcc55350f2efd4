"""One call in its handler: the worker's hot path.

One task per call and none per item. An item is encoded when it is yielded, so that the handler may change
it afterwards, and handed to the plane without waiting as long as the caller's window has room."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import AsyncIterator
from types import AsyncGeneratorType, CoroutineType
from typing import TYPE_CHECKING, Any

from dynamo.core import errors
from dynamo.core.codec import decode, encode
from dynamo.core.context import Context, context_of_call
from dynamo.core.errors import (
    BadPayloadError,
    CallCancelledError,
    DeadlineError,
    DynamoError,
    RemoteError,
    Retry,
    StreamBrokenError,
)
from dynamo.core.handlers import RequestStream, ResponseSender
from dynamo.core.lifetime import runs_in
from dynamo.core.ports.request_plane import IncomingCall, Payload

if TYPE_CHECKING:
    from dynamo.core.serving import Served

logger = logging.getLogger("dynamo.runtime")

CANCEL_S = 5.0  # a cancelled handler that runs on for longer is reported, and not waited for


class Answer:
    """A call from its admission to its end. Queued while ``_task`` is None."""

    __slots__ = (
        "_began_at", "_call", "_context", "_deadline", "_error", "_ran", "_sent", "_served", "_task",
        "_timer", "over",
    )  # fmt: skip

    def __init__(self, served: Served, call: IncomingCall) -> None:
        self._served, self._call = served, call
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._context: Context | None = None
        self._deadline: float | None = None
        self._error: str | None = None
        self._ran = self._sent = False
        self.over = False  # nobody waits for the answer any more
        self._began_at = time.monotonic()
        if served.telemetry is not None:
            served.telemetry.started()
        call.on_cancel = self._on_cancel
        if (timeout_s := call.request.timeout_s) is not None:
            self._deadline = self._began_at + timeout_s
            self._timer = served.loop.call_later(timeout_s, self._expire, context=served.variables)

    @property
    def priority(self) -> int:
        return self._call.request.priority

    def begin(self) -> None:
        """Run the handler, in a task of its own. Its context variables are those of ``serve``, not those of
        whoever brought the call or made room for it.
        """
        self._task = self._served.loop.create_task(self._run(), context=self._served.variables.copy())

    async def _run(self) -> None:
        self._ran = True
        call, handler = self._call, self._served.handler
        items: AsyncIterator[Any] | None = None
        try:
            payload = call.request.payload
            request = await self._read() if payload is None or handler.duplex else decode(payload)
            if handler.takes_sender:
                await self._push(request)
                return
            if handler.takes_context:
                produced = handler.function(request, context=self._make_context())
            else:
                produced = handler.function(request)
            if type(produced) is CoroutineType:
                produced = await produced
            if type(produced) is AsyncGeneratorType or hasattr(produced, "__aiter__"):
                items = produced
                send = call.send
                async for item in produced:
                    if not self._sent:
                        self._note_first()
                    if not send(encode(item)):
                        await call.writable()
                    if self.over:
                        break
                else:
                    if not call.request.end:
                        self._check_input()
                    call.end()
            else:
                if hasattr(produced, "__await__"):
                    produced = await produced
                item = encode(produced)
                if not call.request.end:
                    self._check_input()
                self._note_first()
                call.send(item, end=True)
        except BaseException as error:  # noqa: ASYNC103 - a cancellation that came from us ends here
            if isinstance(error, GeneratorExit) and not runs_in(self._task):
                items = None  # the loop is gone, and nothing can be awaited or told
                raise
            if self._failed(error):
                raise
        finally:
            try:
                if items is not None and getattr(items, "ag_frame", items) is not None:
                    await self._close(items)
            finally:
                self._end()

    async def _read(self) -> Any:
        """The request of a duplex handler, or the first item of a call that was opened without one."""
        call = self._call
        if self._served.handler.duplex:
            return RequestStream[Any](call)
        payload: Payload | None
        while (payload := call.receive_nowait()) is None:
            if call.ended:
                raise BadPayloadError(f"{call.request.endpoint} takes a request, and the call brought none")
            await call.wait()
        return decode(payload)

    def _check_input(self) -> None:
        """Tell what nobody read, or the caller of a handler that takes one request would believe it heard."""
        call = self._call
        if not self._served.handler.duplex and not call.request.end and call.receive_nowait() is not None:
            raise BadPayloadError(
                f"{call.request.endpoint} takes one request, and the call sent more; a handler whose first "
                "parameter is annotated RequestStream reads them all"
            )

    async def _push(self, request: Any) -> None:
        handler = self._served.handler
        sender = ResponseSender(self._call, self._served.loop, self._note_first)
        given: dict[str, Any] = {"response_sender": sender}
        if handler.takes_context:
            given["context"] = self._make_context()
        produced = handler.function(request, **given)
        if hasattr(produced, "__await__"):
            produced = await produced
        if hasattr(produced, "__aiter__"):
            async for item in produced:
                raise TypeError(
                    f"a handler with a response_sender must not yield, and {handler.name} yielded {item!r}"
                )
        self._check_input()
        sender.close()

    def _make_context(self) -> Context:
        request = self._call.request
        context = self._context = context_of_call(request.request_id, request.metadata, self._deadline, self)
        if self._call.stopped:
            context.stop_generating()
        return context

    def _note_first(self) -> None:
        if not self._sent:
            self._sent = True
            if (telemetry := self._served.telemetry) is not None:
                telemetry.first_item(time.monotonic() - self._began_at)

    # Ways to end early. None of them waits.

    def cut(self, error: DynamoError | None) -> None:
        """Cancel the handler, or drop the call from the queue; the caller is told ``error``, if it still
        listens.
        """
        if self.over:
            return
        self.over = True
        if error is not None:
            self._error = type(error).__name__
            self._call.fail(error)
        else:
            self._error = CallCancelledError.__name__
        if self._context is not None:
            self._context.kill()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
        if self._ran:
            self._timer = self._served.loop.call_later(CANCEL_S, self._report)
        else:  # cancelled before its first step, a task never runs its own cleanup
            self._end()

    def turn_away(self, error: DynamoError) -> None:
        """Refuse a call that still waits."""
        self.over = True
        self._error = type(error).__name__
        self._call.refuse(error)
        self._end()

    def _on_cancel(self, killed: bool) -> None:
        if killed:
            self.cut(None)
        elif self._context is not None:
            self._context.stop_generating()

    def context_cancelled(self, killed: bool) -> None:
        """The handler has stopped or killed its own context, or we have."""
        if killed:
            self.cut(CallCancelledError("the handler killed its own context", remote=True))

    def _expire(self) -> None:
        self._timer = None
        queued = "in the queue" if self._task is None else "in the handler"
        self.cut(
            DeadlineError(
                f"the deadline of {self._call.request.timeout_s:g} s passed {queued} of {self._served}"
            )
        )

    def _failed(self, error: BaseException) -> bool:
        """Tell the caller; True if the task must raise it too, being meant for more than this call."""
        for_the_process = isinstance(error, (SystemExit, KeyboardInterrupt))
        unexpected = not for_the_process and not isinstance(error, (DynamoError, asyncio.CancelledError))
        if self.over:
            if unexpected:
                logger.warning(
                    "the handler of %s failed after it was cancelled", self._served, exc_info=error
                )
            return for_the_process
        self._error = type(error).__name__
        if isinstance(error, asyncio.CancelledError) and _cancelling():  # not by us: the loop ends
            self._call.fail(StreamBrokenError(f"the worker's task for {self._served} was cancelled"))
            return True
        self._call.fail(as_remote(error))
        if unexpected:
            logger.error("the handler of %s failed", self._served, exc_info=error)
        return for_the_process

    async def _close(self, items: AsyncIterator[Any]) -> None:
        """Let a suspended generator run its cleanup now, not when it is collected."""
        close = getattr(items, "aclose", None)
        if close is None:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                await close()
        except Exception as error:
            logger.warning("the handler of %s failed while it was closed: %r", self._served, error)

    def _report(self) -> None:
        self._timer = None
        logger.warning(
            "the handler of %s still runs %g s after its call %s was cancelled; nobody waits for it",
            self._served, CANCEL_S, self._call.request.request_id,
        )  # fmt: skip

    def _end(self) -> None:
        if (timer := self._timer) is not None:
            timer.cancel()
            self._timer = None
        self._call.on_cancel = None
        self.over = True
        self._context = None  # it refers back to us
        served = self._served
        if served.telemetry is not None:
            served.telemetry.ended(time.monotonic() - self._began_at, self._error)
        if self._task is not None:
            served.finished(self)
        else:
            served.given_up()


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def as_remote(error: BaseException) -> DynamoError:
    """What a handler raised as its caller gets it: one of our classes as itself, anything else as
    RemoteError.
    """
    if isinstance(error, DynamoError) and type(error).__module__ == errors.__name__:
        twin = copy.copy(error)
        twin.remote, twin.retry = True, Retry.NEVER
        return twin
    name, text = type(error).__name__, _text(error)
    status, detail = getattr(error, "status", None), getattr(error, "message", None)
    return RemoteError(
        f"{name}: {text}" if text else name,
        type_name=name,
        status=int(status) if isinstance(status, int) else None,
        detail=detail if isinstance(detail, str) else None,
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a broken __str__ must not hide the failure that it belongs to
        return "(its text cannot be shown)"
