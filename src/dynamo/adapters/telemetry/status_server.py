"""The system status server: what a probe, a scraper and an operator ask one process over HTTP.

=======================  ===============================================================================
``GET /live``            200 while the loop turns. The server runs on the loop that it reports on: a loop
                         that is blocked answers nothing, and the probe's own time limit notices it.
``GET /health``          200, or 503 with reasons: starting, draining, not ready. See ``readiness``.
``GET /metrics``         Prometheus' text format
``POST /engine/{name}``  what ``runtime.register_engine_route`` registered: JSON in, JSON out
=======================  ===============================================================================

``DYN_SYSTEM_LIVE_PATH`` and ``DYN_SYSTEM_HEALTH_PATH`` move the first two.

A client that goes away cancels what it asked for. A body is at most 1 MiB. There is no authentication, as in
Dynamo: where ``DYN_SYSTEM_HOST`` is not loopback, the network must decide who reaches it.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from aiohttp import web

from dynamo.adapters.request_plane.tcp.addresses import own_address
from dynamo.adapters.telemetry.exposition import CONTENT_TYPE, Exposition
from dynamo.core.config import Settings
from dynamo.core.distributed import DistributedRuntime
from dynamo.core.errors import ConfigError, ConflictError
from dynamo.core.health import Health, Status

logger = logging.getLogger("dynamo.runtime")

MAX_BODY_BYTES = 2**20
CLOSE_S = 0.5  # for requests under way when the runtime ends; aiohttp waits as long again for what it cancels
LOCAL_BACKENDS = ("mem", "file", "static")
LOOPBACK = "127.0.0.1"

WORDS = {Status.UP: "ready", Status.STALE: "stale", Status.DOWN: "notready"}


class StatusPages:
    """The handlers."""

    def __init__(self, runtime: DistributedRuntime) -> None:
        self._runtime, self._exposition = runtime, Exposition(runtime)

    def application(self) -> web.Application:
        application, settings = web.Application(client_max_size=MAX_BODY_BYTES), self._runtime.settings
        pages = {"/metrics": self._metrics}
        for field, page in (("system_live_path", self._live), ("system_health_path", self._health)):
            path: str = getattr(settings, field)
            if path in pages or path.startswith("/engine/"):
                taken = ", ".join((*pages, "/engine/..."))
                raise ConfigError(f"{settings.source(field)}={path}: the status server has {taken} already")
            pages[path] = page
        for path, page in pages.items():
            application.router.add_get(path, page)
        application.router.add_post("/engine/{route:.+}", self._engine)
        return application

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "live", "uptime": self._uptime()})

    async def _health(self, request: web.Request) -> web.Response:
        readiness = self._runtime.readiness()
        by_name: dict[str, str] = {}
        for endpoint_id, health in readiness.endpoints.items():  # Dynamo's form: by the endpoint's own name
            if by_name.get(endpoint_id.name) != "notready":
                by_name[endpoint_id.name] = "ready" if health.ok else "notready"
        body = {
            "status": "ready" if readiness.ready else "notready",
            "reasons": readiness.reasons,
            "endpoints": by_name,
            "served": {str(endpoint_id): _shown(one) for endpoint_id, one in readiness.endpoints.items()},
            "links": {name: _shown(one) for name, one in readiness.links.items()},
            "uptime": self._uptime(),
        }
        return web.json_response(body, status=200 if readiness.ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._exposition.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _engine(self, request: web.Request) -> web.Response:
        name, routes = request.match_info["route"].strip("/"), self._runtime.observing.routes
        if (callback := routes.get(name)) is None:
            known = ", ".join(sorted(routes)) or "none"
            return _refusal(404, f"no engine route {name!r}; known: {known}")
        given = await request.read()
        try:
            body = json.loads(given) if given.strip() else {}
        except ValueError as error:
            return _refusal(400, f"the body is not JSON: {error}")
        try:
            return web.json_response(await callback(body))
        except Exception as error:
            logger.warning("engine route %r failed", name, exc_info=error)
            return _refusal(500, str(error) or type(error).__name__)

    def _uptime(self) -> dict[str, int]:
        """As Dynamo writes it."""
        seconds = time.monotonic() - self._runtime.observing.began_at
        return {"secs": int(seconds), "nanos": int(seconds % 1 * 1e9)}


def _shown(health: Health) -> dict[str, Any]:
    detail = {"detail": health.detail} if health.detail else {}
    return {"status": WORDS[health.status], **detail}


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"status": "error", "message": message}, status=status)


def bind(settings: Settings) -> socket.socket:
    """Loopback where discovery stays on this host, else all interfaces, unless a host is given.

    Raises ConflictError (the port is in use), ConfigError."""
    host, port = settings.system_host, settings.system_port or 0
    if host is None and settings.discovery_backend.partition("://")[0] in LOCAL_BACKENDS:
        host = LOOPBACK
    variable = settings.source("system_port")
    try:
        if host is None and socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        where = host or ""
        family = socket.getaddrinfo(where or LOOPBACK, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((where, port), family=family)
    except (OSError, UnicodeError) as error:  # that one: it could not be asked for
        where = f"{host or '*'}:{port}"
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"the system status server cannot listen on {where} ({variable}): the port is in use, "
                f"maybe by another runtime of this process; choose another one, or 0 for any that is free"
            ) from error
        raise ConfigError(
            f"the system status server cannot listen on {where} "
            f"({variable}, {settings.source('system_host')}): {error}"
        ) from error


def _url(settings: Settings, listening: socket.socket) -> str:
    """What others dial."""
    host, port = listening.getsockname()[:2]
    if host in ("::", "0.0.0.0"):
        host = settings.tcp_host or settings.pod_ip or own_address()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def open_status_server(runtime: DistributedRuntime) -> AsyncIterator[str]:
    """Serve the status of ``runtime`` for the block, which gets the URL.

    Raises ConflictError (the port is in use), ConfigError.
    """
    settings, application = runtime.settings, StatusPages(runtime).application()
    listening = bind(settings)
    runner = web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=CLOSE_S,
    )
    try:
        await runner.setup()
        await web.SockSite(runner, listening).start()
        yield _url(settings, listening)
    finally:
        with anyio.move_on_after(4 * CLOSE_S, shield=True):
            await runner.cleanup()
        listening.close()
