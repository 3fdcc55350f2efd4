"""An answer as it is written: a JSON document, JSON lines, or server-sent events.

A stream that fails tells it twice: in its own form (a last line ``{"error": ...}``, an event ``error``), and
by a connection that ends without HTTP's own end of the body. A JSON document is kept until it is whole, so
that its status says how it went.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Mapping
from typing import Protocol

import msgspec
from aiohttp import web

from dynamo.adapters.http.media import Form
from dynamo.adapters.http.problems import MEDIA_TYPE, Problem
from dynamo.core.errors import TooLargeError

KEEP_ALIVE_S = (
    15.0  # the pause after which the HTML standard suggests a comment, to keep proxies from closing
)
LAST_WORDS_S = 1.0  # for telling a slow reader that its stream failed
LINGER_S = 5.0  # for a reader to take what was written before its connection was closed

_ENDED = b'event: end\ndata: {"items":%d}\n\n'


class ClientLeft(Exception):
    """Nobody is there to read the answer."""


class Answer(Protocol):
    """One response. ``item`` and ``end`` wait for a slow reader; ``writing_since`` tells for how long."""

    request: web.Request
    writing_since: float | None

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether the status has been sent."""

    @abstractmethod
    async def item(self, data: bytes) -> None: ...

    @abstractmethod
    async def end(self) -> None: ...

    @abstractmethod
    async def quiet(self) -> None:
        """Nothing happened for a while."""

    @property
    @abstractmethod
    def response(self) -> web.StreamResponse: ...

    @abstractmethod
    async def fail(self, problem: Problem, request_id: str) -> web.StreamResponse:
        """Tell of a failure: by status where that is still possible."""


def open_answer(
    request: web.Request, form: Form, headers: Mapping[str, str], *, is_streaming: bool, limit: int
) -> Answer:
    if form is Form.JSON:
        return Document(request, headers, is_streaming=is_streaming, limit=limit)
    return (Events if form is Form.EVENTS else Lines)(request, form, headers)


def problem_response(problem: Problem, request_id: str, headers: Mapping[str, str]) -> web.Response:
    body = msgspec.json.format(msgspec.json.encode(problem.document(request_id))) + b"\n"
    return web.Response(
        status=problem.status,
        body=body,
        headers={**headers, **problem.headers, "Content-Type": MEDIA_TYPE},
    )


class _Written(Answer):
    """What all have in common: one response, written under the eyes of whoever looks at ``writing_since``."""

    def __init__(self, request: web.Request, form: Form, headers: Mapping[str, str]) -> None:
        self.request = request
        self.writing_since: float | None = None
        self._headers, self._loop = headers, asyncio.get_running_loop()
        self._response = web.StreamResponse(headers={**headers, "Content-Type": form.value})

    @property
    def begun(self) -> bool:
        return self._response.prepared

    @property
    def response(self) -> web.StreamResponse:
        return self._response

    async def quiet(self) -> None:
        pass

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        self.writing_since = self._loop.time()
        try:
            if not self._response.prepared:
                await self._response.prepare(self.request)
            if data:
                await self._response.write(data)
            if last:
                await self._response.write_eof()
        except ConnectionError as error:
            raise ClientLeft from error
        self.writing_since = None

    async def _break_off(self, last_words: bytes) -> web.StreamResponse:
        transport = self.request.transport
        self._response.force_close()
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._response.write(last_words)
        except (ConnectionError, TimeoutError):
            pass
        if transport is not None:
            transport.close()
            self._loop.call_later(LINGER_S, transport.abort)
        return self._response


class Document(_Written):
    """The one item, or an array of them all."""

    def __init__(
        self, request: web.Request, headers: Mapping[str, str], *, is_streaming: bool, limit: int
    ) -> None:
        super().__init__(request, Form.JSON, headers)
        self._is_streaming, self._limit = is_streaming, limit
        self._items: list[bytes] = []
        self._size = 0

    async def item(self, data: bytes) -> None:
        self._size += len(data) + 1
        if self._size > self._limit:
            raise TooLargeError(
                f"the answer is larger than {self._limit} bytes as one document; accept {Form.LINES.value}"
            )
        self._items.append(data)

    async def end(self) -> None:
        body = b",".join(self._items)
        body = b"[%b]\n" % body if self._is_streaming else body + b"\n"
        self._response.content_length = len(body)
        await self._write(body, last=True)

    async def fail(self, problem: Problem, request_id: str) -> web.StreamResponse:
        if self.begun:
            return await self._break_off(b"")
        return problem_response(problem, request_id, self._headers)


class Lines(_Written):
    """One item, one line."""

    async def item(self, data: bytes) -> None:
        await self._write(data + b"\n")

    async def end(self) -> None:
        await self._write(b"", last=True)

    async def fail(self, problem: Problem, request_id: str) -> web.StreamResponse:
        if not self.begun:
            return problem_response(problem, request_id, self._headers)
        return await self._break_off(self._told(msgspec.json.encode(problem.document(request_id))))

    def _told(self, document: bytes) -> bytes:
        return b'{"error":%b}\n' % document


class Events(Lines):
    """One item, one event; comments while there is none, and an event ``end``."""

    def __init__(self, request: web.Request, form: Form, headers: Mapping[str, str]) -> None:
        super().__init__(request, form, {**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._count = 0
        self._last = self._loop.time()

    async def item(self, data: bytes) -> None:
        self._count += 1
        await self._write(b"data: %b\n\n" % data)
        self._last = self._loop.time()

    async def end(self) -> None:
        await self._write(_ENDED % self._count, last=True)

    async def quiet(self) -> None:
        if self.writing_since is not None or self._loop.time() - self._last < KEEP_ALIVE_S:
            return
        self._last = self._loop.time()
        try:
            async with asyncio.timeout(LAST_WORDS_S):  # whoever calls this has other things to look at
                if not self._response.prepared:
                    await self._response.prepare(self.request)
                await self._response.write(b": keep-alive\n\n")
        except TimeoutError:
            pass  # it is in the buffer
        except ConnectionError as error:
            raise ClientLeft from error

    def _told(self, document: bytes) -> bytes:
        return b"event: error\ndata: %b\n\n" % document
