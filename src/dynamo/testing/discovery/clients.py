"""What tests read and hold: a watch that is folded into a state, leases, the declared instances."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from dynamo.core.model import Instance, InstanceKey, Scope
from dynamo.core.ports.discovery import Change, Discovery, Lease, Snapshot, Watch
from dynamo.core.watching import apply
from dynamo.testing.discovery.harness import DECLARED, SCOPE


class Follower:
    """Reads a watch and folds it: ``live`` is the state, ``changes`` is what came."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.live: dict[InstanceKey, Instance] = {}
        self.changes: list[Change] = []

    async def next(self) -> Change:
        change = await self.watch.receive()
        self.changes.append(change)
        apply(self.live, change)
        return change

    async def until(self, condition: Callable[[dict[InstanceKey, Instance]], bool]) -> None:
        while not condition(self.live):
            await self.next()

    async def snapshot(self) -> Snapshot:
        while not isinstance(change := await self.next(), Snapshot):
            pass
        return change


@asynccontextmanager
async def following(client: Discovery, scope: Scope = SCOPE) -> AsyncIterator[Follower]:
    """A watch that has delivered its first snapshot."""
    async with client.watch(scope) as watch:
        follower = Follower(watch)
        await follower.snapshot()
        yield follower


async def live_now(client: Discovery, scope: Scope = SCOPE) -> dict[InstanceKey, Instance]:
    """What a new watch begins with."""
    async with following(client, scope) as follower:
        return follower.live


def lease_for(client: Discovery, instance: Instance) -> AbstractAsyncContextManager[Lease]:
    """A lease under the instance's own id and incarnation."""
    return client.lease(instance_id=instance.instance_id, incarnation=instance.incarnation)


def by_key(*instances: Instance) -> dict[InstanceKey, Instance]:
    """The state that these instances make."""
    return {instance.key: instance for instance in instances}


@asynccontextmanager
async def declared(client: Discovery) -> AsyncIterator[None]:
    """``DECLARED`` is in the backend: put there, or there from the start."""
    async with AsyncExitStack() as stack:
        if client.capability.dynamic:
            for instance in DECLARED:
                lease = await stack.enter_async_context(lease_for(client, instance))
                await lease.put(instance)
        yield
