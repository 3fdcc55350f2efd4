"""What can happen to etcd, to the way there and to workers, while calls and streams go on.

By default with a TTL of 2 s and outages to match; ``nox -s soak`` has the default TTL of 10 s and outages of
up to 30 s. What was counted is printed, and written to ``build/chaos/etcd.json``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from attrs import define, frozen

from chaos.load import Load
from chaos.streams import Streams
from dynamo.adapters.discovery.etcd.keys import parse
from dynamo.runtime import Client, DistributedRuntime
from dynamo.testing.proxy import FaultProxy
from etcd_server import EtcdCluster, EtcdServer
from matrix.deployment import ProcessWorker
from matrix.worker import COMPONENT

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

Tell = Callable[[object], None]

WRITTEN = Path(__file__).parents[2] / "build" / "chaos" / "etcd.json"
RATE_PER_S = 100.0  # of each of two clients
STREAMS = 10  # of each
ITEMS, PAUSE_S = 200, 0.05  # of each stream
DEADLINE_S = 30.0  # of a call
STREAM_S = 60.0  # of a stream: its worker may be stopped for half of it
RECOVERY_S = 5.0


@frozen(kw_only=True)
class Scale:
    """How long things take, in seconds."""

    ttl_s: int
    short_s: float
    long_s: float  # longer than the TTL
    frozen_s: float
    cut_ttls: float  # how many TTLs a worker is cut off or stopped


QUICK = Scale(ttl_s=2, short_s=0.5, long_s=2.5, frozen_s=2.2, cut_ttls=1.6)
FULL = Scale(ttl_s=10, short_s=3.0, long_s=30.0, frozen_s=20.0, cut_ttls=3)


@define
class Window:
    """One fault: from its beginning until all was right again."""

    fault: str
    began_at: float
    ended_at: float
    recovered_s: float
    streams_broken: int = 0


class Scene:
    """Two clients, three workers, and the etcd that they find each other by."""

    def __init__(self, server: EtcdServer, scale: Scale) -> None:
        self.server, self.scale = server, scale
        self.workers: dict[str, ProcessWorker] = {}
        self.clients: list[Client] = []
        self.ids: dict[str, int] = {}
        self.loads: list[Load] = []
        self.streams: list[Streams] = []
        self.windows: list[Window] = []

    def right(self) -> bool:
        """Every client lists who is registered, up to date, under the ids that they had."""
        for client in self.clients:
            known = client._membership
            listed = {instance.instance_id for instance in known.instances()}
            if known.stale or not known.synced or listed != set(self.ids.values()):
                return False
        try:
            found = self.server.range().kvs
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:  # as a cluster is while it has no leader
                raise
            return False
        registered = {parsed[1] for kv in found if (parsed := parse(kv.key)) is not None}
        return registered == set(self.ids.values())

    async def until_right(self, bound_s: float) -> float:
        began = time.monotonic()
        while not self.right():
            assert time.monotonic() - began < bound_s, [
                (client._membership.stale, client._membership.instances()) for client in self.clients
            ]
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    async def suffer(self, fault: str, do: Callable[[], Awaitable[None]], unreachable: str = "") -> None:
        """Let it happen, wait until all is right again, and count."""
        began_at = time.monotonic()
        await do()
        recovered_s = await self.until_right(30.0)
        self.windows.append(Window(fault, began_at, time.monotonic(), recovered_s))
        broken = [one for streams in self.streams for one in streams.broken if one.at >= began_at]
        self.windows[-1].streams_broken = sum(one.worker != unreachable for one in broken)
        for load in self.loads:  # no call of this window is still under way when the next fault begins
            ended = len(load.ended)
            while len(load.ended) < ended + 30:
                await asyncio.sleep(0.02)

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for window in self.windows:
            calls = [
                call
                for load in self.loads
                for call in load.ended
                if window.began_at <= call.due_at <= window.ended_at
            ]
            found.append(
                {
                    "fault": window.fault,
                    "calls": len(calls),
                    "failed": sum(call.error is not None for call in calls),
                    "streams_broken": window.streams_broken,
                    "max_latency_s": round(max((call.after_s for call in calls), default=0.0), 3),
                    "recovered_s": round(window.recovered_s, 3),
                }
            )
        return found


@asynccontextmanager
async def scene(server: EtcdServer, urls: dict[str, str], scale: Scale, folder: Path) -> AsyncIterator[Scene]:
    """``urls`` says how each of ``w1``-``w3`` and ``c1``, ``c2`` gets to etcd."""
    made = Scene(server, scale)

    def settings(name: str) -> dict[str, Any]:
        return {
            "discovery_backend": "etcd",
            "etcd_endpoints": urls[name],
            "etcd_lease_ttl": scale.ttl_s,
            "request_plane": "tcp",
            "tcp_host": "127.0.0.1",
            "keepalive_s": scale.ttl_s,
            "graceful_shutdown_timeout_s": 5.0,
        }

    async with AsyncExitStack() as stack:
        for name in ("w1", "w2", "w3"):
            made.workers[name] = await ProcessWorker.start(name, settings(name), folder)
            stack.push_async_callback(made.workers[name].clear)
        for worker in made.workers.values():
            await worker.ready()
        for name in ("c1", "c2"):
            runtime = await stack.enter_async_context(DistributedRuntime(**settings(name)))
            echo = await runtime.endpoint(f"{COMPONENT}.echo").client()
            count = await runtime.endpoint(f"{COMPONENT}.count").client()
            await echo.wait_for_instances(3)
            await count.wait_for_instances(3)
            made.clients += [echo, count]
            load = Load(echo, {"pause_s": 0.005}, RATE_PER_S, DEADLINE_S, idempotent=True)
            made.loads.append(await stack.enter_async_context(load))
            streams = Streams(count, STREAMS, ITEMS, PAUSE_S, STREAM_S)
            made.streams.append(await stack.enter_async_context(streams))
        made.ids = {
            str(instance.name): instance.instance_id for instance in made.clients[0]._membership.instances()
        }
        for load in made.loads:
            await load.steady()
        yield made
        for load in made.loads:
            await load.steady()
        assert [wrong for streams in made.streams for wrong in streams.wrong] == []


def judge(rows: list[dict[str, Any]], scale: Scale, tell: Tell) -> None:
    """Print and write them, then look."""
    WRITTEN.parent.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(WRITTEN.read_text()) if WRITTEN.exists() else []
    named = [{**row, "fault": f"{row['fault']} (TTL {scale.ttl_s} s)"} for row in rows]
    names = {row["fault"] for row in named}
    WRITTEN.write_text(json.dumps([r for r in earlier if r["fault"] not in names] + named, indent=1))
    for row in named:
        tell(json.dumps(row))
    for row in rows:
        assert row["failed"] == 0, row
        assert row["streams_broken"] == 0, row
        assert row["recovered_s"] < RECOVERY_S, row


async def one_server(scale: Scale, folder: Path) -> list[dict[str, Any]]:
    with EtcdServer() as server:
        async with (
            FaultProxy("127.0.0.1", server.port) as to_worker,
            FaultProxy("127.0.0.1", server.port) as to_client,
        ):
            urls = dict.fromkeys(("w2", "w3", "c2"), server.url)
            urls |= {"w1": f"http://{to_worker.address}", "c1": f"http://{to_client.address}"}
            async with scene(server, urls, scale, folder) as here:

                async def restart(after_s: float, *, wiped: bool = False) -> None:
                    server.kill()
                    if wiped:
                        server.lose_disk()
                    await asyncio.sleep(after_s)
                    server.launch()
                    await asyncio.to_thread(server.wait)

                async def freeze() -> None:
                    server.pause()
                    await asyncio.sleep(scale.frozen_s)
                    server.resume()

                async def revoke() -> None:
                    held = next(kv for kv in server.range().kvs if parse(kv.key) is not None)
                    lease = f"{held.lease:x}"
                    await asyncio.to_thread(server.ctl, "lease", "revoke", lease)

                async def delete() -> None:
                    await asyncio.to_thread(server.ctl, "del", "--prefix", "/services")

                async def compact() -> None:
                    to_client.refuse()
                    to_client.reset()
                    await delete()
                    await asyncio.sleep(scale.short_s)
                    server.compact()
                    to_client.heal()

                async def black_hole() -> None:
                    to_worker.black_hole()
                    await asyncio.sleep(scale.cut_ttls * scale.ttl_s)
                    to_worker.heal()

                async def stop() -> None:
                    here.workers["w2"].suspend()
                    await asyncio.sleep(scale.cut_ttls * scale.ttl_s)
                    here.workers["w2"].go_on()

                async def kill() -> None:
                    del here.ids["w3"]
                    here.workers["w3"].kill()
                    await here.until_right(scale.ttl_s + 2.0)

                await here.suffer("etcd killed, back soon", lambda: restart(scale.short_s))
                await here.suffer("etcd killed, back after the TTL", lambda: restart(scale.long_s))
                await here.suffer("etcd's disk lost, back soon", lambda: restart(scale.short_s, wiped=True))
                await here.suffer(
                    "etcd's disk lost, back after the TTL", lambda: restart(scale.long_s, wiped=True)
                )
                await here.suffer("etcd stopped", freeze)
                await here.suffer("a lease revoked", revoke)
                await here.suffer("all keys deleted", delete)
                await here.suffer("compacted while a client was cut off", compact)
                await here.suffer(f"a worker's link black-holed for {scale.cut_ttls:g} TTLs", black_hole)
                await here.suffer(f"a worker stopped for {scale.cut_ttls:g} TTLs", stop, unreachable="w2")
                await here.suffer("a worker killed", kill, unreachable="w3")
                assert "w3" in {one.worker for streams in here.streams for one in streams.broken}
            return here.rows()


async def a_cluster(scale: Scale, folder: Path) -> list[dict[str, Any]]:
    with EtcdCluster() as cluster:
        everyone = ",".join(member.url for member in cluster.members)
        leader = cluster.leader()
        witness = next(member for member in cluster.members if member is not leader)
        urls = dict.fromkeys(("w1", "w2", "w3", "c1", "c2"), everyone)
        async with scene(witness, urls, scale, folder) as here:

            async def kill() -> None:
                leader.kill()
                await asyncio.sleep(scale.short_s)

            await here.suffer("a cluster's leader killed", kill)
        return here.rows()


async def test_faults_of_one_server(tmp_path: Path, tell: Tell) -> None:
    judge(await one_server(QUICK, tmp_path), QUICK, tell)


async def test_the_leader_of_a_cluster_dies(tmp_path: Path, tell: Tell) -> None:
    judge(await a_cluster(QUICK, tmp_path), QUICK, tell)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_the_same_with_the_default_ttl(tmp_path: Path, tell: Tell) -> None:
    judge([*await one_server(FULL, tmp_path), *await a_cluster(FULL, tmp_path)], FULL, tell)
