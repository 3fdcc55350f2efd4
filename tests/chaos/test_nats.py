"""What can happen to the NATS server and to the way there while calls and streams go on over it.

By default with short outages; ``nox -s soak`` has the server away for 3 s, and more of everything.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from chaos.load import Load
from chaos.streams import Streams
from dynamo.adapters.request_plane.nats.link import SessionLink
from dynamo.runtime import DistributedRuntime
from dynamo.testing.proxy import FaultProxy
from matrix.deployment import ProcessWorker, backend
from matrix.worker import COMPONENT
from nats_server import NatsServer

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

Tell = Callable[[object], None]

RATE_PER_S = 200.0
STREAMS = 8
ITEMS = 40  # of each
DEADLINE_S = 30.0


@frozen(kw_only=True)
class Scale:
    """How long things take, in seconds, and how often."""

    keepalive_s: float
    connect_s: float
    away_s: float
    frozen_s: float  # longer than it takes to notice: four thirds of the keep-alive
    cut_s: float
    times: int


QUICK = Scale(keepalive_s=0.6, connect_s=1.0, away_s=0.5, frozen_s=1.0, cut_s=0.9, times=1)
FULL = Scale(keepalive_s=2.0, connect_s=5.0, away_s=3.0, frozen_s=8.0, cut_s=8.0, times=3)


@frozen
class Left:
    """What may be left behind, here and at the server."""

    tasks: int
    sessions: int
    subscriptions: int
    connections: int

    @classmethod
    async def by(cls, server: NatsServer) -> Left:
        gc.collect()
        pages = await asyncio.to_thread(lambda: (server.shows("subsz"), server.shows("connz")))
        return cls(
            len(asyncio.all_tasks()),
            sum(isinstance(found, SessionLink) and not found.closed for found in gc.get_objects()),
            pages[0]["num_subscriptions"],
            pages[1]["num_connections"],
        )


class Scene:
    """Two workers, and a caller whose way to NATS may fail."""

    def __init__(self, server: NatsServer, load: Load, streams: Streams, tell: Tell) -> None:
        self.server, self.load, self.streams, self.tell = server, load, streams, tell

    async def suffer(self, fault: str, do: Callable[[], Awaitable[None]]) -> None:
        """Let it happen, and wait until all is right again."""
        began_at, broken, calls = time.monotonic(), len(self.streams.broken), len(self.load.ended)
        await do()
        over_at = time.monotonic()
        whole, load = self.streams.whole, self.load
        due = int((over_at - load.began_at) * load.rate_per_s)
        while sum(call.due_at < over_at for call in load.ended) < due or self.streams.whole < whole + STREAMS:
            assert time.monotonic() < over_at + 20, f"{fault}: {self.load}; {self.streams}"
            await asyncio.sleep(0.02)
        await self.load.steady()
        felt = self.load.ended[calls:]
        self.tell(
            f"{fault}: {len(felt)} calls, {sum(call.error is not None for call in felt)} failed, "
            f"{len(self.streams.broken) - broken} streams broken, longest call "
            f"{max(call.after_s for call in felt):.2f} s, recovered "
            f"{self.load.recovery_s(began_at) - (over_at - began_at):.2f} s after its end"
        )


@asynccontextmanager
async def scene(server: NatsServer, way: str, scale: Scale, folder: Path, tell: Tell) -> AsyncIterator[Scene]:
    """The workers go to the server itself, the caller by ``way``."""
    settings: dict[str, Any] = {
        **backend("static", folder, ["nats:///w1", "nats:///w2"]),
        "request_plane": "nats",
        "nats_server": server.url,
        "keepalive_s": scale.keepalive_s,
        "connect_timeout_s": scale.connect_s,
        "drain_grace_s": 0.05,
        "graceful_shutdown_timeout_s": 5.0,
    }
    async with AsyncExitStack() as stack:
        workers = [await ProcessWorker.start(name, settings, folder) for name in ("w1", "w2")]
        for worker in workers:
            stack.push_async_callback(worker.clear)
        for worker in workers:
            await worker.ready()
        runtime = await stack.enter_async_context(DistributedRuntime(**{**settings, "nats_server": way}))
        echo = await runtime.endpoint(f"{COMPONENT}.echo").client()
        count = await runtime.endpoint(f"{COMPONENT}.count").client()
        load = Load(echo, {"pause_s": 0.005}, RATE_PER_S, DEADLINE_S, idempotent=True)

        async def settled() -> Left:
            """Between loads, with the sessions of both endpoints open to both workers."""
            for client in (echo, count):
                for instance in client.instance_ids():
                    async with client.stream({"items": 1}, instance=instance, timeout_s=DEADLINE_S) as items:
                        await anext(items)
            return await Left.by(server)

        before = await settled()
        running = Streams(count, STREAMS, ITEMS, 0.01, DEADLINE_S)
        async with load, running as streams:
            await load.steady()
            yield Scene(server, load, streams, tell)
        load.check()
        after = await settled()
        tell(f"{load}; {streams.whole} streams whole, {len(streams.broken)} broken; left: {after}")
        assert load.failed == []
        assert streams.wrong == []
        assert streams.broken  # or the faults were none
        assert after == before
        await runtime.shutdown()
        for worker in workers:
            worker.drain()
        for worker in workers:
            await worker.gone()


async def faults(scale: Scale, folder: Path, tell: Tell) -> None:
    with NatsServer() as server:
        async with (
            FaultProxy(server.host, server.port) as proxy,
            scene(server, f"nats://{proxy.address}", scale, folder, tell) as here,
        ):

            async def restart() -> None:
                server.kill()
                await asyncio.sleep(scale.away_s)
                await asyncio.to_thread(server.start)

            async def freeze() -> None:
                server.signal(signal.SIGSTOP)
                await asyncio.sleep(scale.frozen_s)
                server.signal(signal.SIGCONT)

            async def black_hole() -> None:
                proxy.black_hole()
                await asyncio.sleep(scale.cut_s)
                proxy.heal()

            async def cut() -> None:
                proxy.refuse()
                proxy.reset()
                await asyncio.sleep(scale.cut_s)
                proxy.heal()

            for _ in range(scale.times):
                await here.suffer(f"the server killed, back after {scale.away_s:g} s", restart)
                await here.suffer(f"the server stopped for {scale.frozen_s:g} s", freeze)
                await here.suffer(f"the caller black-holed for {scale.cut_s:g} s", black_hole)
                await here.suffer(f"the caller cut off for {scale.cut_s:g} s", cut)


async def test_no_idempotent_call_fails_and_streams_break_by_the_right_count(
    tmp_path: Path, tell: Tell
) -> None:
    await faults(QUICK, tmp_path, tell)


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_the_same_with_longer_outages(tmp_path: Path, tell: Tell) -> None:
    await faults(FULL, tmp_path, tell)
