"""The status server over real HTTP: liveness, readiness and its reasons, metrics, engine routes, its end."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dynamo.adapters.telemetry.status_server import MAX_BODY_BYTES
from dynamo.runtime import ConfigError, ConflictError, Context, DistributedRuntime, DynamoError
from dynamo.testing.leaks import Traces
from unit.deployments import PATH, bounded, make_runtime, store, until

pytestmark = pytest.mark.anyio

LABELS = {"dynamo_namespace": "demo", "dynamo_component": "backend", "dynamo_endpoint": "generate"}


async def count(request: int) -> AsyncIterator[int]:
    if request < 0:
        raise ValueError("below nothing")
    for number in range(request):
        yield number


class Site:
    """A runtime's status server, as a probe sees it."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    async def post(self, path: str, data: bytes = b"") -> tuple[int, Any]:
        async with self.session.post(self.url + path, data=io.BytesIO(data)) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    async def samples(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample of a scrape that is well-formed: no family and no sample twice."""
        status, text = await self.get("/metrics")
        assert status == 200
        found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        names: list[str] = []
        for family in text_string_to_metric_families(text):
            names.append(family.name)
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in found
                found[key] = sample.value
        assert len(names) == len(set(names))
        return found

    async def value(self, name: str, **labels: str) -> float | None:
        return (await self.samples()).get((name, tuple(sorted(labels.items()))))


def site_of(session: aiohttp.ClientSession, runtime: DistributedRuntime) -> Site:
    url = runtime.system_status_server_url()
    assert url is not None
    return Site(session, url)


@asynccontextmanager
async def observed(**options: Any) -> AsyncIterator[tuple[DistributedRuntime, Site]]:
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        async with make_runtime(**{"system_port": 0, **options}) as runtime:
            yield runtime, site_of(session, runtime)


# When it is there.


async def test_without_a_port_there_is_none() -> None:
    async with make_runtime() as runtime:
        assert runtime.system_status_server_url() is None


async def test_the_variables_turn_it_on_on_loopback_where_discovery_stays_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_PORT", "0")
    async with make_runtime() as runtime:
        url = runtime.system_status_server_url()
        assert url is not None
        assert url.startswith("http://127.0.0.1:")
        monkeypatch.setenv("DYN_SYSTEM_HOST", "127.0.0.2")
        async with make_runtime() as other:
            assert (other.system_status_server_url() or "").startswith("http://127.0.0.2:")


async def test_a_runtime_without_a_block_has_it_from_its_first_await_to_its_shutdown() -> None:
    runtime = make_runtime(system_port=0)
    assert runtime.system_status_server_url() is None
    serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(count))
    async with aiohttp.ClientSession() as session:
        await until(lambda: runtime.serving and runtime.health().ok)
        site = site_of(session, runtime)
        assert (await site.get("/live"))[0] == 200
        await bounded(runtime.shutdown())
        await bounded(serving)
        assert runtime.system_status_server_url() is None
        with pytest.raises(aiohttp.ClientConnectionError):
            await site.get("/live")


async def test_a_port_in_use_is_one_clear_error_and_leaves_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        before = Traces.now()
        runtime = make_runtime(system_port=port)
        with pytest.raises(ConflictError, match=rf"127\.0\.0\.1:{port} \(system_port\): the port is in use"):
            async with runtime:
                pass
        assert Traces.now().beyond(before) == []
        lazy = make_runtime(system_port=port)
        with pytest.raises(ConflictError, match="the port is in use"):
            await lazy.endpoint(PATH).client()
        await lazy.shutdown()


@pytest.mark.parametrize("host", ["192.0.2.1", "no..name"])
async def test_a_host_that_is_not_ours_is_told(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot listen on {host}:0 \(system_port, system_host\): "):
        async with make_runtime(system_port=0, system_host=host):
            pass


async def test_nothing_is_left_when_the_runtime_has_ended() -> None:
    async with observed() as (_, site):  # imports what it needs
        await site.get("/health")
    before = Traces.now()
    async with observed() as (_, site):
        await site.get("/metrics")
    assert Traces.now().beyond(before) == []


def test_a_missing_package_is_told_by_its_extra() -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from dynamo.runtime import DistributedRuntime\n"
        "DistributedRuntime(discovery='mem', request_plane='mem', system_port=0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "MissingExtraError: DYN_SYSTEM_PORT:" in done.stderr
    assert "needs the package 'aiohttp': pip install 'dynamo-runtime-py[telemetry]'" in done.stderr


# Liveness.


async def test_live_is_live_whatever_is_ready() -> None:
    async with observed() as (runtime, site):
        runtime.set_health_status(False)
        status, body = await site.get("/live")
        assert (status, body["status"]) == (200, "live")
        assert (await site.get("/health"))[0] == 503


@pytest.mark.blocks_loop
async def test_a_stalled_loop_answers_no_liveness_probe() -> None:
    async with observed() as (_, site):
        where = urlsplit(site.url)
        seen: list[str] = []
        probed = threading.Event()

        def probe(timeout_s: float) -> None:
            assert where.hostname is not None
            connection = http.client.HTTPConnection(where.hostname, where.port, timeout=timeout_s)
            try:
                connection.request("GET", "/live")
                seen.append(str(connection.getresponse().status))
            except TimeoutError:
                seen.append("no answer")
            finally:
                connection.close()
                probed.set()

        probing = threading.Thread(target=probe, args=(0.3,))
        probing.start()
        probed.wait(10)  # on the loop, which so stands still
        probing.join()
        await asyncio.to_thread(probe, 5.0)
        assert seen == ["no answer", "200"]


# Readiness.


async def test_health_is_ready_while_endpoints_serve_and_not_before_or_after() -> None:
    async with observed() as (runtime, site):
        status, body = await site.get("/health")
        assert (status, body["status"], body["endpoints"]) == (503, "notready", {})
        assert "nothing is served yet" in body["reasons"][0]
        async with runtime.endpoint(PATH).serve(count):
            status, body = await site.get("/health")
            assert (status, body["status"], body["reasons"]) == (200, "ready", [])
            assert body["endpoints"] == {"generate": "ready"}
            assert body["served"] == {PATH: {"status": "ready"}}
            assert {name: link["status"] for name, link in body["links"].items()} == {
                "discovery": "ready",
                "request_plane": "ready",
                "lease": "ready",
            }
            assert set(body["uptime"]) == {"secs", "nanos"}
        assert (await site.get("/health"))[0] == 503


async def test_the_paths_of_the_probes_can_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_SYSTEM_HEALTH_PATH", "/healthz")
    monkeypatch.setenv("DYN_SYSTEM_LIVE_PATH", "/healthz/live")
    async with observed() as (_, site):
        assert (await site.get("/healthz/live"))[1]["status"] == "live"
        assert (await site.get("/healthz"))[1]["status"] == "notready"
        assert ((await site.get("/live"))[0], (await site.get("/health"))[0]) == (404, 404)


@pytest.mark.parametrize(
    "health,live,said",
    [
        ("/health", "/metrics", "DYN_SYSTEM_LIVE_PATH=/metrics: the status server has /metrics, /engine/"),
        (
            "/engine/x",
            "/live",
            "DYN_SYSTEM_HEALTH_PATH=/engine/x: the status server has /metrics, /live, /",
        ),
        ("/same", "/same", "DYN_SYSTEM_HEALTH_PATH=/same: the status server has /metrics, /same, /engine/"),
    ],
)
async def test_a_path_that_has_another_use_is_refused(
    health: str, live: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_HEALTH_PATH", health)
    monkeypatch.setenv("DYN_SYSTEM_LIVE_PATH", live)
    with pytest.raises(ConfigError, match=f"^{said}"):
        async with make_runtime(system_port=0):
            pass


async def test_a_program_that_only_calls_may_be_ready_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_SYSTEM_STARTING_HEALTH_STATUS", "ready")
    async with observed() as (runtime, site):
        assert (await site.get("/health"))[0] == 200
        runtime.set_health_status(False)
        assert (await site.get("/health"))[0] == 503


async def test_named_endpoints_must_be_served_before_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", '["generate"]')
    async with observed() as (runtime, site), runtime.endpoint("demo.backend.load").serve(count):
        status, body = await site.get("/health")
        assert (status, body["endpoints"]) == (503, {"load": "ready"})
        variable = "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS"
        assert body["reasons"] == [
            f"starting: the endpoint 'generate', which {variable} names, is not served"
        ]
        async with runtime.endpoint(PATH).serve(count):
            assert (await site.get("/health"))[0] == 200


async def test_a_program_that_only_calls_says_so_itself() -> None:
    async with observed() as (runtime, site):
        runtime.set_health_status(True)
        assert (await site.get("/health"))[0] == 200
        runtime.set_health_status(False)
        status, body = await site.get("/health")
        assert (status, body["reasons"]) == (503, ["set_health_status(False)"])


async def test_health_says_what_a_start_waits_for() -> None:
    async with observed() as (runtime, site):
        client = await runtime.endpoint("demo.other.x").client()  # opens the store
        store(runtime).outage(True)
        serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(count))
        await until(lambda: runtime.serving)
        status, body = await site.get("/health")
        assert (status, body["endpoints"]) == (503, {"generate": "notready"})
        assert "starting" in body["reasons"][0]
        store(runtime).outage(False)
        await until(lambda: runtime.readiness().ready)
        assert (await site.get("/health"))[0] == 200
        await client.aclose()
    await bounded(serving)


async def test_a_backend_that_is_away_is_shown_and_leaves_it_ready() -> None:
    async with observed() as (runtime, site):
        async with runtime.endpoint(PATH).serve(count):
            client = await runtime.endpoint(PATH).client()
            await client.wait_for_instances()
            store(runtime).outage(True)
            await until(lambda: any(one.stale for one in runtime.watched))
            status, body = await site.get("/health")
            assert (status, body["links"]["discovery"]["status"]) == (200, "stale")
            assert await site.value("dynamo_discovery_stale", **LABELS) == 1
            store(runtime).outage(False)
            await until(lambda: not any(one.stale for one in runtime.watched))
            assert await site.value("dynamo_discovery_stale", **LABELS) == 0


async def test_a_draining_runtime_answers_503_until_what_runs_has_finished() -> None:
    finish = asyncio.Event()

    async def slowly(request: Any) -> Any:
        await finish.wait()
        return "done"

    async with observed() as (runtime, site):
        async with runtime.endpoint(PATH).serve(slowly):
            client = await runtime.endpoint(PATH).client()
            await client.wait_for_instances()
            call = asyncio.ensure_future(client.call(1))
            while await site.value("dynamo_component_inflight_requests", **LABELS) != 1:
                await asyncio.sleep(0.01)
            ending = runtime.shutdown()
            status, body = await site.get("/health")
            assert (status, body["status"]) == (503, "notready")
            assert "shutting down" in body["reasons"][0]
            assert (await site.get("/live"))[0] == 200
            finish.set()
            assert await bounded(call) == "done"
            await bounded(ending)
            with pytest.raises(aiohttp.ClientConnectionError):
                await site.get("/health")


# Metrics.


async def test_requests_are_counted_under_dynamos_names() -> None:
    async with observed() as (runtime, site):
        async with runtime.endpoint(PATH).serve(count, labels={"model": "tiny"}):
            client = await runtime.endpoint(PATH).client()
            await client.wait_for_instances()
            assert await client.call(1) == 0
            assert [item async for item in client.stream(3)] == [0, 1, 2]
            with pytest.raises(DynamoError, match="below nothing"):
                await client.call(-1)
            served = {**LABELS, "model": "tiny"}
            value = site.value
            assert await value("dynamo_component_requests_total", **served) == 3
            assert await value("dynamo_component_inflight_requests", **served) == 0
            assert await value("dynamo_component_request_duration_seconds_count", **served) == 3
            assert await value("dynamo_component_request_duration_seconds_bucket", **served, le="+Inf") == 3
            assert await value("dynamo_component_first_item_seconds_count", **served) == 2
            assert await value("dynamo_component_errors_total", **served, error_type="ValueError") == 1
            assert await value("dynamo_client_requests_total", **LABELS) == 3
            assert await value("dynamo_client_errors_total", **LABELS, error_type="RemoteError") == 1
            assert await value("dynamo_discovery_instances", **LABELS, state="ready") == 1
            assert await value("dynamo_discovery_lease_held") == 1
            assert (await value("dynamo_component_uptime_seconds") or 0) > 0
        async with runtime.endpoint(PATH).serve(count, labels={"model": "tiny"}):
            assert await site.value("dynamo_component_requests_total", **served) == 3, "counts go on"


async def test_refusals_retries_and_cancellations_are_told_from_errors() -> None:
    async def wait_for_ever(request: Any, context: Context) -> Any:
        await asyncio.Event().wait()

    async with observed() as (runtime, site):
        async with runtime.endpoint(PATH).serve(wait_for_ever, max_inflight=1, queue=0):
            client = await runtime.endpoint(PATH).client()
            await client.wait_for_instances()
            first = asyncio.ensure_future(client.call(1))
            while await site.value("dynamo_component_inflight_requests", **LABELS) != 1:
                await asyncio.sleep(0.01)
            with pytest.raises(DynamoError):
                await client.call(2, timeout_s=0.1)
            overloaded = {**LABELS, "error_type": "OverloadedError"}
            refused = await site.value("dynamo_component_refused_requests_total", **overloaded)
            assert refused
            assert await site.value("dynamo_client_retries_total", **overloaded) == refused
            first.cancel()
            while await site.value("dynamo_component_cancellation_total", **LABELS) != 1:
                await asyncio.sleep(0.01)
            names = [name for name, _ in await site.samples()]
            assert "dynamo_component_errors_total" not in names


async def test_runtimes_of_one_process_count_apart() -> None:
    async with observed() as (one, site), observed() as (other, other_site):
        async with one.endpoint(PATH).serve(count), other.endpoint(PATH).serve(count):
            client = await one.endpoint(PATH).client()
            await client.wait_for_instances()
            one.endpoint(PATH).metrics.counter("tokens", "Tokens.").inc(5)
            other.endpoint(PATH).metrics.counter("tokens", "Tokens.").inc(7)
            await client.call(1)
            assert await site.value("dynamo_component_requests_total", **LABELS) == 1
            assert await other_site.value("dynamo_component_requests_total", **LABELS) == 0
            assert await site.value("tokens_total", **LABELS) == 5
            assert await other_site.value("tokens_total", **LABELS) == 7


async def test_a_programs_own_metrics_bear_the_labels_of_their_endpoint() -> None:
    async with observed() as (runtime, site):
        generate, load = runtime.endpoint(PATH), runtime.endpoint("demo.backend.load")
        async with generate.serve(count, labels={"model": "tiny"}):
            generate.metrics.counter("tokens", "Tokens.", ["kind"]).labels("prompt").inc(3)
            load.metrics.counter("tokens", "Tokens.", ["kind"]).labels(kind="prompt").inc(4)
            generate.metrics.gauge("kv_blocks", "Blocks.").set(17)
            generate.metrics.histogram("batch", "Sizes.", buckets=[1, 8]).observe(5)
            assert generate.metrics.counter("tokens", "Tokens.", ["kind"]) is generate.metrics.made["tokens"]
            tiny = {**LABELS, "model": "tiny"}
            assert await site.value("tokens_total", **tiny, kind="prompt") == 3
            loading = {**LABELS, "dynamo_endpoint": "load"}
            assert await site.value("tokens_total", **loading, kind="prompt") == 4
            assert await site.value("kv_blocks", **tiny) == 17
            assert await site.value("batch_bucket", **tiny, le="8.0") == 1


async def test_callbacks_bring_metrics_up_to_date_and_bring_text_of_their_own() -> None:
    async with observed() as (runtime, site):
        metrics = runtime.endpoint(PATH).metrics
        gauge = metrics.gauge("depth", "Depth.")
        calls: list[int] = []

        def update() -> None:
            calls.append(1)
            gauge.set(len(calls))

        def text() -> str:
            return "# TYPE vllm_requests gauge\nvllm_requests 3"

        metrics.register_prometheus_update_callback(update)
        for path in (PATH, "demo.backend.load"):
            runtime.endpoint(path).metrics.register_prometheus_expfmt_callback(text)
        assert await site.value("depth", **LABELS) == 1
        assert await site.value("depth", **LABELS) == 2
        assert await site.value("vllm_requests") == 3


async def test_a_callback_that_raises_spoils_no_scrape_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> str:
        raise RuntimeError("engine is gone")

    async with observed() as (runtime, site):
        runtime.endpoint(PATH).metrics.register_prometheus_expfmt_callback(fail)
        for _ in range(3):
            assert (await site.value("dynamo_component_uptime_seconds") or 0) > 0
    assert sum("metrics callback failed" in record.getMessage() for record in caplog.records) == 1


# Engine routes.


async def test_an_engine_route_gets_json_and_gives_json() -> None:
    got: list[Any] = []

    async def sleep(body: Any) -> Any:
        got.append(body)
        return {"status": "ok", "level": body.get("level")}

    async with observed() as (runtime, site):
        runtime.register_engine_route("sleep", sleep)
        runtime.register_engine_route("control/profile", sleep)
        assert await site.post("/engine/sleep", b'{"level": 2}') == (200, {"status": "ok", "level": 2})
        assert await site.post("/engine/control/profile") == (200, {"status": "ok", "level": None})
        assert got == [{"level": 2}, {}]
        status, body = await site.post("/engine/slep", b"{}")
        assert (status, body["message"]) == (404, "no engine route 'slep'; known: control/profile, sleep")
        assert (await site.get("/engine/sleep"))[0] == 405


@pytest.mark.parametrize(
    "body,status,words",
    [
        (b"{", 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b'{"fail": 1}', 500, "no GPU left"),
        (b'{"odd": 1}', 500, "not JSON serializable"),
    ],
)
async def test_what_fails_in_an_engine_route_is_told_by_status_and_text(
    body: bytes, status: int, words: str
) -> None:
    async def route(given: Any) -> Any:
        if "fail" in given:
            raise RuntimeError("no GPU left")
        return object()

    async with observed() as (runtime, site):
        runtime.register_engine_route("route", route)
        found, answer = await site.post("/engine/route", body)
        assert found == status
        assert words in answer["message"]
        assert (await site.get("/live"))[0] == 200


async def test_a_body_past_the_bound_is_refused() -> None:
    async def route(given: Any) -> Any:
        raise AssertionError("it was called")

    async with observed() as (runtime, site):
        runtime.register_engine_route("route", route)
        assert (await site.post("/engine/route", b"1" * (MAX_BODY_BYTES + 1)))[0] == 413


async def test_a_client_that_leaves_cancels_its_engine_route() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def route(given: Any) -> Any:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with observed() as (runtime, site):
        runtime.register_engine_route("route", route)
        asking = asyncio.ensure_future(site.post("/engine/route"))
        await bounded(started.wait())
        asking.cancel()
        await bounded(cancelled.wait())


async def test_an_engine_route_that_hangs_does_not_hold_up_the_end() -> None:
    started = asyncio.Event()

    async def route(given: Any) -> Any:
        started.set()
        await asyncio.Event().wait()

    async with observed() as (runtime, site):
        runtime.register_engine_route("route", route)
        asking = asyncio.ensure_future(site.post("/engine/route"))
        await bounded(started.wait())
        await bounded(runtime.shutdown())
        with pytest.raises(aiohttp.ClientConnectionError):
            await bounded(asking)


async def test_an_engine_route_has_a_name_of_its_own() -> None:
    async def route(given: Any) -> Any:
        return None

    runtime = make_runtime()
    runtime.register_engine_route("route", route)
    with pytest.raises(ConfigError, match="registered already"):
        runtime.register_engine_route("/route/", route)
    with pytest.raises(ConfigError, match="expected a name"):
        runtime.register_engine_route("", route)


# Canaries.

CANARY: dict[str, Any] = {"health_check_enabled": True, "canary_wait_s": 0.05, "health_check_timeout_s": 0.2}


async def test_an_idle_endpoint_that_fails_its_canary_is_not_ready_until_it_passes() -> None:
    broken = asyncio.Event()

    async def handler(request: Any) -> AsyncIterator[Any]:
        assert request == {"prompt": "x"}
        if broken.is_set():
            raise RuntimeError("CUDA error")
        yield 1

    async with observed(**CANARY) as (runtime, site):
        async with runtime.endpoint(PATH).serve(handler, health_check_payload={"prompt": "x"}):
            while not await site.value("dynamo_component_requests_total", **LABELS):
                await asyncio.sleep(0.01)
            assert (await site.get("/health"))[0] == 200
            broken.set()
            await until(lambda: not runtime.health().ok)
            status, body = await site.get("/health")
            assert (status, body["endpoints"]) == (503, {"generate": "notready"})
            assert "CUDA error" in body["reasons"][0]
            broken.clear()
            await until(lambda: runtime.health().ok)
            assert (await site.get("/health"))[0] == 200


async def test_a_handler_that_hangs_fails_its_canary_and_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def hang(request: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with observed(**CANARY) as (runtime, site):
        serving = asyncio.ensure_future(
            runtime.endpoint(PATH).serve_endpoint(hang, health_check_payload={"prompt": "x"})
        )
        await bounded(cancelled.wait())
        await until(lambda: not runtime.health().ok)
        _, body = await site.get("/health")
        assert "no answer to its health_check_payload within 0.2 s" in body["reasons"][0]
        await bounded(runtime.shutdown())
        await bounded(serving)


async def test_a_canary_asks_only_who_is_idle_and_only_where_it_is_enabled() -> None:
    asked: list[Any] = []
    release = asyncio.Event()

    async def handler(request: Any) -> Any:
        asked.append(request)
        if request == "work":
            await release.wait()

    async with make_runtime(**{**CANARY, "health_check_enabled": False}) as quiet:
        async with quiet.endpoint(PATH).serve(handler, health_check_payload="probe"):
            await asyncio.sleep(0.2)
    assert asked == []
    async with make_runtime(**CANARY) as runtime:
        async with runtime.endpoint(PATH).serve(handler, health_check_payload="probe", max_inflight=1):
            client = await runtime.endpoint(PATH).client()
            await client.wait_for_instances()
            await until(lambda: "probe" in asked)
            call = asyncio.ensure_future(client.call("work"))
            await until(lambda: "work" in asked)
            before = asked.count("probe")
            await asyncio.sleep(0.3)
            assert asked.count("probe") == before, "it would have waited behind the work"
            assert runtime.health().ok
            release.set()
            await bounded(call)
            await until(lambda: asked.count("probe") > before)
