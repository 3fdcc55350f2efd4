"""Requests to the API server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import aiohttp
from attrs import frozen

from dynamo.adapters.discovery.kubernetes.configuration import KubernetesConfig
from dynamo.adapters.discovery.kubernetes.errors import RECORDS, Resource, translated, unreachable
from dynamo.adapters.discovery.kubernetes.way import Way
from dynamo.core.errors import DynamoError, UnavailableError

PAGE = 500
LONGEST_LINE = 32 * 2**20  # etcd takes objects of 1.5 MiB
JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

Object: TypeAlias = dict[str, Any]


@frozen(kw_only=True)
class Selection:
    """Which objects of a kind: all of the namespace where both selectors are empty."""

    resource: Resource
    labels: str = ""
    fields: str = ""

    @property
    def query(self) -> list[tuple[str, str]]:
        pairs = (("labelSelector", self.labels), ("fieldSelector", self.fields))
        return [(name, value) for name, value in pairs if value]


class Access:
    """A client of the API server, for one namespace. ``heard_at`` is when it last said something.

    Everything raises UnavailableError, AuthError, ConfigError, and RefusedError where the server says that
    things are not as we took them to be.
    """

    def __init__(self, config: KubernetesConfig, way: Way) -> None:
        self.config, self._way = config, way
        self.namespace = way.namespace
        self.heard_at = time.monotonic()

    @property
    def where(self) -> str:
        """The server and what named it, for a message."""
        return f"{self._way.host} ({self.config.source})"

    async def close(self) -> None:
        await self._way.close()

    async def list(self, selection: Selection, *, limit: int = PAGE) -> tuple[list[Object], str]:
        """All of them, by pages, and the version of the collection. RefusedError 410: too much changed
        between the pages.
        """
        found: list[Object] = []
        query = [("limit", str(limit)), *selection.query]
        page = query
        while True:
            answer = await self._call("GET", "list", selection.resource, query=page)
            metadata, items = answer.get("metadata"), answer.get("items")
            if not isinstance(metadata, dict) or not metadata.get("resourceVersion"):
                raise self._stranger()  # what a proxy says in its place is no empty listing
            found += items or ()
            if not (token := metadata.get("continue")):
                return found, str(metadata["resourceVersion"])
            page = [*query, ("continue", token)]

    async def probe(self, resource: Resource) -> None:
        """Ask for one object, to learn whether all is well."""
        await self._call("GET", "list", resource, query=[("limit", "1")])

    async def ping(self) -> None:
        """Ask for its version, which costs next to nothing. Raises UnavailableError where nothing answers;
        who refuses to tell it is there.
        """
        with self._told():
            async with asyncio.timeout(self.config.answer_s):
                response = await self._way.send("GET", "/version", (), None, JSON)
                await response.read()
        if response.status >= 500:
            raise UnavailableError(f"{self.where} answers with HTTP {response.status}")
        self.heard_at = time.monotonic()

    async def apply(self, name: str, body: Object, *, manager: str, force: bool = False) -> Object:
        """Server-side apply of a record: creates it, or replaces what ``manager`` said of it before.

        RefusedError 409: another manager says something else, or it is another object than ``body`` means.
        """
        query = [("fieldManager", manager), ("force", "true" if force else "false")]
        answer = await self._call("PATCH", "patch", RECORDS, name, query, body, APPLY)
        metadata = answer.get("metadata")
        if not isinstance(metadata, dict) or not metadata.get("uid"):
            raise self._stranger()
        return answer

    async def merge(self, name: str, body: Object) -> Object:
        """Change some fields of a record."""
        return await self._call("PATCH", "patch", RECORDS, name, (), body, MERGE)

    async def delete(self, name: str, preconditions: Mapping[str, str]) -> None:
        """Delete a record, if it is the one that we mean; RefusedError 404 or 409 if it is not."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": dict(preconditions)}
        await self._call("DELETE", "delete", RECORDS, name, (), body)

    @asynccontextmanager
    async def watch(self, selection: Selection, version: str, timeout_s: int) -> AsyncIterator[Watching]:
        """What changes after ``version``, for ``timeout_s`` seconds at most."""
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(timeout_s)),
            *selection.query,
        ]
        with self._told():
            async with asyncio.timeout(self.config.answer_s):
                response = await self._send("GET", "watch", selection.resource, None, query, None, JSON)
        try:
            yield Watching(self, response)
        finally:
            response.close()

    async def _call(
        self,
        method: str,
        verb: str,
        resource: Resource,
        name: str | None = None,
        query: Sequence[tuple[str, str]] = (),
        body: Object | None = None,
        content_type: str = JSON,
    ) -> Object:
        with self._told():
            async with asyncio.timeout(self.config.answer_s):
                response = await self._send(method, verb, resource, name, query, body, content_type)
                text = await response.read()
        return self.read(text)

    async def _send(
        self,
        method: str,
        verb: str,
        resource: Resource,
        name: str | None,
        query: Sequence[tuple[str, str]],
        body: Object | None,
        content_type: str,
    ) -> aiohttp.ClientResponse:
        """The answer's beginning, if it is a good one."""
        path = resource.path(self.namespace, name)
        response = await self._way.send(method, path, query, body, content_type)
        self.heard_at = time.monotonic()
        if response.status < 400:
            return response
        try:
            text = await response.read()
        finally:
            response.close()
        raise translated(
            response.status,
            _status(text),
            where=self.where,
            verb=verb,
            resource=resource,
            namespace=self.namespace,
            retry_after=response.headers.get("Retry-After"),
        )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong on the way there, in our words."""
        try:
            yield
        except DynamoError:  # some are OSErrors too
            raise
        except TimeoutError as error:
            raise UnavailableError(
                f"no Kubernetes API server at {self.where}: no answer within {self.config.answer_s:g} s"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise unreachable(error, self.where) from error

    def read(self, text: bytes) -> Object:
        """JSON that came from there."""
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        except RecursionError as error:  # Kubernetes keeps 10,000 levels
            raise UnavailableError(
                f"an object in namespace {self.namespace!r} of {self.where} is nested too deeply to be read; "
                "find out who writes it, and delete it"
            ) from error
        if not isinstance(answer, dict):
            raise self._stranger()
        return answer

    def _stranger(self) -> UnavailableError:
        return UnavailableError(f"what answers at {self.where} is no Kubernetes API server")


class Watching:
    """The lines of one watch."""

    def __init__(self, access: Access, response: aiohttp.ClientResponse) -> None:
        self._access, self._response = access, response
        self._rest = b""

    async def events(self) -> list[Object]:
        """Wait for some; none: the watch has ended, as it does when the time has passed or a connection
        breaks. Raises UnavailableError for what cannot be read.
        """
        while True:
            try:
                chunk = await self._response.content.readany()
            except TimeoutError:  # an OSError too
                raise
            except (aiohttp.ClientError, OSError):
                return []
            if not chunk:
                return []
            self._access.heard_at = time.monotonic()
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > LONGEST_LINE:
                raise UnavailableError(f"a line of {len(self._rest)} bytes from {self._access.where}")
            if found := [self._access.read(line) for line in lines if line.strip()]:
                return found


def _status(text: bytes) -> Object:
    try:
        answer = json.loads(text)
    except ValueError:
        return {"message": text[:200].decode(errors="replace").strip()}
    return answer if isinstance(answer, dict) else {}
