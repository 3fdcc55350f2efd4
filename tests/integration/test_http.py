"""``@api`` routes over HTTP: payloads, forms, statuses, headers, descriptions."""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

pytest.importorskip("aiohttp", reason="the extra http is not installed")
pytest.importorskip("msgspec", reason="the extra services is not installed")

from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator

from dynamo.adapters.http import http_application, serve_http
from dynamo.runtime import ConfigError, ServedServices
from integration.http_service import NO_EXCEPTIONS, Served, make_runtime, serving

pytestmark = pytest.mark.anyio

LINES, EVENTS = "application/x-ndjson", "text/event-stream"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def shop() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@pytest.mark.parametrize(
    "path, body, given",
    [
        ("/add", b'{"a": 1, "b": 2}', 3),
        ("/add", b'{"a": 1}', 2),
        ("/words", b'{"text": "a b", "times": 2}', ["a", "b", "a", "b"]),
        ("/v1/messages", b'{"messages": [{"role": "user", "text": "hi"}]}', [{"role": "user", "text": "HI"}]),
        ("/v1/messages", b'[{"role": "user"}]', [{"role": "user", "text": ""}]),
        ("/nothing", b"", None),
        ("/nothing", b"{}", None),
        ("/nothing", b" \r\n", None),
        (
            "/odd",
            b'{"data": "AQI=", "at": "2026-01-02T03:04:05Z"}',
            {"data": "AgE=", "at": "2026-01-02T03:04:05Z", "kinds": [1, None, [2], None]},
        ),
    ],
)
async def test_payloads_bind_and_items_are_json(shop: Served, path: str, body: bytes, given: Any) -> None:
    json_in = {"content-type": "application/json", "accept": "application/json"}
    response = await shop.http.post(path, content=body, headers=json_in)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == given


async def test_streams_have_three_forms(shop: Served) -> None:
    async def said(accept: str) -> tuple[str, str]:
        response = await shop.post("/words", {"text": "a \u00e9"}, headers={"accept": accept})
        return response.headers["content-type"], response.content.decode()

    assert await said("*/*") == (LINES, '"a"\n"\u00e9"\n')
    assert await said("application/json") == ("application/json", '["a","\u00e9"]\n')
    events = 'data: "a"\n\ndata: "\u00e9"\n\nevent: end\ndata: {"items":2}\n\n'
    assert await said(EVENTS) == (EVENTS, events)
    response = await shop.post("/words", {"text": ""}, headers={"accept": LINES})
    assert (response.status_code, response.content) == (200, b"")
    response = await shop.post("/add", {"a": 1}, headers={"accept": EVENTS})
    assert response.text == 'data: 2\n\nevent: end\ndata: {"items":1}\n\n'


async def test_items_come_as_they_are_made(shop: Served) -> None:
    async with shop.http.stream("POST", "/paused", json={}) as response:
        lines = response.aiter_lines()
        assert await anext(lines) == '"before"'
        shop.shop.opened.set()
        assert [line async for line in lines] == ['"after"']


