"""Programs that know nothing of this library call a worker over HTTP/2."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgpack
import pytest

from dynamo.adapters.request_plane.http2 import open_http2
from dynamo.core.config import Settings
from dynamo.core.errors import (
    DeadlineError,
    DrainingError,
    DynamoError,
    OverloadedError,
    RemoteError,
    UnknownEndpointError,
)
from dynamo.core.ports.request_plane import IncomingCall

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.optional_tool,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]

ERRORS: dict[str, tuple[DynamoError, int]] = {
    "unknown": (UnknownEndpointError("nobody serves it"), 404),
    "overloaded": (OverloadedError("full"), 429),
    "draining": (DrainingError("leaving"), 503),
    "late": (DeadlineError("over"), 504),
    "broken": (RemoteError("no 'x'", type_name="KeyError"), 500),
}


def answer(call: IncomingCall) -> None:
    """Three greetings, then what the name asks for."""
    request = msgpack.unpackb(bytes(call.request.payload or b"\xc0"))
    name = request.get("name")
    if name in ERRORS:
        call.fail(ERRORS[name][0])
        return
    for number in range(3):
        call.send(msgpack.packb({"text": f"hello {name}", "number": number}))
    if name == "half":
        call.fail(RemoteError("gave up", type_name="ValueError"))
    call.end()


@asynccontextmanager
async def worker(**settings: object) -> AsyncIterator[str]:
    async with open_http2("http2://", Settings(tcp_host="127.0.0.1", **settings)) as plane:  # type: ignore[arg-type]
        async with plane.serve(answer, instance_id=1, incarnation=1) as server:
            yield server.addresses[0]


async def curl(
    address: str, body: str, *options: str, path: str = "/demo/HelloService/greet"
) -> tuple[int, str]:
    """Status and body."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-s", "--max-time", "10", "--http2-prior-knowledge", "-w", "\n%{http_code}"),
        *("-H", "content-type: application/json", "-d", body, *options, address + path),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    text, _, status = output.decode().rpartition("\n")
    return int(status), text


async def test_curl_sends_json_and_reads_lines() -> None:
    async with worker() as address:
        status, text = await curl(address, '{"name": "you"}')
        assert status == 200
        assert [json.loads(line) for line in text.splitlines()] == [
            {"text": "hello you", "number": number} for number in range(3)
        ]


async def test_curl_reads_server_sent_events() -> None:
    async with worker() as address:
        status, text = await curl(address, '{"name": "you"}', "-H", "accept: text/event-stream")
        assert status == 200
        assert text.count("data: {") == 3
        assert text.startswith('data: {"text":"hello you","number":0}\n\n')


@pytest.mark.parametrize("name", ERRORS)
async def test_an_error_before_the_first_item_has_a_status_and_a_body(name: str) -> None:
    error, expected = ERRORS[name]
    async with worker() as address:
        status, text = await curl(address, json.dumps({"name": name}))
        problem = json.loads(text)
        assert status == problem["status"] == expected
        assert problem["title"] == type(error).__name__
        assert problem["detail"] == error.message


async def test_an_error_after_items_is_the_last_line() -> None:
    async with worker() as address:
        status, text = await curl(address, '{"name": "half"}')
        *items, last = [json.loads(line) for line in text.splitlines()]
        assert (status, len(items)) == (200, 3)
        assert last["error"]["type_name"] == "ValueError"


async def test_what_is_no_json_or_too_large_or_without_the_token_is_told() -> None:
    async with worker(max_message_bytes=1024) as address:
        assert (await curl(address, "{nonsense"))[0] == 400
        assert (await curl(address, json.dumps({"name": "x" * 2000})))[0] == 413
        assert (await curl(address, "", "-H", "content-type: text/plain"))[0] == 415
    async with worker(auth_token="secret") as address:
        assert (await curl(address, "{}"))[0] == 401
        assert (await curl(address, "{}", "-H", "authorization: Bearer secret"))[0] == 200
