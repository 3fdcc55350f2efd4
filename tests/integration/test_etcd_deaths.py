"""A worker that dies is stepped over long before etcd unlists it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dynamo.adapters.discovery.etcd.keys import key_of
from dynamo.runtime import DistributedRuntime
from etcd_server import EtcdServer, shared
from matrix.deployment import BOUND_S, ProcessWorker
from matrix.worker import COMPONENT

pytestmark = pytest.mark.anyio

TTL_S = 60  # the test is over long before the key is gone


@pytest.fixture
def server() -> EtcdServer:
    server = shared()
    server.empty()
    return server


async def test_a_killed_worker_is_chosen_no_more_after_the_first_failed_connection(
    server: EtcdServer, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "discovery_backend": "etcd",
        "etcd_endpoints": server.url,
        "etcd_lease_ttl": TTL_S,
        "request_plane": "tcp",
        "tcp_host": "127.0.0.1",
    }
    workers = {name: await ProcessWorker.start(name, settings, tmp_path) for name in ("dead", "alive")}
    try:
        for worker in workers.values():
            await worker.ready()
        async with DistributedRuntime(**settings) as runtime:
            client = await runtime.endpoint(f"{COMPONENT}.echo").client()
            await client.wait_for_instances(2, timeout_s=BOUND_S)
            peers = client._membership.peers
            dead = next(peer for peer in peers.by_id.values() if peer.instance.name == "dead")
            answered = [(await client.call({}, idempotent=True))["worker"] for _ in range(4)]
            assert set(answered) == {"dead", "alive"}

            workers["dead"].kill()
            await workers["dead"].gone()
            for _ in range(2):  # one after the other: the second of two is the dead one's turn at the latest
                assert (await client.call({}, idempotent=True))["worker"] == "alive"
            assert dead not in peers.ready
            for _ in range(30):
                assert (await client.call({}, idempotent=True))["worker"] == "alive"
                assert dead not in peers.ready
            key = key_of(dead.instance.endpoint_id, dead.instance.instance_id)
            assert server.range(key, b"").count == 1
            assert dead.instance.instance_id in client.instance_ids()
    finally:
        for worker in workers.values():
            await worker.clear()
        server.empty()
