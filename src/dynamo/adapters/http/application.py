"""The routes of services as an aiohttp application, to run alone or below a path of another one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from dynamo.adapters.http.admission import Admission
from dynamo.adapters.http.answers import Answer, ClientLeft, open_answer, problem_response
from dynamo.adapters.http.calls import CANCEL_S, OpenRoute, RouteCall
from dynamo.adapters.http.describing import index_of, openapi_of
from dynamo.adapters.http.media import chosen
from dynamo.adapters.http.problems import RETRY_AFTER_S, Problem, Refusal, problem_of
from dynamo.adapters.http.reading import REQUEST_ID, TIMEOUT, context_of, payload_of, request_id_of
from dynamo.core.errors import ConfigError, DrainingError, StreamBrokenError
from dynamo.core.lifetime import see_through
from dynamo.core.model import EndpointId
from dynamo.core.ports.telemetry import Side
from dynamo.sdk.routes import Route
from dynamo.sdk.serving import ServedServices

logger = logging.getLogger("dynamo.http")

TICK_S = 1.0  # how soon a client that left is noticed where the host application does not cancel handlers
STALL_S = 60.0  # for a reader that takes nothing
_READ = ("GET", "HEAD")


def _shut_down() -> Refusal:
    why = "the server was shut down before the answer ended"
    refusal = Refusal(503, why, members={"error": "StreamBrokenError"})
    refusal.__cause__ = StreamBrokenError(why)
    return refusal


class HttpRoutes:
    """Answers requests; ``drain`` is the way out, which the end of the runtime begins by itself."""

    def __init__(
        self, served: ServedServices, *, max_body_bytes: int | None = None, cors_origins: Sequence[str] = ()
    ) -> None:
        """Raises ConfigError: two services have one path."""
        self._runtime = runtime = served._runtime
        self._settings = runtime.settings
        self._limit = max_body_bytes or runtime.settings.max_message_bytes
        if isinstance(cors_origins, str):
            raise ConfigError(f"cors_origins={cors_origins!r}: expected a list of origins")
        self._origins = frozenset(cors_origins)
        self.routes = served.routes
        self._by_path: dict[str, OpenRoute] = {}
        telemetry = runtime.observing.telemetry
        for route in served.routes:
            if (other := self._by_path.get(route.path)) is not None:
                raise ConfigError(
                    f"{route.endpoint}: {route.path} is the path of {other.route.endpoint} already"
                )
            endpoint_id = EndpointId.parse(route.endpoint)
            self._by_path[route.path] = OpenRoute(
                route=route,
                runtime=runtime,
                admission=Admission(route.endpoint, route.max_inflight, route.queue),
                telemetry=None if telemetry is None else telemetry.endpoint(endpoint_id, Side.SERVER),
            )
        self._calls: set[RouteCall] = set()
        self._described: dict[tuple[str, str], bytes] = {}
        self._draining: asyncio.Task[None] | None = None
        self._refusing = False

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_route("*", "/{tail:.*}", self._handle)
        application.cleanup_ctx.append(self._life)
        return application

    async def _life(self, application: web.Application) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._follow_the_runtime())
        try:
            yield
        finally:
            watching.cancel()
            await self.drain()

    async def _follow_the_runtime(self) -> None:
        await self._runtime.until_shutdown()
        self._begin_to_drain()

    # The way out.

    async def drain(self) -> None:
        """Grace, refuse what is new, let the rest finish, cancel it; each step is bounded."""
        await see_through(self._begin_to_drain())

    def _begin_to_drain(self) -> asyncio.Task[None]:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return self._draining

    async def _drain(self) -> None:
        await asyncio.sleep(self._settings.drain_grace_s)
        self._refusing = True
        for opened in self._by_path.values():
            opened.admission.turn_away(DrainingError(f"{opened.route.endpoint} is being withdrawn here"))
        await self._all_ended(self._settings.graceful_shutdown_timeout_s)
        for call in list(self._calls):
            call.cut(_shut_down())
        await self._all_ended(CANCEL_S)

    async def _all_ended(self, bound_s: float) -> None:
        if self._calls:
            await asyncio.wait([call.task for call in self._calls], timeout=bound_s)

    # Requests.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        request_id = request_id_of(request)
        headers = {REQUEST_ID: request_id, **self._cors(request)}
        try:
            response = await self._dispatched(request, request_id, headers)
        except Refusal as refusal:
            response = problem_response(refusal.problem, request_id, headers)
            if not request.content.at_eof():
                response.force_close()
        if self._draining is not None and not response.prepared:
            response.force_close()
        return response

    async def _dispatched(
        self, request: web.Request, request_id: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        path = "/" + request.match_info["tail"]
        opened = self._by_path.get(path)
        page = {"/": index_of, "/openapi.json": openapi_of}.get(path)
        allowed = (*(_READ if page else ()), *(("POST",) if opened else ()))
        if not allowed:
            raise Refusal(
                404,
                f"no route {request.path[:200]}; GET / tells more",
                members={"routes": [f"POST {path}" for path in self._by_path]},
            )
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={**headers, "Allow": ", ".join((*allowed, "OPTIONS"))})
        if page is not None and request.method in _READ:
            return self._page(request, page, headers)
        if opened is None or request.method != "POST":
            raise Refusal(
                405,
                f"{request.method} {request.path[:200]}: this takes {' or '.join(allowed)}",
                headers={"Allow": ", ".join((*allowed, "OPTIONS"))},
            )
        if self._refusing:
            raise Refusal(
                503,
                f"{opened.route.endpoint} is being withdrawn here and takes no new requests",
                headers={"Retry-After": str(RETRY_AFTER_S)},
                members={"error": "DrainingError"},
            )
        return await self._answered(request, opened, request_id, headers)

    def _page(
        self,
        request: web.Request,
        describe: Callable[[Sequence[Route], str], dict[str, Any]],
        headers: dict[str, str],
    ) -> web.Response:
        prefix = request.path.removesuffix(request.match_info["tail"]).rstrip("/")
        key = (describe.__name__, prefix)
        if (body := self._described.get(key)) is None:
            document = msgspec.json.encode(describe(self.routes, prefix))
            body = self._described[key] = msgspec.json.format(document) + b"\n"
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _answered(
        self, request: web.Request, opened: OpenRoute, request_id: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        route = opened.route
        form = chosen(",".join(request.headers.getall("Accept", ())), is_streaming=route.is_streaming)
        context = context_of(request, request_id)
        payload = await payload_of(request, self._limit)
        headers = {**headers, **context.trace_headers()}
        if self._draining is not None:
            headers["Connection"] = "close"
        answer = open_answer(
            request, form, headers, is_streaming=route.is_streaming, limit=self._settings.max_message_bytes
        )
        call = RouteCall(opened, payload, context, answer)
        self._calls.add(call)
        call.task.add_done_callback(lambda _: self._calls.discard(call))
        try:
            await self._follow(call, answer)
        except asyncio.CancelledError:
            call.cut(ClientLeft())
            raise
        except ClientLeft:
            return answer.response
        except Exception as error:
            problem = problem_of(error, route.endpoint)
            self._log(problem, error, request_id)
            return await answer.fail(problem, request_id)
        return answer.response

    async def _follow(self, call: RouteCall, answer: Answer) -> None:
        """Until the call is over; raises what it failed with."""
        loop = asyncio.get_running_loop()
        while not call.over.done():
            await asyncio.wait((call.over,), timeout=TICK_S)
            if call.over.done():
                break
            if answer.request.transport is None:
                call.cut(ClientLeft())
            elif (since := answer.writing_since) is not None and loop.time() - since > STALL_S:
                call.cut(ClientLeft())
                answer.request.transport.abort()
            else:
                await answer.quiet()
        await call.over

    def _log(self, problem: Problem, error: Exception, request_id: str) -> None:
        if problem.status == 500:
            logger.error("%s (request %s)", problem.detail, request_id, exc_info=error)
        elif problem.status == 502:
            logger.warning("request %s: %s: %s", request_id, problem.detail, error)

    def _cors(self, request: web.Request) -> dict[str, str]:
        """For the origins that were allowed, and nobody else (WHATWG Fetch, 3.2)."""
        if not self._origins:
            return {}
        origin = request.headers.get("Origin")
        if origin is None or not self._origins & {origin, "*"}:
            return {"Vary": "Origin"}
        headers = {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": f"{REQUEST_ID}, Retry-After, traceparent",
            "Vary": "Origin",
        }
        if request.method == "OPTIONS":
            headers |= {
                "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Allow-Headers": (
                    f"Content-Type, {REQUEST_ID}, {TIMEOUT}, traceparent, tracestate"
                ),
                "Access-Control-Max-Age": "600",
            }
        return headers
