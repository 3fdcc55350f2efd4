"""What the scripted API server can be told to answer."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from aiohttp import web

RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Object: TypeAlias = dict[str, Any]
Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


def line_of(said: Object | bytes) -> bytes:
    """A line of a watch; bytes are sent as they are."""
    return said if isinstance(said, bytes) else json.dumps(said).encode() + b"\n"


class Stream:
    """The answer to one watch, line by line; None ends it."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.reset = False

    async def send(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        while (line := await self.lines.get()) is not None:
            await answer.write(line)
        if self.reset:
            reset(request)
        return answer


def reset(request: web.Request) -> None:
    """Send RST to who asks."""
    if request.transport is not None:
        accepted: socket.socket = request.transport.get_extra_info("socket")
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        request.transport.close()


def lines(*said: Object | bytes) -> Answer:
    """A watch that says this and ends."""

    async def answer(request: web.Request) -> web.StreamResponse:
        stream = Stream()
        for one in (*map(line_of, said), None):
            stream.lines.put_nowait(one)
        return await stream.send(request)

    return answer


def status(code: int, reason: str, *, retry_after: str | None = None, **details: Any) -> Answer:
    """An error, as the API server tells one."""

    async def answer(request: web.Request) -> web.Response:
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        said = error_event(code, reason, **details)["object"]
        return web.json_response(said, status=code, headers=headers)

    return answer


def text(body: str, content_type: str = "application/json") -> Answer:
    """This, as a success."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=body, content_type=content_type)

    return answer


async def nothing(request: web.Request) -> web.StreamResponse:
    """No answer."""
    never: asyncio.Future[web.StreamResponse] = asyncio.get_running_loop().create_future()
    return await never


def error_event(code: int, reason: str, **details: Any) -> Object:
    """How a watch that has begun is told of an error."""
    said = {"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code}
    return {"type": "ERROR", "object": {**said, "details": details}}


EXPIRED = error_event(410, "Expired")
