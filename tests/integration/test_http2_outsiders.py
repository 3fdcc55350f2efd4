"""curl and nghttp, which know nothing of this library, call a worker over HTTP/2."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from integration.http2_worker import BOUND_S, ERRORS, PATH, greetings, working

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.optional_tool,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


async def start(url: str, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *("curl", "-s", "--max-time", f"{BOUND_S:g}", "--http2-prior-knowledge", *options, url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def curl(
    address: str,
    body: str | None,
    *options: str,
    path: str = PATH,
    content_type: str = "application/json",
) -> tuple[int, dict[str, str], str]:
    """Status, header fields with those of the trailers, and body."""
    if body is not None:
        options = (*options, "-H", f"content-type: {content_type}", "-d", body)
    process = await start(address + path, "-D", "/dev/stderr", *options)
    output, heads = await process.communicate()
    assert process.returncode == 0
    version_and_status, *lines = heads.decode().replace("\r", "").splitlines()
    fields = dict(line.split(": ", 1) for line in lines if line)
    return int(version_and_status.removeprefix("HTTP/2").strip()), fields, output.decode()


async def test_curl_sends_json_and_reads_lines() -> None:
    async with working() as worker:
        status, fields, text = await curl(worker.address, '{"name": "you"}')
        assert (status, fields["content-type"]) == (200, "application/x-ndjson")
        assert [json.loads(line) for line in text.splitlines()] == greetings("you")
        assert fields["dynamo-end"] == "ok"


async def test_lines_come_as_they_are_made() -> None:
    async with working() as worker:
        options = ("-N", "-H", "content-type: application/json", "-d", '{"name": "waits"}')
        process = await start(worker.address + PATH, *options)
        assert process.stdout is not None
        assert json.loads(await process.stdout.readline()) == greetings("waits")[0]
        worker.go_on.set()
        rest, _ = await process.communicate()
        assert [json.loads(line) for line in rest.splitlines()] == greetings("waits")[1:]


@pytest.mark.skipif(shutil.which("nghttp") is None, reason="nghttp (nghttp2-client) is not installed")
async def test_a_call_of_nghttp_outlives_both_goaways_of_a_worker(tmp_path: Path) -> None:
    """curl 7.88 takes the first for the end of the body, and says that all went well."""
    (body := tmp_path / "body").write_text('{"name": "waits"}')
    async with working() as worker, asyncio.timeout(BOUND_S):
        process = await asyncio.create_subprocess_exec(
            *("nghttp", "-d", body, "-H", "content-type: application/json", worker.address + PATH),
            stdout=asyncio.subprocess.PIPE,
        )
        while not worker.calls:
            await asyncio.sleep(0.001)
        worker.server.drain()
        worker.server.refuse()
        worker.go_on.set()
        output, _ = await process.communicate()
        assert [json.loads(line) for line in output.splitlines()] == greetings("waits")


async def test_curl_reads_server_sent_events() -> None:
    async with working() as worker:
        options = ("-H", "accept: text/event-stream")
        status, fields, text = await curl(worker.address, '{"name": "you"}', *options)
        assert (status, fields["content-type"]) == (200, "text/event-stream")
        assert [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:3]] == greetings(
            "you"
        )


@pytest.mark.parametrize("name", ERRORS)
async def test_an_error_before_the_first_item_has_a_status_and_a_body(name: str) -> None:
    error, expected = ERRORS[name]
    async with working() as worker:
        status, fields, text = await curl(worker.address, json.dumps({"name": name}))
        problem = json.loads(text)
        assert status == problem["status"] == expected
        assert fields["content-type"] == "application/problem+json"
        assert problem["title"] == type(error).__name__
        assert problem["detail"] == error.message
        assert fields.get("retry-after") == ("1" if status in (429, 503) else None)


async def test_an_error_after_items_is_the_last_line() -> None:
    async with working() as worker:
        status, fields, text = await curl(worker.address, '{"name": "half"}')
        *items, last = [json.loads(line) for line in text.splitlines()]
        assert (status, items) == (200, greetings("half"))
        assert last["error"]["type_name"] == "ValueError"
        assert fields["dynamo-end"] == "RemoteError"


async def test_what_is_no_such_request_is_told() -> None:
    async with working(max_message_bytes=1024) as worker:
        for body, options, kind, expected, words in [
            ("{nonsense", (), "application/json", 400, "not JSON"),
            ("", (), "application/json", 400, "not JSON"),
            ("{}", ("-H", "dynamo-timeout: soon"), "application/json", 400, "dynamo-timeout"),
            (json.dumps({"name": "x" * 2000}), (), "application/json", 413, "1024"),
            ("a=1", (), "text/plain", 415, "text/plain"),
            ("{}", ("-X", "PUT"), "application/json", 405, "PUT"),
            ("{}", ("-H", "dynamo-instance: 2"), "application/json", 503, "another instance"),
        ]:
            status, fields, text = await curl(worker.address, body, *options, content_type=kind)
            assert (status, words in json.loads(text)["detail"]) == (expected, True), text
            assert fields["content-type"] == "application/problem+json"
            assert fields.get("allow") == ("POST" if status == 405 else None)
        status, fields, _ = await curl(worker.address, None)  # GET
        assert (status, fields["allow"]) == (405, "POST")


async def test_who_has_no_token_is_told() -> None:
    async with working(auth_token="secret") as worker:
        status, fields, text = await curl(worker.address, "{}")
        assert (status, fields["www-authenticate"]) == (401, "Bearer")
        assert "secret" not in text
        assert (await curl(worker.address, "{}", "-H", "authorization: Bearer secret"))[0] == 200


async def test_a_large_body_passes_through_the_window_of_its_stream() -> None:
    name = "x" * 2_000_000
    async with working() as worker:
        options = ("-H", "content-type: application/json", "--data-binary", "@-")
        process = await start(worker.address + PATH, *options)
        output, _ = await process.communicate(json.dumps({"name": name}).encode())
        assert [json.loads(line) for line in output.splitlines()] == greetings(name)
