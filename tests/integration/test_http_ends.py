"""How requests over HTTP end: clients leave, deadlines pass, queues are full, readers slow, servers drain."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import httpx
import pytest

pytest.importorskip("aiohttp", reason="the extra http is not installed")
pytest.importorskip("msgspec", reason="the extra services is not installed")

from aiohttp import web

from dynamo.adapters.http import answers, application, http_application, server
from dynamo.testing.leaks import no_leaks
from integration.http_service import Served, make_runtime, serving, within

pytestmark = pytest.mark.anyio


def asking(path: str, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1".encode(), b"host: x", *headers]
    if body:
        lines += [b"content-type: application/json", b"content-length: %d" % len(body)]
    return b"\r\n".join([*lines, b"", body])


async def connected(shop: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = httpx.URL(shop.url)
    return await asyncio.open_connection(url.host, url.port)


@pytest.mark.parametrize("path", ["/hangs", "/trickles", "/quiet_start"])
async def test_a_client_that_leaves_cancels_the_method(path: str) -> None:
    async with no_leaks(), serving() as shop:
        reader, writer = await connected(shop)
        writer.write(asking(path))
        await within(shop.shop.entered.wait())
        if path == "/trickles":
            assert (await within(reader.readuntil(b'"first"\n'))).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.transport.abort()
        await within(shop.shop.cancelled.wait())
        assert [context.is_killed() for context in shop.shop.contexts] == [True]


async def test_leaving_is_noticed_below_an_application_that_does_not_cancel_handlers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(application, "TICK_S", 0.02)
    async with serving() as shop:
        outer = web.Application()
        outer.add_subapp("/api", http_application(shop.services))
        runner = web.AppRunner(outer, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            _, writer = await asyncio.open_connection(host, port)
            writer.write(asking("/api/hangs"))
            await within(shop.shop.entered.wait())
            writer.close()
            await within(shop.shop.cancelled.wait())
        finally:
            await runner.cleanup()


async def test_a_deadline_is_the_methods_too_and_ends_it() -> None:
    async with serving() as shop:
        response = await shop.post("/hangs", headers={"x-request-timeout": "0.05"})
        assert (response.status_code, response.json()["error"]) == (504, "DeadlineError")
        assert "0.05 s passed in the method of demo.Shop.hangs" in response.json()["detail"]
        await within(shop.shop.cancelled.wait())
        await shop.post("/add", {"a": 1}, headers={"x-request-timeout": "60"})
        left_s = shop.shop.contexts.pop().timeout_s
        assert left_s is not None
        assert 0 < left_s <= 60


async def test_a_deadline_in_mid_stream_is_told_in_the_stream() -> None:
    async with serving() as shop:
        text = ""
        with pytest.raises(httpx.RemoteProtocolError):
            async with shop.http.stream(
                "POST", "/trickles", headers={"x-request-timeout": "0.1"}
            ) as response:
                async for part in response.aiter_text():
                    text += part
        first, last = text.splitlines()
        assert (first, json.loads(last)["error"]["status"]) == ('"first"', 504)


async def under_way(shop: Served, count: int) -> None:
    """Wait until so many requests run or wait: no event tells of those that wait."""
    async with asyncio.timeout(10):
        while shop.runtime._answers != count:
            await asyncio.sleep(0.001)


async def test_a_full_queue_refuses_and_one_who_leaves_it_makes_room() -> None:
    async with serving() as shop:
        running = asyncio.create_task(shop.post("/one", 1))
        await within(shop.shop.entered.wait())
        _, writer = await connected(shop)
        writer.write(asking("/one", b"2"))
        await under_way(shop, 2)
        refused = await shop.post("/one", 3)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "1 wait (queue)" in refused.json()["detail"]
        assert (await shop.post("/add", {"a": 1})).status_code == 200  # each route has its own
        writer.transport.abort()
        await under_way(shop, 1)
        late = await shop.post("/one", 4, headers={"x-request-timeout": "0.05"})
        assert "passed in the queue of demo.Shop.one" in late.json()["detail"]
        waiting = asyncio.create_task(shop.post("/one", 5))
        await under_way(shop, 2)
        shop.shop.opened.set()
        assert [(await within(one)).json() for one in (running, waiting)] == [1, 5]


async def test_a_reader_that_takes_nothing_stops_the_method_and_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as shop:
        reader, writer = await connected(shop)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(asking("/floods", b'{"size": 65536}'))
        before = -1
        async with asyncio.timeout(10):
            while before != shop.shop.produced or not before:
                before = shop.shop.produced
                await asyncio.sleep(0.1)  # nothing happens any more: no event tells of it
        assert before < 400  # the kernel's buffers and ours, in items of 64 KiB
        assert not shop.shop.cancelled.is_set()
        monkeypatch.setattr(application, "STALL_S", 0.1)
        await within(shop.shop.cancelled.wait())
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        with suppress(ConnectionError):
            await within(reader.read())
        writer.close()


async def test_quiet_event_streams_are_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "TICK_S", 0.01)
    monkeypatch.setattr(answers, "KEEP_ALIVE_S", 0.02)
    async with serving() as shop:
        events = {"accept": "text/event-stream"}
        async with shop.http.stream("POST", "/paused", headers=events) as response:
            lines = response.aiter_lines()
            seen = [await within(anext(lines)) for _ in range(4)]
            assert seen == ['data: "before"', "", ": keep-alive", ""]
            shop.shop.opened.set()
            rest = [line async for line in lines if line and not line.startswith(":")]
            assert rest == ['data: "after"', "event: end", 'data: {"items":2}']


async def test_draining_lets_streams_finish_and_refuses_what_is_new() -> None:
    async with serving(runtime=make_runtime(drain_grace_s=0.05)) as shop:
        async with shop.http.stream("POST", "/paused") as response:
            lines = response.aiter_lines()
            assert await anext(lines) == '"before"'
            ending = shop.runtime.shutdown()
            while (refused := await shop.post("/add", {"a": 1})).status_code == 200:
                assert refused.headers["connection"] == "close"  # in the grace
            assert (refused.status_code, refused.json()["error"]) == (503, "DrainingError")
            assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "1")
            shop.shop.opened.set()
            assert [line async for line in lines] == ['"after"']
        await within(ending)


async def test_a_stream_that_outlasts_the_drain_is_cut_and_told() -> None:
    async with serving(runtime=make_runtime(graceful_shutdown_timeout_s=0.1)) as shop:
        with pytest.raises(httpx.RemoteProtocolError):
            async with shop.http.stream("POST", "/trickles") as response:
                lines = response.aiter_lines()
                assert await anext(lines) == '"first"'
                ending = shop.runtime.shutdown()
                problem = json.loads(await within(anext(lines)))["error"]
                assert (problem["status"], problem["error"]) == (503, "StreamBrokenError")
                await anext(lines)
        assert shop.shop.cancelled.is_set()
        await within(ending)


async def test_one_who_waits_in_the_queue_is_turned_away_by_the_drain() -> None:
    async with serving() as shop:
        running = asyncio.create_task(shop.post("/one", 1))
        await within(shop.shop.entered.wait())
        waiting = asyncio.create_task(shop.post("/one", 2))
        await under_way(shop, 2)
        shop.runtime.shutdown()
        assert (await within(waiting)).status_code == 503
        shop.shop.opened.set()
        assert (await within(running)).json() == 1


async def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_S", 0.1)
    async with serving() as shop:
        speaking, silent, halting = [await connected(shop) for _ in range(3)]
        speaking[1].write(asking("/trickles"))
        halting[1].write(b"POST /add HTTP/1.1\r\n")
        await within(speaking[0].readuntil(b'"first"'))
        assert await within(silent[0].read()) == b""
        assert await within(halting[0].read()) == b""
        assert not shop.shop.cancelled.is_set()
        for _, writer in (speaking, silent, halting):
            writer.close()


async def test_a_body_that_is_too_large_is_refused_before_it_comes() -> None:
    async with serving(max_body_bytes=100) as shop:
        reader, writer = await connected(shop)
        writer.write(asking("/add", b"", b"content-type: application/json", b"content-length: 101"))
        answer = await within(reader.readuntil(b"\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"Connection: close" in answer
        writer.close()
