"""Power over the store of ``mem://``, for its own contract and for the broken adapters made from it."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from dynamo.adapters.discovery.mem import MemDiscovery, open_mem
from dynamo.core.config import Settings
from dynamo.core.model import EndpointId, Instance
from dynamo.core.ports.discovery import Capability, Liveness
from dynamo.testing.discovery import DiscoveryHarness, lease_for

TTL_S = 0.4
CAPABILITY = Capability(
    scheme="mem", liveness=Liveness.TTL, ttl_s=TTL_S, dynamic=True, cross_process=False, cross_host=False
)


class StoppedOwner:
    """A runtime on a loop of its own thread; its death is that the loop never runs again."""

    def __init__(self, client: AbstractAsyncContextManager[MemDiscovery], instance: Instance) -> None:
        self._loop = asyncio.new_event_loop()
        self._registered = threading.Event()
        self._task = self._loop.create_task(self._hold(client, instance))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._registered.wait(5)

    async def _hold(self, client: AbstractAsyncContextManager[MemDiscovery], instance: Instance) -> None:
        async with client as opened, lease_for(opened, instance) as lease:
            await lease.put(instance)
            self._registered.set()
            await asyncio.Event().wait()

    def _run(self) -> None:
        self._loop.run_forever()

    async def kill(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, 5)

    def bury(self) -> None:
        """Let the dead loop finish, so that nothing is pending when it is thrown away."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
        self._task.cancel()
        self._loop.run_until_complete(asyncio.gather(self._task, return_exceptions=True))
        self._loop.close()


class MemHarness(DiscoveryHarness):
    """``keeper`` is a client that keeps the store alive between the test's own."""

    def __init__(self, url: str, keeper: MemDiscovery) -> None:
        self.url = url
        self.keeper = keeper
        self.store = keeper.store
        self.owners: list[StoppedOwner] = []

    def client(self) -> AbstractAsyncContextManager[MemDiscovery]:
        return open_mem(self.url, Settings())

    async def leftovers(self) -> list[str]:
        clients = [f"client {client}" for client in self.store.clients if client is not self.keeper]
        return clients + [str(key) for key in self.store.entries]

    async def outage(self, on: bool) -> None:
        self.store.outage(on)

    async def expire(self) -> None:
        self.store.expire()

    async def delete(self, instance: Instance) -> None:
        self.store.delete(instance.key)

    async def corrupt(self, endpoint_id: EndpointId) -> None:
        self.store.write((endpoint_id, 0xBAD), b'{"namespace": ')

    async def owner(self, instance: Instance) -> Callable[[], Awaitable[None]]:
        owner = await asyncio.to_thread(StoppedOwner, self.client(), instance)
        self.owners.append(owner)
        return owner.kill


@asynccontextmanager
async def mem_harness() -> AsyncIterator[MemHarness]:
    url = f"mem://{uuid.uuid4().hex}?ttl_s={TTL_S}"
    async with open_mem(url, Settings()) as keeper:
        harness = MemHarness(url, keeper)
        try:
            yield harness
        finally:
            for owner in harness.owners:
                await asyncio.to_thread(owner.bury)
