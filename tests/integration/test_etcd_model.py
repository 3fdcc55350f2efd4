"""The watch against a model: random changes, lease ends, compactions, cuts and crashes of a real server.

One schedule is one seed: ``pytest "tests/integration/test_etcd_model.py::test_a_schedule[7]"``; the long form
is ``nox -s soak``.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from dynamo.adapters.discovery.etcd import open_etcd
from dynamo.adapters.discovery.etcd.keys import decode, key_of, parse
from dynamo.core.codec import encode_instance
from dynamo.core.config import Settings
from dynamo.core.model import EndpointId, Instance, InstanceKey, Scope
from dynamo.core.ports.discovery import Put, Removed, Snapshot
from dynamo.testing.discovery import ENDPOINT, OTHER, Follower, an_instance
from dynamo.testing.proxy import FaultProxy
from etcd_server import EtcdServer

pytestmark = pytest.mark.anyio

SETTINGS = Settings.from_env({}, etcd_lease_ttl=2, connect_timeout_s=1.0)
SCOPE = Scope.of(ENDPOINT)
ELSEWHERE = EndpointId(namespace="contract", component="worker", name="other")
UNREADABLE = b"unreadable"
STEPS = 60
BOUND_S = 20.0


class Model:
    """What the store must say, changed as the store is."""

    def __init__(self, server: EtcdServer, seed: int) -> None:
        self.server, self.random = server, random.Random(seed)
        self.live: dict[InstanceKey, Instance] = {}
        self.leased: dict[int, set[InstanceKey]] = {}
        self.count = 0

    def step(self) -> None:
        kinds = {self.put: 10, self.delete: 5, self.end_lease: 2, self.delete_all: 1, self.compact: 1}
        (kind,) = self.random.choices(list(kinds), list(kinds.values()))
        kind()

    def put(self) -> None:
        self.count += 1
        instance = an_instance(
            self.random.randint(1, 6),
            self.random.choice((ENDPOINT, ENDPOINT, OTHER, ELSEWHERE)),
            incarnation=self.random.randint(1, 2),
            name=f"change {self.count}",
        )
        lease = self.random.choice((0, 0, 77, 78))
        if lease and lease not in self.leased:
            self.server.grant(lease)
            self.leased[lease] = set()
        self._forget(instance.key)
        key = key_of(instance.endpoint_id, instance.instance_id).decode()
        if self.random.random() < 0.1:
            self.server.put(key, UNREADABLE, lease)  # as good as absent
        else:
            self.server.put(key, encode_instance(instance), lease)
            self.live[instance.key] = instance
        if lease:
            self.leased[lease].add(instance.key)

    def delete(self) -> None:
        if self.live:
            key = self.random.choice(sorted(self.live, key=str))
            self.server.delete(key_of(*key))
            self._forget(key)

    def end_lease(self) -> None:
        if self.leased:
            lease, keys = self.leased.popitem()
            self.server.revoke(lease)
            for key in keys:
                self.live.pop(key, None)

    def delete_all(self) -> None:
        self.server.delete()
        self.live.clear()
        for keys in self.leased.values():
            keys.clear()

    def compact(self) -> None:
        self.server.compact()

    def reread(self) -> None:
        """What it has kept: an etcd that is alone may also lose what it answered last (its issue 14370)."""
        self.live.clear()
        self.leased = {lease: set() for lease in sorted(self.server.leases())}
        for kv in self.server.range().kvs:
            key = parse(kv.key)
            assert key is not None
            if kv.lease:
                self.leased[kv.lease].add(key)
            if kv.value != UNREADABLE:
                self.live[key] = decode(kv.key, kv.value)

    def _forget(self, key: InstanceKey) -> None:
        self.live.pop(key, None)
        for keys in self.leased.values():
            keys.discard(key)

    def expected(self) -> dict[InstanceKey, Instance]:
        return {key: instance for key, instance in self.live.items() if SCOPE.covers(key[0])}


class Strict(Follower):
    """Also holds the watch to what each change may say."""

    async def next(self) -> Any:
        before = dict(self.live)
        change = await super().next()
        match change:
            case Put(instance=instance):
                assert any(isinstance(earlier, Snapshot) for earlier in self.changes)
                known = before.get(instance.key)
                assert known is None or known.incarnation == instance.incarnation
                assert known != instance, "nothing changed"
            case Removed(endpoint_id=endpoint_id, instance_id=instance_id):
                assert (endpoint_id, instance_id) in before
        return change


async def agree(follower: Follower, model: Model) -> None:
    """Within a bound, the watch says what the model says."""
    try:
        async with asyncio.timeout(BOUND_S):
            await follower.until(lambda live: live == model.expected())
    except TimeoutError:
        assert follower.live == model.expected(), follower.changes[-5:]


async def forget(follower: Follower, model: Model, proxy: FaultProxy) -> None:
    """Let the watch see what a crash then undoes, mostly deletions, and keep it away until others come."""
    proxy.heal()
    model.server.remember()
    for _ in range(model.random.randint(1, 3)):
        model.random.choice((model.delete, model.delete, model.delete, model.step))()
    await agree(follower, model)
    proxy.refuse()
    proxy.reset()
    model.server.kill()
    model.server.forget()


async def play(seed: int, steps: int) -> None:
    with EtcdServer() as server:
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            model = Model(server, seed)
            chance = model.random
            for _ in range(chance.randint(0, 10)):
                model.step()
            async with open_etcd(f"etcd://{proxy.address}", SETTINGS) as client, client.watch(SCOPE) as watch:
                follower = Strict(watch)
                for _ in range(steps):
                    model.step()
                    match chance.randrange(12):
                        case 0 | 1:
                            proxy.reset()
                        case 2:
                            proxy.refuse()
                            proxy.reset()
                        case 3:
                            proxy.black_hole()
                        case 4:
                            proxy.throttle(20_000)
                        case 5 if chance.random() < 0.2:
                            if chance.random() < 0.5:
                                await forget(follower, model, proxy)
                            server.kill()
                            await asyncio.to_thread(server.start)
                            model.reread()
                        case 6 | 7:
                            proxy.heal()
                            await agree(follower, model)
                        case _:
                            await asyncio.sleep(chance.choice((0, 0, 0.01)))
                proxy.heal()
                await agree(follower, model)


@pytest.mark.parametrize("seed", range(3))
async def test_a_schedule(seed: int) -> None:
    await play(seed, STEPS)


@pytest.mark.soak
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(1000, 1060))
async def test_a_long_schedule(seed: int) -> None:
    await play(seed, 6 * STEPS)