@pytest.mark.parametrize(
    "method, path, body, headers, status, words",
    [
        *(
            ("POST", "/add", body, {}, 400, words)
            for body, words in [
                (b"{", "the body is not JSON: "),
                (b'"\xff"', "the body is not JSON: "),
                (b"[" * 100_000, "the body is not JSON: "),
                (b'{"a": "1"}', "Shop.add: a: expected int, got str"),
                (b"{}", "Shop.add: a: missing"),
                (b'{"a": 1, "c": 2}', "Shop.add: unknown key 'c'; "),
                (b"", "Shop.add: a: missing"),
            ]
        ),
        ("POST", "/refuses", b"", {}, 400, "text: at most 10 characters"),
        ("POST", "/add", b"no gzip", {"content-encoding": "gzip"}, 400, "the body cannot be read: "),
        *(
            (
                "POST",
                "/add",
                b"1",
                {"x-request-timeout": said},
                400,
                f"X-Request-Timeout: {said}: expected sec",
            )
            for said in ("soon", "-1", "nan")
        ),
        ("POST", "/ad", b"1", {}, 404, "no route /ad; GET / tells more"),
        ("GET", "/add", b"", {}, 405, "GET /add: this takes POST"),
        ("DELETE", "/", b"", {}, 405, "DELETE /: this takes GET or HEAD"),
        ("POST", "/add", b"1", {"accept": "image/png"}, 406, "accept: image/png leaves nothing"),
        ("POST", "/add", b"a=1", {"content-type": "application/x-www-form-urlencoded"}, 415, "curl -H '"),
        ("POST", "/add", b"1", {"content-type": ""}, 415, "content-type: none; this takes application/json"),
        ("POST", "/add", b"1", {"content-encoding": "rot13"}, 415, "content-encoding: rot13; "),
        ("POST", "/unspeakable", b"", {}, 500, "demo.Shop.unspeakable failed with EncodeError"),
        *(
            ("POST", "/panics", b'"%b"' % kind.encode(), {}, 500, f"demo.Shop.panics failed with {kind}; ")
            for kind in (each.__name__ for each in NO_EXCEPTIONS)
        ),
        ("POST", "/breaks", b'{"after": 0}', {}, 500, "demo.Shop.breaks failed with ValueError; the log"),
        *(
            ("POST", "/breaks", b'{"after": 0, "kind": "%b"}' % kind, {}, status, words)
            for kind, status, words in [
                (b"OverloadedError", 429, "a secret"),
                (b"NoInstancesError", 503, "a secret"),
                (b"DrainingError", 503, "a secret"),
                (b"DeadlineError", 504, "a secret"),
                (b"StreamBrokenError", 502, "with StreamBrokenError; the log"),
            ]
        ),
        ("POST", "/fails_behind", b'"RemoteError"', {}, 502, "a service behind it failed with RemoteError"),
        ("POST", "/fails_behind", b'"BadPayloadError"', {}, 502, "failed with BadPayloadError; the log"),
        ("POST", "/fails_behind", b'"OverloadedError"', {}, 429, "over there"),
    ],
)
async def test_a_failure_is_a_problem_document(
    shop: Served,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    body: bytes,
    headers: dict[str, str],
    status: int,
    words: str,
) -> None:
    caplog.set_level(logging.CRITICAL, "dynamo.http")
    given = {"content-type": "application/json", "x-request-id": "mine-1", **headers}
    response = await shop.http.request(method, path, content=body, headers=given)
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert words in problem["detail"]
    assert (response.status_code, problem["status"], problem["request_id"]) == (status, status, "mine-1")
    assert response.headers["x-request-id"] == "mine-1"
    assert ("retry-after" in response.headers) is (status in (429, 503))
    assert "Traceback" not in response.text
    assert ("secret" in response.text) is (words == "a secret")
    assert not caplog.records


