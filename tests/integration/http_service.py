"""A service with a route for everything that an HTTP server has to answer."""

from __future__ import annotations

import asyncio
import datetime
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx

from dynamo.adapters.http import serve_http
from dynamo.core import errors
from dynamo.runtime import (
    BadPayloadError,
    Context,
    DistributedRuntime,
    ServedServices,
    api,
    current_context,
    endpoint,
    serve_services,
    service,
)

BOUND_S = 10.0


@attrs.define
class Message:
    role: str
    text: str = ""


class PanicError(BaseException):
    """As what Rust panics with, under Python."""


NO_EXCEPTIONS: tuple[type[BaseException], ...] = (asyncio.CancelledError, GeneratorExit, PanicError)


@service(namespace="demo")
class Shop:
    def __init__(self) -> None:
        self.entered, self.cancelled = asyncio.Event(), asyncio.Event()
        self.opened = asyncio.Event()
        self.contexts: list[Context] = []
        self.produced = 0

    def _note(self) -> None:
        context = current_context()
        assert context is not None
        self.contexts.append(context)

    @api
    async def words(self, text: str, times: int = 1) -> AsyncIterator[str]:
        """Say the words of a text.

        As often as asked."""
        self._note()
        for _ in range(times):
            for word in text.split():
                yield word

    @api
    async def add(self, a: int, b: int = 1) -> int:
        self._note()
        return a + b

    @api(path="/v1/messages")
    async def upper(self, messages: list[Message]) -> list[Message]:
        return [Message(one.role, one.text.upper()) for one in messages]

    @api
    async def nothing(self) -> None:
        pass

    @api
    async def odd(self, data: bytes, at: datetime.datetime) -> dict[str, Any]:
        return {"data": data[::-1], "at": at, "kinds": (1, None, {2}, float("nan"))}

    @api
    async def unspeakable(self) -> Any:
        return object()

    @api
    async def breaks(self, after: int, kind: str = "ValueError") -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise getattr(errors, kind, ValueError)("a secret")

    @api
    async def panics(self, kind: str) -> None:
        raise {each.__name__: each for each in NO_EXCEPTIONS}[kind]("a secret")

    @api
    async def fails_behind(self, kind: str) -> None:
        raise getattr(errors, kind)("over there", remote=True)

    @api
    async def refuses(self) -> None:
        raise BadPayloadError("text: at most 10 characters")

    @api
    @endpoint(max_inflight=1, queue=1)
    async def one(self, number: int) -> int:
        self.entered.set()
        await self.opened.wait()
        return number

    @api
    async def hangs(self) -> None:
        self._note()
        await self._hang()

    @api
    async def trickles(self) -> AsyncIterator[str]:
        self._note()
        yield "first"
        await self._hang()

    @api
    async def quiet_start(self) -> AsyncIterator[str]:
        self._note()
        await self._hang()
        yield "never"

    @api
    async def paused(self) -> AsyncIterator[str]:
        yield "before"
        self.entered.set()
        await self.opened.wait()
        yield "after"

    @api
    async def floods(self, size: int = 16384) -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * size
                self.produced += 1
                await asyncio.sleep(0)
        finally:
            self.cancelled.set()

    async def _hang(self) -> None:
        self.entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def make_runtime(**options: Any) -> DistributedRuntime:
    url = f"mem://{uuid.uuid4().hex}"
    return DistributedRuntime(**{"discovery": url, "request_plane": url, "drain_grace_s": 0.0, **options})


@attrs.define
class Served:
    url: str
    shop: Shop
    services: ServedServices
    runtime: DistributedRuntime
    http: httpx.AsyncClient

    async def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.http.post(path, json=json, **options)


@asynccontextmanager
async def serving(*, runtime: DistributedRuntime | None = None, **options: Any) -> AsyncIterator[Served]:
    """The shop on a port of its own, and a client."""
    async with (
        runtime or make_runtime() as runtime,
        serve_services(runtime, Shop) as services,
        serve_http(services, port=0, **options) as url,
        httpx.AsyncClient(base_url=url, timeout=BOUND_S, trust_env=False) as http,
    ):
        yield Served(url, services[Shop], services, runtime, http)


async def within(waiting: Any) -> Any:
    return await asyncio.wait_for(waiting, BOUND_S)
