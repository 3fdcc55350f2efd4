"""What may serve an endpoint: how a callable is read, and what duplex and pushing handlers are given."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeAlias, TypeVar, cast, get_origin

from attrs import frozen

from dynamo.core.codec import decode, encode
from dynamo.core.errors import ConfigError, RemoteError
from dynamo.core.lifetime import running_loop
from dynamo.core.ports.request_plane import IncomingCall, Payload

HandlerFunction: TypeAlias = Callable[..., Any]
"""``handler(request)`` or ``handler(request, context)``: an async generator function, a coroutine function,
or any callable that returns an async iterator, an awaitable or the one item itself."""

In = TypeVar("In")

_STREAM_NAMES = ("RequestStream", "PyAsyncRequestStream")


@frozen
class Handler:
    """A callable and what it wants to be given."""

    function: HandlerFunction
    name: str
    takes_context: bool
    takes_sender: bool
    duplex: bool


def read_handler(function: HandlerFunction, *, duplex: bool | None = None) -> Handler:
    """Look at the callable once, so that no call has to.

    ``context`` and ``response_sender`` are passed, by keyword, only if a parameter after the first has
    exactly that name. With ``duplex`` None, a handler whose first parameter is annotated ``RequestStream``
    is duplex. Raises ConfigError for what could never be called with a request."""
    if not callable(function):
        raise ConfigError(f"a handler is a callable that takes the request, not {function!r}")
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    if inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(type(function).__call__):
        raise ConfigError(
            f"the handler {name} is a plain generator, and would block the loop: write 'async def'"
        )
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # builtins without a signature
        return Handler(function, name, takes_context=False, takes_sender=False, duplex=bool(duplex))
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first, rest = (parameters[0], parameters[1:]) if parameters else (None, [])
    if first is None or first.kind not in (*positional, inspect.Parameter.VAR_POSITIONAL):
        raise ConfigError(f"the handler {name} takes no request: its first parameter must be positional")
    by_name = {
        parameter.name
        for parameter in rest
        if parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    for parameter in rest:
        optional = parameter.default is not inspect.Parameter.empty or parameter.kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        )
        if not optional and (
            parameter.name not in ("context", "response_sender") or parameter.name not in by_name
        ):
            raise ConfigError(
                f"the handler {name} requires {parameter.name!r}, which nobody passes: it takes (request), "
                "and if it wants them parameters named exactly 'context' and 'response_sender'"
            )
    return Handler(
        function,
        name,
        takes_context="context" in by_name,
        takes_sender="response_sender" in by_name,
        duplex=_wants_stream(first.annotation) if duplex is None else duplex,
    )


def _wants_stream(annotation: Any) -> bool:
    if isinstance(annotation, str):  # from __future__ import annotations
        return annotation.strip("'\"").partition("[")[0].rpartition(".")[2] in _STREAM_NAMES
    return (get_origin(annotation) or annotation) is RequestStream


class RequestStream(AsyncIterator[In], Generic[In]):
    """The caller's items, as a duplex handler reads them.

    Its end means only that the caller sends nothing more; the answer goes on. A cancelled or timed-out read
    loses no item."""

    __slots__ = ("_call", "_first", "_reading")

    def __init__(self, call: IncomingCall) -> None:
        self._call, self._reading = call, False
        self._first: Payload | None = call.request.payload

    def __aiter__(self) -> RequestStream[In]:
        return self

    async def __anext__(self) -> In:
        payload, self._first = self._first, None
        call = self._call
        while payload is None and (payload := call.receive_nowait()) is None:
            if call.ended:
                if (error := call.error) is not None:
                    raise error
                raise StopAsyncIteration
            if self._reading:
                raise RuntimeError(
                    "another task waits for the next item of this stream: let one task read it"
                )
            self._reading = True
            try:
                await call.wait()
            finally:
                self._reading = False
        return cast(In, decode(payload))


class ResponseSender:
    """Lets a handler push its items instead of yielding them, also from other threads.

    The response ends with ``close``, or when the handler returns.
    """

    __slots__ = ("_call", "_closed", "_first", "_loop", "_turn")

    def __init__(
        self, call: IncomingCall, loop: asyncio.AbstractEventLoop, first: Callable[[], None]
    ) -> None:
        self._call, self._loop, self._closed = call, loop, False
        self._first: Callable[[], None] | None = first
        self._turn = asyncio.Lock()

    def send(self, obj: Any) -> None:
        """Send one item. In another thread it blocks while the caller is behind; on the loop it can't: see
        ``writable``.

        Raises EncodeError, TooLargeError, RuntimeError after the close.
        """
        if self._closed:
            raise RuntimeError("the response stream is closed")
        payload = encode(obj)
        if running_loop() is self._loop:
            self._send(payload)
            return
        waiting = asyncio.run_coroutine_threadsafe(self._send_in_turn(payload), self._loop)
        while True:
            try:
                waiting.result(timeout=1.0)
                return
            except TimeoutError:
                if waiting.done():
                    raise
                if self._loop.is_closed():
                    raise RuntimeError("the event loop of this call is closed") from None

    async def writable(self) -> None:
        """Wait until the caller has room for more."""
        async with self._turn:
            await self._call.writable()

    def close(self) -> None:
        """End the response; doing it twice is fine."""
        self._end(self._call.end)

    def close_with_error(self, text: str) -> None:
        """End the response with a RemoteError of this text; after an end it does nothing."""
        self._end(lambda: self._call.fail(RemoteError(text)))

    def _end(self, end: Callable[[], None]) -> None:
        if not self._closed:
            self._closed = True
            if running_loop() is self._loop:
                end()
            else:
                self._loop.call_soon_threadsafe(end)

    def _send(self, payload: Payload) -> bool:
        if self._first is not None:
            first, self._first = self._first, None
            first()
        return self._call.send(payload)

    async def _send_in_turn(self, payload: Payload) -> None:
        async with self._turn:  # room wakes one of those that wait
            if not self._send(payload):
                await self._call.writable()
