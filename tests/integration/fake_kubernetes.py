"""A scripted API server, for the faults that a real one does not show on demand; never instead of it.

It lists by pages, and watches from any version that it remembers, what a test puts there, over plain HTTP.
What is asked next can be answered otherwise: ``answer``. Open watches can be told anything, and ended.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

from aiohttp import web
from attrs import frozen

from dynamo.adapters.discovery.kubernetes.configuration import Pod
from dynamo.adapters.discovery.kubernetes.records import body_of, data_of
from dynamo.core.model import Instance

NAMESPACE = "team"
RECORDS, SLICES = "dynamoworkermetadatas", "endpointslices"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Object: TypeAlias = dict[str, Any]
Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@frozen(kw_only=True)
class Asked:
    """One request."""

    at: float
    what: str  # such as "watch endpointslices"
    query: dict[str, str]
    token: str


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
        if self.reset and request.transport is not None:
            accepted: socket.socket = request.transport.get_extra_info("socket")
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            request.transport.close()
        return answer


class FakeKubernetes:
    """``asked`` are all requests so far; ``token`` is the one that it takes, if it asks for one."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.token: str | None = None
        self.page = 500
        self.url = ""
        self._version, self._oldest = 100, 100
        self._objects: dict[str, dict[str, Object]] = {RECORDS: {}, SLICES: {}}
        self._history: list[tuple[int, str, Object]] = []  # version, plural, event
        self._next: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self._always: dict[str, Answer] = {}
        self._streams: dict[str, set[Stream]] = {RECORDS: set(), SLICES: set()}

    # What is there.

    def put(self, plural: str, found: Object, *, told: bool = True) -> None:
        """Create or replace an object. Who watches is told, or not before the next watch."""
        name = found["metadata"]["name"]
        kind = "MODIFIED" if name in self._objects[plural] else "ADDED"
        self._objects[plural][name] = found
        self._happen(plural, kind, found, told)

    def remove(self, plural: str, name: str, *, told: bool = True) -> None:
        self._happen(plural, "DELETED", self._objects[plural].pop(name), told)

    def serve(self, *instances: Instance, told: bool = True) -> None:
        """Each is that of a ready pod."""
        for one in instances:
            name = f"worker-{one.instance_id}"
            pod = Pod(name=name, uid=f"uid-{name}", container=None)
            body = body_of(name, NAMESPACE, pod, data_of(one.incarnation, [one]), None)
            self.put(RECORDS, body, told=told)
            target = {"kind": "Pod", "name": name, "uid": pod.uid}
            endpoints = [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}, "targetRef": target}]
            self.put(SLICES, {"metadata": {"name": f"slice-{name}"}, "endpoints": endpoints}, told=told)

    def _happen(self, plural: str, kind: str, found: Object, told: bool) -> None:
        self._version += 1
        found["metadata"]["resourceVersion"] = str(self._version)
        event = json.loads(json.dumps({"type": kind, "object": found}))
        self._history.append((self._version, plural, event))
        if told:
            self.tell(plural, event)

    # Faults.

    def answer(self, what: str, *answers: Answer) -> None:
        """The next requests of this kind get these answers, one each: "list", "continue" (the second page
        and what follows) or "watch", and the plural.
        """
        self._next[what] += answers

    def always(self, what: str, answer: Answer | None) -> None:
        """All that come after those get this one; None ends that."""
        self._always.pop(what, None)
        if answer is not None:
            self._always[what] = answer

    def forget(self) -> None:
        """A watch from before now gets an event 410."""
        self._oldest = self._version

    def bookmark(self, plural: str) -> str:
        """Versions move on without events of this kind; a bookmark says so, and the rest is forgotten."""
        self._version += 10
        self.forget()
        metadata = {"resourceVersion": str(self._version)}
        self.tell(plural, {"type": "BOOKMARK", "object": {"metadata": metadata}})
        return str(self._version)

    def tell(self, plural: str, line: Object | bytes) -> None:
        """Say this on every open watch."""
        for stream in self._streams[plural]:
            stream.lines.put_nowait(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")

    def end(self, plural: str, *, reset: bool = False) -> None:
        """End every open watch."""
        for stream in self._streams[plural]:
            stream.reset = reset
            stream.lines.put_nowait(None)

    # What a test looks at.

    def times(self, what: str) -> list[Asked]:
        """The requests of this kind."""
        return [one for one in self.asked if one.what == what]

    async def until_asked(self, what: str, count: int) -> None:
        while len(self.times(what)) < count:
            await asyncio.sleep(0.01)

    async def until_watched(self) -> None:
        while not all(self._streams.values()):
            await asyncio.sleep(0.01)

    def kubeconfig(self, token_file: Path) -> Path:
        """One that has its token in that file."""
        context = {"name": "fake", "context": {"cluster": "fake", "user": "fake", "namespace": NAMESPACE}}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [context],
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "fake", "user": {"tokenFile": str(token_file)}}],
        }
        path = token_file.with_name("kubeconfig.json")
        path.write_text(json.dumps(content))
        return path

    # The server.

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_get(f"/apis/{{group}}/{{v}}/namespaces/{NAMESPACE}/{{plural}}", self._get)
        runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield
        finally:
            for plural in self._streams:
                self.end(plural)
            await runner.cleanup()

    async def _get(self, request: web.Request) -> web.StreamResponse:
        plural, query = request.match_info["plural"], dict(request.query)
        verb = next((verb for verb in ("watch", "continue") if verb in query), "list")
        if query.get("limit") == "1":
            verb = "probe"
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        what = f"{verb} {plural}"
        self.asked.append(Asked(at=time.monotonic(), what=what, query=query, token=token))
        if self.token not in (None, token):
            return await status(401, "Unauthorized")(request)
        if self._next[what]:
            return await self._next[what].popleft()(request)
        if what in self._always:
            return await self._always[what](request)
        return await self._watch(request, plural) if verb == "watch" else self._list(request, plural)

    def _list(self, request: web.Request, plural: str) -> web.Response:
        items = list(self._objects[plural].values())
        begin = int(request.query.get("continue", "0"))
        end = begin + min(self.page, int(request.query["limit"]))
        metadata = {"resourceVersion": str(self._version), "continue": str(end) if end < len(items) else ""}
        return web.json_response({"kind": "List", "metadata": metadata, "items": items[begin:end]})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        stream, version = Stream(), int(request.query["resourceVersion"])
        if version < self._oldest:
            return await lines(EXPIRED)(request)
        for at, kind, event in self._history:
            if at > version and kind == plural:
                stream.lines.put_nowait(json.dumps(event).encode() + b"\n")
        self._streams[plural].add(stream)
        try:
            return await stream.send(request)
        finally:
            self._streams[plural].discard(stream)


def status(code: int, reason: str, *, retry_after: str | None = None) -> Answer:
    """An error, as the API server tells one."""

    async def answer(request: web.Request) -> web.Response:
        body = {"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code}
        headers = {} if retry_after is None else {"Retry-After": retry_after}
        return web.json_response(body, status=code, headers=headers)

    return answer


def text(body: str, content_type: str = "application/json") -> Answer:
    """This, as a success."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=body, content_type=content_type)

    return answer


def lines(*said: Object | bytes) -> Answer:
    """A watch that says this and ends."""

    async def answer(request: web.Request) -> web.StreamResponse:
        stream = Stream()
        for line in said:
            stream.lines.put_nowait(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
        stream.lines.put_nowait(None)
        return await stream.send(request)

    return answer


async def nothing(request: web.Request) -> web.StreamResponse:
    """No answer."""
    return await asyncio.get_running_loop().create_future()


def error_event(code: int, reason: str, **details: Any) -> Object:
    """How a watch that has begun is told of an error."""
    said = {"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code}
    return {"type": "ERROR", "object": {**said, "details": details}}


EXPIRED = error_event(410, "Expired")
