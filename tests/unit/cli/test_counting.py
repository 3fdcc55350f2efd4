"""What ``dynamo ls`` makes of the answers of status servers, good ones and others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from dynamo.cli import counting
from dynamo.cli.counting import Counts, Requests, requests_in
from dynamo.core.model import EndpointId, Instance

pytestmark = pytest.mark.anyio
PATH = EndpointId.parse("demo.backend.generate")
LABELS = 'dynamo_namespace="demo",dynamo_component="backend",dynamo_endpoint="generate"'
TEXT = f"""# TYPE dynamo_component_requests counter
dynamo_component_requests_total{{{LABELS},model="a}} 1"}} 40.0
dynamo_component_requests_total{{{LABELS},model="b"}} 2.0
dynamo_component_inflight_requests{{{LABELS}}} 3.0
dynamo_component_request_duration_seconds_count{{{LABELS}}} 9.0
dynamo_client_requests_total{{{LABELS}}} 100.0
"""


def an_instance(url: object) -> Instance:
    return Instance(
        endpoint_id=PATH, instance_id=1, incarnation=1, addresses=(), metadata={"status_url": url}
    )


@asynccontextmanager
async def status_server(answer: bytes, *, ends: bool = True) -> AsyncIterator[str]:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /metrics HTTP/1.0\r\n")
        writer.write(answer)
        if not ends:
            await reader.read()
            gone.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
        if not ends:
            await gone.wait()


def test_the_counts_of_an_endpoint_are_added_up_over_other_labels() -> None:
    assert requests_in(TEXT) == {PATH: Requests(42, 3)}
    assert requests_in("") == {}


async def test_each_server_is_asked_and_told_of_by_its_url() -> None:
    counts = Counts()
    async with status_server(b"HTTP/1.0 200 OK\r\n\r\n" + TEXT.encode()) as url:
        one = an_instance(url)
        await counts.ask([one, one])
        assert counts.of(one) == Requests(42, 3)
        other = attrs.evolve(one, endpoint_id=EndpointId.parse("a.b.c"))
        assert counts.of(other) is None
    await counts.ask([one])
    assert counts.of(one) is None


async def test_one_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "ASK_S", 0.2)
    counts = Counts()
    async with status_server(TEXT.encode()) as quick, status_server(b"HTTP/1.0", ends=False) as slow:
        await counts.ask([an_instance(slow), an_instance(quick)])
        assert counts.of(an_instance(quick)) == Requests(42, 3)
        assert counts.of(an_instance(slow)) is None


@pytest.mark.parametrize(
    "url", [None, 7, "", "127.0.0.1:1", "ftp://h", "http://", "http://[", "http://127.0.0.1:1"]
)
async def test_what_is_no_status_server_is_unknown(url: object) -> None:
    counts, one = Counts(), an_instance(url)
    await counts.ask([one])
    assert counts.of(one) is None


@pytest.mark.parametrize(
    "answer",
    [b"", b"\xff", TEXT.replace("40.0", "many").encode(), TEXT.replace("40.0", "Inf").encode(),
     TEXT.replace("demo", "no name").encode(), b"HTTP/1.0 404 Not Found\r\n\r\nnot here"],
)  # fmt: skip
async def test_what_is_no_metrics_text_is_unknown(answer: bytes) -> None:
    counts = Counts()
    async with status_server(answer) as url:
        await counts.ask([an_instance(url)])
        assert counts.of(an_instance(url)) is None
