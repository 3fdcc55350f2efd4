"""Who watches the scripted API server, and what is expected of it in every fault."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

from dynamo.adapters.discovery.kubernetes import open_kubernetes
from dynamo.core.config import Settings
from dynamo.core.ports.discovery import Put, Snapshot, Stale
from dynamo.testing.discovery import Follower, an_instance, by_key, following
from integration.fake_kubernetes import RECORDS, SLICES, FakeKubernetes

ONE, TWO, THREE = (an_instance(number) for number in (1, 2, 3))
CHANGED = attrs.evolve(ONE, addresses=("tcp://127.0.0.1:1",))
BOUND_S = 10.0
WHILE_S = 0.3
LEAST_DELAY_S = 0.025  # half of 0.05 s, which is doubled after each attempt


@asynccontextmanager
async def watched(
    fake: FakeKubernetes, answer_s: float = 2.0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Follower]:
    """One that has listed both, and watches; nothing that it is told afterwards may be an empty snapshot."""
    fake.serve(ONE, TWO)
    settings = Settings.from_env({}, kubeconfig=str(fake.kubeconfig), connect_timeout_s=answer_s)
    async with fake.run(tls), asyncio.timeout(BOUND_S):
        async with open_kubernetes("kubernetes://", settings) as client, following(client) as follower:
            assert follower.live == by_key(ONE, TWO)
            await fake.until_watched(RECORDS, SLICES)
            fake.asked.clear()
            yield follower
    assert not [one for one in follower.changes if isinstance(one, Snapshot) and not one.instances]


async def patience(fake: FakeKubernetes, began: float, *whats: str) -> None:
    """Since that moment it asked each of these at least twice, and no more often than back-off allows."""
    for what in whats:
        await fake.until_asked(what, 2)
    await asyncio.sleep(WHILE_S)
    allowed, at, delay_s = 1, 0.0, LEAST_DELAY_S
    while (at := at + delay_s) < time.monotonic() - began:
        allowed, delay_s = allowed + 1, 2 * delay_s
    for what in whats:
        assert len(fake.times(what)) <= allowed


def stales(follower: Follower) -> list[str]:
    return [change.reason for change in follower.changes if isinstance(change, Stale)]


async def until_stale(follower: Follower) -> str:
    while not (told := stales(follower)):
        await follower.next()
    return told[-1]


async def healed(fake: FakeKubernetes, follower: Follower) -> None:
    """What happened meanwhile is in a snapshot, and it follows again."""
    await follower.snapshot()
    await follower.until(lambda live: live == by_key(ONE, THREE))
    await follows(fake, follower)


async def follows(fake: FakeKubernetes, follower: Follower) -> None:
    """A change is told as one."""
    await fake.until_watched(RECORDS, SLICES)
    fake.serve(CHANGED)
    await follower.until(lambda live: live.get(ONE.key) == CHANGED)
    assert follower.changes[-1] == Put(instance=CHANGED)


def change_all(fake: FakeKubernetes) -> None:
    """One leaves, and another one comes, of which no watch that is open is told."""
    fake.remove(RECORDS, "worker-2", told=False)
    fake.serve(THREE, told=False)
