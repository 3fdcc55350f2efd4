"""What ``/metrics`` shows when every family has samples is well-formed, and named as Prometheus advises."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from dynamo.runtime import DistributedRuntime, DynamoError
from unit.deployments import PATH, bounded, make_runtime

pytestmark = pytest.mark.anyio

LABELS = {"dynamo_namespace", "dynamo_component", "dynamo_endpoint"}

FAMILIES = {
    "dynamo_client_cancellation": "counter",
    "dynamo_client_errors": "counter",
    "dynamo_client_first_item_seconds": "histogram",
    "dynamo_client_inflight_requests": "gauge",
    "dynamo_client_request_duration_seconds": "histogram",
    "dynamo_client_requests": "counter",
    "dynamo_client_retries": "counter",
    "dynamo_component_cancellation": "counter",
    "dynamo_component_errors": "counter",
    "dynamo_component_first_item_seconds": "histogram",
    "dynamo_component_inflight_requests": "gauge",
    "dynamo_component_refused_requests": "counter",
    "dynamo_component_request_duration_seconds": "histogram",
    "dynamo_component_requests": "counter",
    "dynamo_component_uptime_seconds": "gauge",
    "dynamo_discovery_changes": "counter",
    "dynamo_discovery_instances": "gauge",
    "dynamo_discovery_lease_held": "gauge",
    "dynamo_discovery_leases_lost": "counter",
    "dynamo_discovery_stale": "gauge",
}
"""By Prometheus' convention the samples of a counter end in ``_total``."""

OWN = {"tokens": "counter", "kv_blocks": "gauge", "batch_size": "histogram"}


async def answer(request: str) -> AsyncIterator[int]:
    match request:
        case "fail":
            raise ValueError('with "quotes", a \\ and\na line break')
        case "hold":
            await asyncio.Event().wait()
    yield 1


async def use(runtime: DistributedRuntime) -> None:
    """An answer, an error, and a refusal that was retried, after which the caller of the held call leaves."""
    client = await runtime.endpoint(PATH).client()
    await bounded(client.wait_for_instances())
    assert await client.call("x") == 1
    with pytest.raises(DynamoError):
        await client.call("fail")
    async with client.stream("hold"):
        with pytest.raises(DynamoError):
            await client.call("x", timeout_s=0.1)
    metrics = runtime.endpoint(PATH).metrics
    metrics.counter("tokens", "Tokens made.", ["kind"]).labels('a "kind"\\\n').inc()
    metrics.gauge("kv_blocks", "Blocks in use.").set(3)
    metrics.histogram("batch_size", "Requests in a batch.", buckets=[1, 8]).observe(3)


@pytest.fixture
async def scrape() -> str:
    labels: dict[str, Any] = {"model": 'a "model"\\\nof two lines'}
    async with make_runtime(system_port=0) as runtime, aiohttp.ClientSession() as session:
        async with runtime.endpoint(PATH).serve(answer, labels=labels, max_inflight=1, queue=0):
            await use(runtime)
            async with session.get(f"{runtime.system_status_server_url()}/metrics") as response:
                assert response.content_type == "text/plain"
                return await response.text()


def families(text: str) -> dict[str, Metric]:
    found = list(text_string_to_metric_families(text))
    by_name = {family.name: family for family in found}
    assert len(by_name) == len(found), "a family appears twice"
    return by_name


async def test_every_family_has_its_name_its_kind_a_help_and_samples(scrape: str) -> None:
    found = families(scrape)
    created = {name for name in found if name.endswith("_created")}  # prometheus-client's, of the own ones
    assert created == {"tokens_created", "batch_size_created"}
    assert {name: found[name].type for name in found.keys() - created} == FAMILIES | OWN
    for family in found.values():
        assert family.documentation.endswith("."), f"{family.name} has no sentence of help"
        assert family.samples, f"{family.name} has no samples"
        names = {sample.name for sample in family.samples}
        assert (names == {f"{family.name}_total"}) == (family.type == "counter"), names


async def test_what_belongs_to_an_endpoint_bears_its_labels_and_texts_come_back_as_they_were(
    scrape: str,
) -> None:
    found = families(scrape)
    process_wide = {"dynamo_component_uptime_seconds", "dynamo_discovery_changes"} | {
        name for name in FAMILIES if name.startswith("dynamo_discovery_lease")
    }
    for name in found.keys() - process_wide:
        for sample in found[name].samples:
            assert sample.labels.keys() >= LABELS, sample
    served = found["dynamo_component_requests"].samples[0]
    assert served.labels["model"] == 'a "model"\\\nof two lines'
    assert found["tokens"].samples[0].labels["kind"] == 'a "kind"\\\n'


async def test_histograms_count_up_to_their_last_bucket(scrape: str) -> None:
    spreads = [family for family in families(scrape).values() if family.type == "histogram"]
    assert len(spreads) == 5
    for family in spreads:
        buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
        counts = [sample.value for sample in buckets]
        bounds = [float(sample.labels["le"]) for sample in buckets]
        assert bounds == sorted(bounds)
        assert counts == sorted(counts)
        assert bounds[-1] == float("inf")
        assert [s.value for s in family.samples if s.name.endswith("_count")] == [counts[-1]]


@pytest.mark.optional_tool
async def test_promtool_accepts_it_without_a_remark(scrape: str) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed: it comes with Debian's package prometheus")
    checked = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        input=scrape,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
