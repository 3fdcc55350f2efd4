"""A scripted API server, for the faults that a real one does not show on demand; never instead of it.

It lists by pages, watches from any version that it remembers, and takes the writes that we make, over plain
HTTP or TLS. What is asked next can be answered otherwise; open watches can be told anything, and ended.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from attrs import frozen

from dynamo.adapters.discovery.kubernetes.configuration import Pod
from dynamo.adapters.discovery.kubernetes.records import body_of, data_of
from dynamo.core.model import Instance
from integration.fake_kubernetes_answers import EXPIRED, Answer, Object, Stream, line_of, lines, status

NAMESPACE = "team"
RECORDS, SLICES = "dynamoworkermetadatas", "endpointslices"
PATH = f"/apis/{{group}}/{{version}}/namespaces/{NAMESPACE}/{{plural}}"


@frozen(kw_only=True)
class Asked:
    """One request; ``what`` is such as "list endpointslices", with the verbs of ``answer``."""

    at: float
    what: str
    query: dict[str, str]
    token: str
    subject: str | None


class FakeKubernetes:
    """``asked`` are all requests so far. ``token`` is the only one that it takes, if it is not None; clients
    have theirs in ``token_file``, which is in ``folder``. ``subject`` is the same of client certificates.
    ``cluster`` and ``user`` are what the kubeconfig says of them.
    """

    def __init__(self, folder: Path) -> None:
        self.asked: list[Asked] = []
        self.token: str | None = None
        self.subject: str | None = None
        self.token_file, self.kubeconfig = folder / "token", folder / "kubeconfig.json"
        self.token_file.write_text("first")
        self.cluster: Object = {}
        self.user: Object = {"tokenFile": str(self.token_file)}
        self.page = 500
        self.objects: dict[str, dict[str, Object]] = {RECORDS: {}, SLICES: {}}
        self._version, self._oldest = 100, 100
        self._history: list[tuple[int, str, Object]] = []  # version, plural, event
        self._next: defaultdict[str, deque[Answer]] = defaultdict(deque)
        self._always: dict[str, Answer] = {}
        self._streams: dict[str, set[Stream]] = {RECORDS: set(), SLICES: set()}
        self._server: web.Server | None = None

    # What is there.

    def put(self, plural: str, found: Object, *, told: bool = True) -> None:
        """Create or replace an object. Who watches is told, or not before the next watch."""
        name = found["metadata"]["name"]
        kind = "MODIFIED" if name in self.objects[plural] else "ADDED"
        self.objects[plural][name] = found
        self._happen(plural, kind, found, told)

    def remove(self, plural: str, name: str, *, told: bool = True) -> None:
        self._happen(plural, "DELETED", self.objects[plural].pop(name), told)

    def serve(self, *instances: Instance, told: bool = True) -> None:
        """Each is that of a ready pod."""
        for one in instances:
            name = f"worker-{one.instance_id}"
            pod = Pod(name=name, uid=f"uid-{name}", container=None)
            self.put(RECORDS, body_of(name, NAMESPACE, pod, data_of(one.incarnation, [one]), None), told=told)
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
        """The next requests of this kind get these answers, one each. ``what`` is a plural after a verb:
        "list", "continue" (the second page and what follows), "watch", "apply", "merge" or "delete"; or it
        is "version".
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

    def tell(self, plural: str, said: Object | bytes) -> None:
        """Say this on every open watch."""
        for stream in self._streams[plural]:
            stream.lines.put_nowait(line_of(said))

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

    async def until_watched(self, *plurals: str) -> None:
        while not all(self._streams[plural] for plural in plurals):
            await asyncio.sleep(0.01)

    def connected(self) -> set[str | None]:
        """Who has a connection, by the names in client certificates."""
        handlers = () if self._server is None else self._server.connections
        return {_name_in(one.transport) for one in handlers if one.transport is not None}

    # The server.

    @asynccontextmanager
    async def run(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_get("/version", self._answer)
        application.router.add_get(PATH, self._answer)
        application.router.add_route("*", f"{PATH}/{{name}}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        try:
            self._server = runner.server
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            scheme = "http" if tls is None else "https"
            self.write_kubeconfig(f"{scheme}://127.0.0.1:{runner.addresses[0][1]}")
            yield
        finally:
            for plural in self._streams:
                self.end(plural)
            await runner.cleanup()

    def write_kubeconfig(self, url: str) -> None:
        """As ``run`` does; for one whose way there is another."""
        context = {"cluster": "fake", "user": "fake", "namespace": NAMESPACE}
        content = {
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": context}],
            "clusters": [{"name": "fake", "cluster": {"server": url, **self.cluster}}],
            "users": [{"name": "fake", "user": self.user}],
        }
        self.kubeconfig.write_text(json.dumps(content))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        plural = request.match_info.get("plural")
        what = "version" if plural is None else f"{_verb(request)} {plural}"
        token, subject = (
            request.headers.get("Authorization", "").removeprefix("Bearer "),
            _name_in(request.transport),
        )
        query = dict(request.query)
        self.asked.append(Asked(at=time.monotonic(), what=what, query=query, token=token, subject=subject))
        if self.token not in (None, token) or self.subject not in (None, subject):
            return await status(401, "Unauthorized")(request)
        if self._next[what]:
            return await self._next[what].popleft()(request)
        if what in self._always:
            return await self._always[what](request)
        return await self.right(request)

    async def right(self, request: web.Request) -> web.StreamResponse:
        """The answer as it should be."""
        if (plural := request.match_info.get("plural")) is None:
            return web.json_response({"major": "1", "minor": "35"})
        match verb := _verb(request):
            case "watch":
                return await self._watch(request, plural)
            case "apply" | "merge" | "delete":
                return await self._write(request, verb, await request.json())
        return self._list(request, plural)

    def _list(self, request: web.Request, plural: str) -> web.Response:
        name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
        items = [one for key, one in self.objects[plural].items() if name in ("", key)]
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
                stream.lines.put_nowait(line_of(event))
        self._streams[plural].add(stream)
        try:
            return await stream.send(request)
        finally:
            self._streams[plural].discard(stream)

    async def _write(self, request: web.Request, verb: str, body: Any) -> web.StreamResponse:
        """To a record, which must be the one that is meant; fields are not owned by anybody."""
        name = request.match_info["name"]
        before = self.objects[RECORDS].get(name)
        asked = (body.get("preconditions") or {} if verb == "delete" else body["metadata"]).get("uid")
        if before is None and verb != "apply":
            return await status(404, "NotFound", name=name)(request)
        if asked is not None and (before is None or before["metadata"]["uid"] != asked):
            return await status(409, "Conflict", name=name)(request)
        if verb == "delete":
            self.remove(RECORDS, name)
            return web.json_response({"kind": "Status", "status": "Success"})
        found: Object = json.loads(json.dumps(before)) if before else {"metadata": {"uid": uuid.uuid4().hex}}
        annotations = found["metadata"].get("annotations", {}) | body["metadata"].get("annotations", {})
        found |= {key: value for key, value in body.items() if key != "metadata"}
        found["metadata"] |= body["metadata"]
        found["metadata"]["annotations"] = {key: value for key, value in annotations.items() if value}
        self.put(RECORDS, found)
        return web.json_response(found)


def _verb(request: web.Request) -> str:
    if request.method == "PATCH":
        return "apply" if "apply" in request.headers["Content-Type"] else "merge"
    if request.method == "DELETE":
        return "delete"
    if request.query.get("limit") == "1":
        return "probe"
    return next((verb for verb in ("watch", "continue") if verb in request.query), "list")


def _name_in(transport: asyncio.BaseTransport | None) -> str | None:
    """The common name in the certificate of who is connected."""
    certificate = (transport.get_extra_info("peercert") if transport is not None else None) or {}
    named = {key: value for ((key, value), *_) in certificate.get("subject", ())}
    return named.get("commonName")