async def test_what_is_there_is_told_where_something_is_not(shop: Served) -> None:
    missing = (await shop.post("/nix")).json()
    assert "POST /v1/messages" in missing["routes"]
    assert len(missing["routes"]) == len(shop.services.routes)
    assert (await shop.http.get("/add")).headers["allow"] == "POST, OPTIONS"
    asked = await shop.http.options("/openapi.json")
    assert (asked.status_code, asked.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("accept", [LINES, EVENTS])
async def test_a_stream_that_fails_says_so_and_is_not_whole(shop: Served, accept: str) -> None:
    text = b""
    with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
        async with shop.http.stream(
            "POST", "/breaks", json={"after": 2}, headers={"accept": accept}
        ) as response:
            assert response.status_code == 200
            async for part in response.aiter_bytes():
                text += part
    if accept == LINES:
        first, second, last = text.splitlines()
        assert (first, second) == (b"0", b"1")
        problem = json.loads(last)["error"]
    else:
        *items, event = text.removesuffix(b"\n\n").split(b"\n\n")
        assert items == [b"data: 0", b"data: 1"]
        assert event.startswith(b"event: error\ndata: ")
        problem = json.loads(event.partition(b"data: ")[2])
    assert (problem["status"], problem["error"]) == (500, "ValueError")
    assert b"secret" not in text
    document = await shop.post("/breaks", {"after": 2}, headers={"accept": "application/json"})
    assert document.status_code == 500


async def test_a_method_that_fails_is_in_the_log_under_the_request_id(
    shop: Served, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.post("/breaks", {"after": 0}, headers={"x-request-id": "abc"})
    (record,) = caplog.records
    assert "request abc" in record.message
    assert record.exc_info is not None
    assert "a secret" in str(record.exc_info[1])


async def test_a_body_is_bounded_however_it_comes(tmp_path: Any) -> None:
    async with serving(max_body_bytes=2000) as shop:

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield b'"' + b"x" * 998

        json_in = {"content-type": "application/json"}
        bomb = gzip.compress(b" " * 100_000)
        assert len(bomb) < 2000
        for content, headers in (
            (b" " * 2001, {}),
            (chunks(), {}),
            (bomb, {"content-encoding": "gzip"}),
        ):
            refused = await shop.http.post("/add", content=content, headers={**json_in, **headers})
            assert (refused.status_code, refused.json()["limit"]) == (413, 2000)
        packed = gzip.compress(b'{"a": 1}' + b" " * 1992)
        taken = await shop.http.post("/add", content=packed, headers={**json_in, "content-encoding": "gzip"})
        assert (taken.status_code, taken.json()) == (200, 2)


async def test_an_answer_as_one_document_is_bounded() -> None:
    async with serving(runtime=make_runtime(max_message_bytes=2048)) as shop:
        asked = {"text": "x" * 20, "times": 200}
        refused = await shop.post("/words", asked, headers={"accept": "application/json"})
        assert (refused.status_code, refused.json()["error"]) == (500, "TooLargeError")
        assert len((await shop.post("/words", asked)).text.splitlines()) == 200


async def test_ids_and_trace_go_in_and_out(shop: Served) -> None:
    headers = {"x-request-id": "mine-1", "traceparent": TRACE, "tracestate": "a=b"}
    response = await shop.post("/add", {"a": 1}, headers=headers)
    context = shop.shop.contexts.pop()
    assert (context.id(), response.headers["x-request-id"]) == ("mine-1", "mine-1")
    assert dict(context.metadata) == {"traceparent": TRACE, "tracestate": "a=b"}
    assert response.headers["traceparent"] == f"00-{context.trace_id}-{context.span_id}-01"
    odd = {"x-request-id": "no spaces", "traceparent": "00-0-0-00"}
    response = await shop.post("/add", {"a": 1}, headers=odd)
    context = shop.shop.contexts.pop()
    assert context.id() == response.headers["x-request-id"] != "no spaces"
    assert not context.metadata
    assert "traceparent" not in response.headers


async def test_openapi_is_valid_and_the_index_tells_the_schemas(shop: Served) -> None:
    described = (await shop.http.get("/openapi.json")).json()
    OpenAPIV31SpecValidator(described).validate()
    assert set(described["paths"]) == {route.path for route in shop.services.routes}
    words = described["paths"]["/words"]["post"]
    assert (words["summary"], words["description"]) == (
        "Say the words of a text.",
        "As often as asked.",
    )
    assert set(words["responses"]["200"]["content"]) == {LINES, EVENTS, "application/json"}
    assert described["paths"]["/nothing"]["post"]["requestBody"]["required"] is False
    index = await shop.http.get("/")
    assert "\n" in index.text.strip()
    one = next(route for route in index.json()["routes"] if route["path"] == "/add")
    name = one["request"]["$ref"].removeprefix("#/components/schemas/")
    schema = index.json()["components"]["schemas"][name]
    assert schema["properties"]["b"] == {"type": "integer", "default": 1}
    assert schema["required"] == ["a"]
    head = await shop.http.head("/")
    assert (head.status_code, head.content) == (200, b"")


async def test_only_named_origins_may_read() -> None:
    origin = "https://chat.example"
    async with serving(cors_origins=[origin]) as shop:
        asked = {"origin": origin, "access-control-request-method": "POST"}
        preflight = await shop.http.options("/add", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "Content-Type" in preflight.headers["access-control-allow-headers"]
        answered = await shop.post("/add", {"a": 1}, headers={"origin": origin})
        assert answered.headers["access-control-allow-origin"] == origin
        other = await shop.post("/add", {"a": 1}, headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    async with serving() as shop:
        answered = await shop.http.options("/add", headers={"origin": origin})
        assert "access-control-allow-origin" not in answered.headers


async def test_a_taken_port_is_told(shop: Served) -> None:
    port = httpx.URL(shop.url).port
    with pytest.raises(ConfigError, match=rf"port {port} is in use.*--http-port"):
        async with serve_http(shop.services, port=port or 0):
            pass
    for host in ("192.0.2.1", "no..name"):
        with pytest.raises(ConfigError, match=rf"no HTTP server can listen on {host}:0 \(--http-host"):
            async with serve_http(shop.services, port=0, host=host):
                pass


async def test_two_that_share_a_port_both_get_connections(shop: Served) -> None:
    async with serve_http(shop.services, port=0, reuse_port=True) as url:
        async with serve_http(shop.services, port=httpx.URL(url).port or 0, reuse_port=True) as other:
            assert other == url


async def test_two_services_with_one_path_are_refused(shop: Served) -> None:
    twice = ServedServices(shop.runtime)
    twice.routes = shop.services.routes * 2
    with pytest.raises(ConfigError, match=r"/words is the path of demo\.Shop\.words already"):
        http_application(twice)


async def test_below_a_path_of_another_application(shop: Served) -> None:
    outer = web.Application()
    outer.add_subapp("/api/v2", http_application(shop.services))
    runner = web.AppRunner(outer, handle_signals=False)
    await runner.setup()
    try:
        await (site := web.TCPSite(runner, "127.0.0.1", 0)).start()
        host, port = runner.addresses[0][:2]
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as http:
            assert (await http.post("/api/v2/add", json={"a": 1})).json() == 2
            assert (await http.get("/api/v2/openapi.json")).json()["servers"] == [{"url": "/api/v2"}]
            assert (await http.get("/api/v2/")).json()["openapi"] == "/api/v2/openapi.json"
            missing = await http.post("/api/v2/nix")
            assert missing.headers["content-type"] == "application/problem+json"
            assert (await http.post("/add")).headers["content-type"].startswith("text/plain")
        assert site.name.startswith("http://")
    finally:
        await runner.cleanup()


async def test_requests_count_as_the_endpoints_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "dynamo.http")
    async with serving(runtime=make_runtime(system_port=0)) as shop:
        await shop.post("/words", {"text": "a b"})
        await shop.post("/words", {"text": 1})
        await shop.post("/breaks", {"after": 0, "kind": "StreamBrokenError"})
        status = shop.runtime.system_status_server_url()
        metrics = (await shop.http.get(f"{status}/metrics")).text

    def counted(name: str, *labels: str) -> list[float]:
        return [
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith(f"dynamo_component_{name}{{") and all(label in line for label in labels)
        ]

    words, breaks = 'dynamo_endpoint="words"', 'dynamo_endpoint="breaks"'
    assert counted("requests_total", words) == [2]
    assert counted("inflight_requests", words) == [0]
    assert counted("errors_total", words, 'error_type="BadPayloadError"') == [1]
    assert counted("errors_total", breaks, 'error_type="StreamBrokenError"') == [1]


def test_what_to_install_is_told() -> None:
    without = "import sys; sys.modules['aiohttp'] = None; import dynamo.adapters.http"
    done = subprocess.run(
        [sys.executable, "-c", without], text=True, capture_output=True, timeout=30, check=False
    )
    assert "MissingExtraError: HTTP routes need aiohttp: pip install" in done.stderr
