"""Clients that people use read the streams of ``@api``: curl, node's fetch, a browser's fetch."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the extra http is not installed")
pytest.importorskip("msgspec", reason="the extra services is not installed")

from aiohttp import web

from integration.http_service import serving, within

pytestmark = [pytest.mark.anyio, pytest.mark.optional_tool]

READ = """
const tell = %(tell)s;
const response = await fetch('%(url)s/paused', {method: 'POST', headers: {Accept: '%(accept)s'}});
const type = response.headers.get('content-type');
const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
const first = await reader.read();
await tell(`${response.status} ${type} ${JSON.stringify(first.value)}`);
let rest = '';
for (let part; !(part = await reader.read()).done;) rest += part.value;
await tell(JSON.stringify(rest));
const asked = {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{"after": 1}'};
try {
  await (await fetch('%(url)s/breaks', asked)).text();
  await tell('whole');
} catch (error) {
  await tell(`broken: ${error.name}`);
}
const leaving = new AbortController();
const hanging = await fetch('%(url)s/trickles', {method: 'POST', signal: leaving.signal});
await hanging.body.getReader().read();
leaving.abort();
await tell('left');
"""
LINES = (
    "200 application/x-ndjson " + r'"\"before\"\n"',
    r'"\"after\"\n"',
    "broken: TypeError",
    "left",
)
EVENTS = (
    "200 text/event-stream " + r'"data: \"before\"\n\n"',
    r'"data: \"after\"\n\nevent: end\ndata: {\"items\":2}\n\n"',
    *LINES[2:],
)


def tool(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return found


@asynccontextmanager
async def running(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()  # a browser ends its children then
        try:
            await asyncio.wait_for(process.communicate(), 5)
        finally:
            with suppress(ProcessLookupError):
                process.kill()


async def test_curl_reads_items_as_they_come() -> None:
    curl = tool("curl")
    async with serving() as shop:
        async with running(curl, "-sN", "-X", "POST", f"{shop.url}/paused") as process:
            assert process.stdout is not None
            assert await within(process.stdout.readline()) == b'"before"\n'
            shop.shop.opened.set()
            assert await within(process.stdout.read()) == b'"after"\n'
            assert await within(process.wait()) == 0
        json_in = ("-H", "content-type: application/json", "-d", '{"after": 1}')
        async with running(curl, "-sN", f"{shop.url}/breaks", *json_in) as process:
            text, _ = await within(process.communicate())
            assert text.startswith(b'0\n{"error":{')
            assert process.returncode == 18  # CURLE_PARTIAL_FILE
        async with running(curl, "-sN", "-X", "POST", f"{shop.url}/trickles") as process:
            assert process.stdout is not None
            assert await within(process.stdout.readline()) == b'"first"\n'
            process.send_signal(signal.SIGINT)
            await within(shop.shop.cancelled.wait())


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
async def test_fetch_in_node_reads_items_as_they_come(tmp_path: Path, accept: str) -> None:
    node = tool("node", "nodejs")
    first, *rest = LINES if accept == "*/*" else EVENTS
    async with serving() as shop:
        script = tmp_path / "read.mjs"
        script.write_text(READ % {"tell": "console.log", "url": shop.url, "accept": accept})
        async with running(node, str(script)) as process:
            assert process.stdout is not None
            assert (await within(process.stdout.readline())).decode().strip() == first
            shop.shop.opened.set()
            told = (await within(process.stdout.read())).decode().splitlines()
            assert told == rest
        await within(shop.shop.cancelled.wait())


async def test_fetch_in_a_browser_reads_items_of_an_allowed_origin(tmp_path: Path) -> None:
    chromium = tool("chromium", "chromium-browser", "google-chrome", "chrome")
    told: asyncio.Queue[str] = asyncio.Queue()

    async def page(request: web.Request) -> web.Response:
        tell = "(text) => fetch('/told', {method: 'POST', body: text})"
        script = READ % {"tell": tell, "url": shop_url, "accept": "text/event-stream"}
        return web.Response(text=f"<script type=module>{script}</script>", content_type="text/html")

    async def on_told(request: web.Request) -> web.Response:
        told.put_nowait(await request.text())
        return web.Response()

    other = web.Application()
    other.add_routes([web.get("/", page), web.post("/told", on_told)])
    runner = web.AppRunner(other, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with serving(cors_origins=[origin]) as shop:
            shop_url = shop.url
            options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run")
            async with running(chromium, *options, f"--user-data-dir={tmp_path}/profile", origin):
                async with asyncio.timeout(40):  # a browser starts slowly on a busy machine
                    assert await told.get() == EVENTS[0]
                shop.shop.opened.set()
                assert [await within(told.get()) for _ in EVENTS[1:]] == list(EVENTS[1:])
                await within(shop.shop.cancelled.wait())
    finally:
        await runner.cleanup()
