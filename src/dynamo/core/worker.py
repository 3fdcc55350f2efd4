"""Dynamo's decorators: a main function that is given a runtime, a handler that is given typed requests."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from dynamo.core import signals
from dynamo.core.distributed import DistributedRuntime
from dynamo.core.errors import ConfigError
from dynamo.core.lifetime import ended, see_through
from dynamo.core.typed import build

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

FAREWELL_S = 5.0  # for the function's own cleanup, once a signal has drained its runtime


def dynamo_worker(
    enable_nats: bool | None = None, **options: Any
) -> Callable[
    [Callable[Concatenate[DistributedRuntime, P], Awaitable[T]]], Callable[P, Coroutine[Any, Any, T | None]]
]:
    """Give the decorated coroutine function a runtime from the environment, before its own arguments.

    The runtime handles SIGINT and SIGTERM while the function runs, and is shut down when it returns;
    ``options`` are those of ``DistributedRuntime``. After a signal the runtime drains; a function that
    serves nothing is cancelled at once, any other if it has not returned 5 s after the drain, and the
    result is None.
    """

    if callable(enable_nats):
        raise ConfigError(f"write @dynamo_worker() above {_title(enable_nats)}, with its parentheses")

    def decorator(
        function: Callable[Concatenate[DistributedRuntime, P], Awaitable[T]],
    ) -> Callable[P, Coroutine[Any, Any, T | None]]:
        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T | None:
            loop, signalled = asyncio.get_running_loop(), asyncio.Event()
            runtime = DistributedRuntime(loop, enable_nats=enable_nats, **options)
            signals.handle(signalled, loop, signalled.set)
            try:
                async with runtime:
                    work = function(runtime, *args, **kwargs)
                    if not inspect.isawaitable(work):
                        raise ConfigError(f"@dynamo_worker takes a coroutine: 'async def' {_title(function)}")
                    return await _until(signalled, runtime, work)
            finally:
                signals.release(signalled)

        return wrapper

    return decorator


def _title(function: object) -> str:
    return getattr(function, "__qualname__", None) or type(function).__qualname__


async def _until(signalled: asyncio.Event, runtime: DistributedRuntime, work: Awaitable[T]) -> T | None:
    """The work's result, or None if a signal came and it had to be cancelled."""
    working, signal = asyncio.ensure_future(work), asyncio.ensure_future(signalled.wait())
    try:
        await asyncio.wait((working, signal), return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and runtime.serving:
            await runtime.shutdown()
            await ended(working, FAREWELL_S)
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))
        return None if working.cancelled() and signalled.is_set() else working.result()
    finally:
        signal.cancel()
        if not working.done():  # the caller was cancelled
            working.cancel()
            await see_through(asyncio.gather(working, return_exceptions=True))


def dynamo_endpoint(request_model: Any, response_model: Any) -> Callable[[F], F]:
    """Give the decorated handler a ``request_model`` instead of plain values.

    A pydantic model, attrs class or dataclass is built from a map or a JSON text, a builtin is checked.
    What does not fit is a BadPayloadError (a ValueError) to the caller, beginning with "Invalid request".
    ``response_model`` tells readers what is yielded; items are sent as they are.
    """

    def decorator(handler: F) -> F:
        @functools.wraps(handler)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if len(args) in (1, 2):  # (request), or (self, request)
                *before, request = args
                args = (*before, build(request_model, request))
            return handler(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorator
