"""Telemetry: which one a runtime has, what it may be called, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dynamo.adapters.telemetry.prometheus import BUCKETS, PrometheusTelemetry
from dynamo.core.model import EndpointId, Instance
from dynamo.core.ports.discovery import Put, Removed, Snapshot, Stale
from dynamo.core.ports.telemetry import Side
from dynamo.runtime import ConfigError, DistributedRuntime
from unit.deployments import PATH, bounded, make_runtime

pytestmark = pytest.mark.anyio

ENDPOINT = EndpointId.parse(PATH)


async def echo(request: Any) -> Any:
    return request


def shown(telemetry: PrometheusTelemetry) -> str:
    registry = CollectorRegistry()
    registry.register(telemetry)
    return generate_latest(registry).decode()


# Which one.


async def served_once(runtime: DistributedRuntime) -> object:
    async with runtime, runtime.endpoint(PATH).serve(echo):
        client = await runtime.endpoint(PATH).client()
        await bounded(client.wait_for_instances())
        assert await client.call("x") == "x"
        return runtime.observing.telemetry


async def test_a_runtime_has_none_unless_asked() -> None:
    assert await served_once(make_runtime()) is None


async def test_the_status_server_brings_the_one_for_prometheus_and_a_variable_takes_it_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(await served_once(make_runtime(system_port=0)), PrometheusTelemetry)
    monkeypatch.setenv("DYN_TELEMETRY", "none")
    assert await served_once(make_runtime(system_port=0)) is None


async def test_it_can_be_named_without_a_status_server() -> None:
    telemetry = await served_once(make_runtime(telemetry="prometheus"))
    assert isinstance(telemetry, PrometheusTelemetry)
    assert 'dynamo_endpoint="generate"' in shown(telemetry)


async def test_an_object_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_TELEMETRY", "prometheus")
    telemetry = PrometheusTelemetry()
    assert await served_once(make_runtime(telemetry=telemetry)) is telemetry


def test_an_unknown_one_is_refused_when_the_runtime_is_made() -> None:
    with pytest.raises(
        ConfigError, match=r"^DYN_TELEMETRY: unknown telemetry 'promtheus'; did you mean 'prometheus'"
    ):
        make_runtime(telemetry="promtheus")


async def test_an_option_that_it_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown option 'port'"):
        async with make_runtime(telemetry="prometheus://?port=1"):
            pass


# What it counts.


def test_a_duration_falls_into_the_first_bucket_that_holds_it() -> None:
    counts = PrometheusTelemetry().endpoint(ENDPOINT, Side.SERVER)
    for after_s in (0.0, BUCKETS[0], BUCKETS[0] * 1.01, BUCKETS[-1], math.inf):
        counts.started()
        counts.ended(after_s, None)
    assert counts.durations[:2] == [2, 1]
    assert counts.durations[-2:] == [1, 1]
    assert sum(counts.durations) == 5
    assert counts.inflight == 0
    counts.started()
    assert (counts.begun, counts.inflight) == (6, 1)


def test_one_endpoint_is_counted_once_per_side_and_labels() -> None:
    telemetry = PrometheusTelemetry()
    server = telemetry.endpoint(ENDPOINT, Side.SERVER, {"model": "a", "tier": "b"})
    assert telemetry.endpoint(ENDPOINT, Side.SERVER, {"tier": "b", "model": "a"}) is server
    assert telemetry.endpoint(ENDPOINT, Side.SERVER, {"model": "b"}) is not server
    assert telemetry.endpoint(ENDPOINT, Side.CLIENT) is not server


def test_changes_and_leases_are_counted() -> None:
    telemetry = PrometheusTelemetry()
    instance = Instance(endpoint_id=ENDPOINT, instance_id=1, incarnation=1, addresses=())
    for change in (
        Snapshot(instances=()),
        Put(instance=instance),
        Put(instance=instance),
        Removed(endpoint_id=ENDPOINT, instance_id=1),
        Stale(reason="away"),
    ):
        telemetry.instances_changed(change)
    assert "dynamo_discovery_lease_held" not in shown(telemetry), "a runtime that serves nothing has no lease"
    telemetry.lease_changed(True, "")
    telemetry.lease_changed(False, "away")
    text = shown(telemetry)
    for line in (
        'dynamo_discovery_changes_total{change="snapshot"} 1.0',
        'dynamo_discovery_changes_total{change="put"} 2.0',
        'dynamo_discovery_changes_total{change="removed"} 1.0',
        'dynamo_discovery_changes_total{change="stale"} 1.0',
        "dynamo_discovery_lease_held 0.0",
        "dynamo_discovery_leases_lost_total 1.0",
    ):
        assert line in text


@pytest.mark.parametrize("label", ["le", "error_type", "dynamo_namespace", "1st", "with-dash", "__x", ""])
async def test_a_label_that_cannot_be_shown_is_refused_at_serve(label: str) -> None:
    async with make_runtime(telemetry="prometheus") as runtime:
        with pytest.raises(ConfigError, match=f"label '{label}' of {PATH}"):
            async with runtime.endpoint(PATH).serve(echo, labels={label: "x"}):
                pass
        assert runtime.serving == ()


# A program's own metrics.


def test_own_metrics_need_no_status_server_and_no_loop() -> None:
    metrics = make_runtime().endpoint(PATH).metrics
    counter = metrics.counter("tokens", "Tokens.", ["kind"])
    counter.labels("prompt").inc()
    assert metrics.counter("tokens", "Tokens.", ["kind"]) is counter


def test_own_metrics_with_names_that_clash_are_refused() -> None:
    runtime = make_runtime()
    runtime.endpoint(PATH).metrics.counter("tokens", "Tokens.")
    with pytest.raises(ConfigError, match="'tokens' is a counter of this runtime, and cannot be a gauge too"):
        runtime.endpoint("demo.backend.other").metrics.gauge("tokens", "Tokens.")
    with pytest.raises(ConfigError, match="are the runtime's own"):
        runtime.endpoint(PATH).metrics.counter("dynamo_component_requests", "Mine.")
    with pytest.raises(ConfigError, match="'dynamo_endpoint' is added by the runtime"):
        runtime.endpoint(PATH).metrics.gauge("depth", "Depth.", ["dynamo_endpoint"])
    with pytest.raises(ConfigError, match="'bad name'"):
        runtime.endpoint(PATH).metrics.gauge("bad name", "Depth.")
    with pytest.raises(ConfigError, match="bad label 'a-b'"):
        runtime.endpoint(PATH).metrics.gauge("depth", "Depth.", ["a-b"])
