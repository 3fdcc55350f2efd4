"""A small deployment for the client's tests: real mem adapters, and workers that are a bare ``accept``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs

from dynamo.adapters.discovery.mem import MemDiscovery, MemStore, open_mem
from dynamo.adapters.request_plane.mem import MemRequestPlane, MemServer
from dynamo.adapters.request_plane.mem import open_mem as open_mem_plane
from dynamo.core.client import Client
from dynamo.core.codec import decode, encode
from dynamo.core.config import Settings
from dynamo.core.errors import DynamoError
from dynamo.core.membership import Memberships
from dynamo.core.model import EndpointId, Instance, Phase, random_incarnation, random_instance_id
from dynamo.core.ports.discovery import Lease
from dynamo.core.ports.request_plane import IncomingCall, RequestPlane
from dynamo.core.ports.telemetry import Telemetry

ENDPOINT = EndpointId(namespace="demo", component="backend", name="generate")
BOUND_S = 5.0  # of everything that a test waits for

Answer = Callable[[IncomingCall], object]


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that no event tells of, within the bound."""
    async with asyncio.timeout(BOUND_S):
        while not condition():
            await asyncio.sleep(0.001)


def reply(*items: Any) -> Answer:
    """Answer with these items, the end on the last one."""

    def answer(call: IncomingCall) -> None:
        for number, item in enumerate(items, 1):
            call.send(encode(item), end=number == len(items))
        if not items:
            call.end()

    return answer


def fail(error: DynamoError, *items: Any) -> Answer:
    """Send the items, then fail with ``error``, as a handler that raises it would."""

    def answer(call: IncomingCall) -> None:
        for item in items:
            call.send(encode(item))
        error.remote = True
        call.fail(error)

    return answer


def refuse(error: DynamoError) -> Answer:
    """Turn the call away before a handler starts."""
    return lambda call: call.refuse(error)


def silent(call: IncomingCall) -> None:
    """Take the call and never answer."""


class Worker:
    """One instance: its server, its registration, what it was asked; ``answer`` may change at any time."""

    def __init__(self, answer: Answer | None) -> None:
        self.calls: list[IncomingCall] = []
        self.cancelled: list[bool] = []  # what callers asked: False to stop, True killed
        self.answer = answer
        self.came = asyncio.Event()
        self.instance: Instance
        self.server: MemServer
        self.lease: Lease

    def accept(self, call: IncomingCall) -> None:
        self.calls.append(call)
        call.on_cancel = self.cancelled.append
        self.came.set()
        if self.answer is None:
            request = call.request
            assert request.payload is not None
            call.send(encode({"echo": decode(request.payload), "from": self.instance.instance_id}), end=True)
        else:
            self.answer(call)

    @property
    def id(self) -> int:
        return self.instance.instance_id

    @property
    def requests(self) -> list[Any]:
        return [None if call.request.payload is None else decode(call.request.payload) for call in self.calls]

    async def update(self, **fields: Any) -> None:
        """Change the record in discovery."""
        self.instance = attrs.evolve(self.instance, **fields)
        await self.lease.put(self.instance)

    async def drain(self) -> None:
        self.server.drain()
        await self.update(phase=Phase.DRAINING)

    async def leave(self) -> None:
        await self.lease.remove(self.instance.endpoint_id)


class World:
    """``client`` and ``worker`` make more of each; everything ends with the block."""

    def __init__(
        self, stack: AsyncExitStack, discovery: MemDiscovery, plane: MemRequestPlane, settings: Settings
    ) -> None:
        self.discovery, self.plane, self.settings = discovery, plane, settings
        self.memberships = Memberships(discovery)
        self.dialled: list[str] = []
        self._stack = stack

    @property
    def store(self) -> MemStore:
        return self.discovery.store

    def dial(self, address: str) -> RequestPlane | None:
        self.dialled.append(address)
        return self.plane if address.startswith("mem://") else None

    def client(self, *, telemetry: Telemetry | None = None, **options: Any) -> Client:
        options.setdefault("dial", self.dial)
        client = Client(
            ENDPOINT,
            membership=self.memberships.of(ENDPOINT),
            settings=self.settings,
            telemetry=telemetry,
            **options,
        )
        self._stack.push_async_callback(client.aclose)
        return client

    async def ready_client(self, **options: Any) -> Client:
        """A client that knows all instances registered so far."""
        client = self.client(**options)
        await self.memberships.of(ENDPOINT).wait_for(lambda membership: membership.synced, BOUND_S)
        return client

    async def worker(
        self,
        answer: Answer | None = None,
        *,
        addresses: Callable[[str], tuple[str, ...]] = lambda address: (address,),
        endpoint_id: EndpointId = ENDPOINT,
        **fields: Any,
    ) -> Worker:
        worker = Worker(answer)
        fields.setdefault("instance_id", random_instance_id())
        fields.setdefault("incarnation", random_incarnation())
        worker.server = await self._stack.enter_async_context(
            self.plane.serve(
                worker.accept, instance_id=fields["instance_id"], incarnation=fields["incarnation"]
            )
        )
        worker.instance = Instance(
            endpoint_id=endpoint_id, addresses=addresses(worker.server.addresses[0]), **fields
        )
        worker.lease = await self._stack.enter_async_context(
            self.discovery.lease(instance_id=worker.id, incarnation=worker.instance.incarnation)
        )
        await worker.lease.put(worker.instance)
        return worker


@asynccontextmanager
async def deployed(**settings: Any) -> AsyncIterator[World]:
    """A world; when it ends, nothing of it may be left running."""
    before = asyncio.all_tasks()
    options = Settings(**{"instance_wait_s": 2.0, **settings})
    async with AsyncExitStack() as stack:
        discovery = await stack.enter_async_context(open_mem(f"mem://{uuid.uuid4().hex}", options))
        plane = await stack.enter_async_context(open_mem_plane("mem://", options))
        world = World(stack, discovery, plane, options)
        stack.push_async_callback(world.memberships.aclose)
        yield world
    await until(lambda: asyncio.all_tasks() <= before)
    assert not plane.calls
