"""The server: a port, its connections, and the way out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import anyio
from aiohttp import web

from dynamo.adapters.http.application import HttpRoutes
from dynamo.adapters.http.listening import host_of, listen, url_of
from dynamo.sdk.serving import ServedServices

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

PORT: Final = 8000
HEADER_S = 10.0  # for the first request of a connection; an idle one is closed after KEEP_ALIVE_S
KEEP_ALIVE_S = 75.0  # aiohttp's and nginx's
CLOSE_S = 0.5  # aiohttp waits as long again for what it cancels


def http_application(
    served: ServedServices, *, max_body_bytes: int | None = None, cors_origins: Sequence[str] = ()
) -> web.Application:
    """The routes of ``served`` as an application of their own, for ``add_subapp("/api", ...)``.

    Cleaned up, or told so by the end of the runtime, it drains. Run the outer application with
    ``handler_cancellation=True``: else it takes up to a second until a client's leaving is noticed. Raises
    ConfigError: two services have one path.
    """
    routes = HttpRoutes(served, max_body_bytes=max_body_bytes, cors_origins=cors_origins)
    return routes.application()


@asynccontextmanager
async def serve_http(
    served: ServedServices,
    *,
    port: int = PORT,
    host: str | None = None,
    reuse_port: bool = False,
    max_body_bytes: int | None = None,
    cors_origins: Sequence[str] = (),
) -> AsyncGenerator[str]:
    """Serve the ``@api`` routes over HTTP for the block, which gets the URL.

    ``port`` 0 is any that is free. Without ``host`` it is loopback where discovery stays on this host, else
    all interfaces. A body is at most ``max_body_bytes`` (``DYN_TCP_MAX_MESSAGE_SIZE``). ``cors_origins`` are
    those whose pages may read the answers, such as ``["https://chat.example"]``; ``["*"]`` is all.

    The end of the block or of the runtime drains: after ``DYN_DRAIN_GRACE_S`` new requests are refused, what
    runs has ``DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS``, and is then cancelled. Raises ConfigError: the
    port is in use, two services have one path.
    """
    routes = HttpRoutes(served, max_body_bytes=max_body_bytes, cors_origins=cors_origins)
    host = host_of(served._runtime.settings) if host is None else host
    listening = listen(host, port, reuse_port=reuse_port)
    application = routes.application()
    silence = _Silence(application)
    runner = web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=CLOSE_S,
    )
    try:
        await runner.setup()
        await web.SockSite(runner, listening, backlog=1024).start()
        watching = asyncio.create_task(silence.close(runner))
        try:
            yield url_of(listening)
        finally:
            watching.cancel()
            await routes.drain()  # noqa: ASYNC102 - bounded, and seen through cancellation
    finally:
        with anyio.move_on_after(4 * CLOSE_S, shield=True):
            await runner.cleanup()
        listening.close()


class _Silence:
    """Connections that bring no request, which aiohttp would keep for ever."""

    def __init__(self, application: web.Application) -> None:
        self._heard: set[Any] = set()
        application.middlewares.append(self._hear)

    @web.middleware
    async def _hear(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._heard.add(request.protocol)
        return await handler(request)

    async def close(self, runner: web.AppRunner) -> None:
        """Close those that were there, and silent, for two looks."""
        ages: dict[Any, int] = {}
        while (server := runner.server) is not None:
            connections = server.connections
            self._heard.intersection_update(connections)
            ages = {one: ages.get(one, -1) + 1 for one in connections if one not in self._heard}
            for connection, age in ages.items():
                if age >= 2:
                    connection.force_close()
            await asyncio.sleep(HEADER_S / 2)
