"""Dynamo's unary adapters: one request, one response, over endpoints that stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from dynamo.core.client import Client
from dynamo.core.context import Context
from dynamo.core.errors import CardinalityError


class UnaryHandler(Protocol):
    """Answers one request with one value."""

    def __call__(self, request: Any, *, context: Context) -> Awaitable[Any]: ...


class Serves(Protocol):
    """An endpoint, as far as it is needed here."""

    def serve_endpoint(self, handler: Callable[..., AsyncIterator[Any]]) -> Awaitable[Any]: ...


class UnaryClient:
    """Returns exactly one response from a round-robin call."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def complete(self, request: Any, *, context: Context | None = None) -> Any:
        """Return the one response, linked to ``context`` where given.

        Raises CardinalityError, a RuntimeError: "returned no response", "returned multiple responses".
        """
        async with self._client.round_robin(request, annotated=False, context=context) as responses:
            try:
                response = await anext(responses)
            except StopAsyncIteration:
                raise CardinalityError("unary endpoint returned no response") from None
            async for _ in responses:
                raise CardinalityError("unary endpoint returned multiple responses")
        return response


async def serve_unary_endpoint(endpoint: Serves, handler: UnaryHandler) -> None:
    """Serve a coroutine that takes ``(request, *, context)`` and returns the one response, until shutdown."""

    async def generate(request: Any, *, context: Context) -> AsyncIterator[Any]:
        yield await handler(request, context=context)

    await endpoint.serve_endpoint(generate)
