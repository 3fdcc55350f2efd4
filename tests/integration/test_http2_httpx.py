"""httpx with its http2 extra, a client on another HTTP/2 library than ours, calls a worker."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from integration import certificates
from integration.http2_worker import BOUND_S, ERRORS, PATH, Worker, greetings, working

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def client(worker: Worker, *, connections: int = 1, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=worker.address,
        http1=False,
        http2=True,
        trust_env=False,
        timeout=BOUND_S,
        limits=httpx.Limits(max_connections=connections),
        **options,
    ) as http:
        yield http


async def test_json_in_and_lines_out_as_they_are_made() -> None:
    async with working() as worker, client(worker) as http:
        async with http.stream("POST", PATH, json={"name": "waits"}) as response:
            assert (response.status_code, response.http_version) == (200, "HTTP/2")
            assert response.headers["content-type"] == "application/x-ndjson"
            lines = response.aiter_lines()
            assert json.loads(await anext(lines)) == greetings("waits")[0]
            worker.go_on.set()
            assert [json.loads(line) async for line in lines] == greetings("waits")[1:]


@pytest.mark.parametrize("name", ERRORS)
async def test_errors_are_problem_documents(name: str) -> None:
    error, status = ERRORS[name]
    async with working() as worker, client(worker) as http:
        response = await http.post(PATH, json={"name": name})
        assert response.status_code == response.json()["status"] == status
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"] == error.message
        assert ("retry-after" in response.headers) is (status in (429, 503))
        assert (await http.post(PATH, json={})).status_code == 200  # on the same connection


async def test_a_failure_after_items_is_the_last_line() -> None:
    async with working() as worker, client(worker) as http:
        lines = (await http.post(PATH, json={"name": "half"})).text.splitlines()
        assert [json.loads(line) for line in lines[:-1]] == greetings("half")
        assert json.loads(lines[-1])["error"]["detail"] == "gave up"


async def test_a_body_of_unknown_size_is_taken_beyond_its_window() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"name": "'
        for _ in range(20):
            yield b"x" * 50_000
        yield b'"}'

    async with working() as worker, client(worker) as http:
        response = await http.post(PATH, content=body(), headers={"content-type": "application/json"})
        assert [json.loads(line) for line in response.text.splitlines()] == greetings("x" * 1_000_000)


async def test_a_broken_stream_is_seen_as_broken() -> None:
    async with working() as worker, client(worker) as http:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            async with http.stream("POST", PATH, json={"name": "waits"}) as response:
                lines = response.aiter_lines()
                assert json.loads(await anext(lines)) == greetings("waits")[0]
                worker.server.abort()  # type: ignore[attr-defined]
                async for _ in lines:
                    pytest.fail("a line that nobody sent")


async def test_who_closes_the_connection_cancels_the_call() -> None:
    """Leaving the response alone does not: httpx sends no RST_STREAM for it."""
    async with working() as worker:
        async with client(worker) as http, http.stream("POST", PATH, json={"name": "waits"}) as response:
            await anext(response.aiter_lines())
        (call,) = worker.calls
        async with asyncio.timeout(BOUND_S):
            while not call.killed:
                await asyncio.sleep(0)


async def test_a_hundred_calls_at_a_time_share_one_connection() -> None:
    async with working() as worker, client(worker) as http:
        asked = [asyncio.create_task(http.post(PATH, json={"name": "waits"})) for _ in range(100)]
        async with asyncio.timeout(BOUND_S):
            while len(worker.calls) < 100:
                await asyncio.sleep(0)
        assert worker.server.calls == 100
        assert len(worker.server._links) == 1  # type: ignore[attr-defined]
        worker.go_on.set()
        for task in asked:
            response = await task
            assert [json.loads(line) for line in response.text.splitlines()] == greetings("waits")


async def test_tls_is_agreed_on_by_alpn(tmp_path: Path) -> None:
    certificates.issue(tmp_path)
    async with working("https", **certificates.options(tmp_path, "cert=worker")) as worker:
        trust = ssl.create_default_context(
            cafile=certificates.options(tmp_path, "ca=ours")["tls_ca_cert_path"]
        )
        async with client(worker, verify=trust) as http:
            response = await http.post(PATH, json={"name": "you"})
            assert (response.status_code, response.http_version) == (200, "HTTP/2")
