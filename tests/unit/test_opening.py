"""Adapters: opened on first use, whichever scheme an address asks for."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from dynamo.adapters.request_plane.mem import MemRequestPlane, open_mem
from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.opening import Adapters, without_password
from dynamo.core.ports.request_plane import OutgoingCall, Request, RequestPlane
from dynamo.runtime import CallCancelledError, ConfigError, DeadlineError, Status, UnavailableError
from unit.deployments import PATH, bounded, fresh, make_runtime, until

pytestmark = pytest.mark.anyio


async def echo(request: Any) -> Any:
    return request


class Slow:
    """A scheme of its own, whose adapter opens when the test lets it; behind it is mem."""

    def __init__(self) -> None:
        self.scheme = f"slow{uuid.uuid4().hex[:8]}"
        self.gate = asyncio.Event()
        self.opening = self.opened = 0
        self.error: Exception | None = None

    @asynccontextmanager
    async def open(self, url: str, settings: Settings) -> AsyncIterator[RequestPlane]:
        self.opening += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        async with open_mem("mem://", settings) as plane:
            self.opened += 1
            yield _Renamed(plane, self.scheme)


class _Renamed(RequestPlane):
    def __init__(self, plane: MemRequestPlane, scheme: str) -> None:
        self._plane, self._scheme = plane, scheme

    @property
    def capability(self) -> Any:
        return attrs.evolve(self._plane.capability, schemes=(self._scheme,))

    @asynccontextmanager
    async def serve(self, accept: Any, **options: Any) -> AsyncIterator[Any]:
        async with self._plane.serve(accept, **options) as server:
            renamed = server.addresses[0].replace("mem://", f"{self._scheme}://")
            yield _Server(server, (renamed,))

    def call(self, address: str, request: Request, **options: Any) -> OutgoingCall:
        return self._plane.call(address.replace(self._scheme, "mem"), request, **options)

    async def check(self, address: str) -> Any:
        return await self._plane.check(address.replace(self._scheme, "mem"))


class _Server:
    def __init__(self, server: Any, addresses: tuple[str, ...]) -> None:
        self._server, self.addresses = server, addresses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)


@pytest.fixture
async def slow() -> AsyncIterator[Slow]:
    slow = Slow()
    registry.request_plane.register(slow.scheme, slow.open)
    yield slow
    registry.request_plane.unregister(slow.scheme)


async def test_a_runtime_dials_by_the_scheme_of_the_address_it_found(slow: Slow) -> None:
    url = fresh()
    async with make_runtime(url, request_plane=slow.scheme) as worker, make_runtime(url) as caller:
        serving = asyncio.ensure_future(worker.endpoint(PATH).serve_endpoint(echo))
        await until(lambda: slow.opening == 1)
        slow.gate.set()
        client = await caller.endpoint(PATH).client()
        await bounded(client.wait_for_instances())
        assert slow.opened == 1
        slow.gate.clear()
        calling = asyncio.ensure_future(client.call("over another plane"))
        await until(lambda: slow.opening == 2)
        assert not calling.done()
        slow.gate.set()  # a call that met an adapter on its way is sent again
        assert await bounded(calling) == "over another plane"
        assert await bounded(client.call("and by now it is open")) == "and by now it is open"
        assert slow.opened == 2
        await worker.shutdown()
        await bounded(serving)


async def test_a_call_to_an_adapter_that_does_not_open_is_bounded_and_leaves_nothing(slow: Slow) -> None:
    url = fresh()
    async with (
        make_runtime(url, request_plane=slow.scheme) as worker,
        make_runtime(url, connect_timeout_s=0.05, instance_wait_s=0.3) as caller,
    ):
        slow.gate.set()
        async with worker.endpoint(PATH).serve(echo):
            client = await caller.endpoint(PATH).client()
            await bounded(client.wait_for_instances())
            slow.gate.clear()
            with pytest.raises(DeadlineError):
                await bounded(client.call(1, timeout_s=0.02))
            with pytest.raises(UnavailableError, match="did not open in time"):
                await bounded(client.call(2))
            slow.gate.set()
            slow.error = ConfigError("wants a certificate")
            with pytest.raises(UnavailableError, match="wants a certificate"):
                await bounded(client.call(3))


async def test_a_request_plane_that_is_away_is_waited_for_in_its_own_words(slow: Slow) -> None:
    slow.gate.set()
    slow.error = UnavailableError("no broker at slow://nowhere")
    async with make_runtime(request_plane=slow.scheme, startup_timeout_s=0.1) as runtime:
        with pytest.raises(UnavailableError) as raised:
            await bounded(runtime.endpoint(PATH).serve_endpoint(echo))
    assert "no broker at slow://nowhere, after 0.1 s" in str(raised.value)
    assert "request_plane=tcp, which needs no server" in str(raised.value)


async def test_nobody_is_told_to_start_a_server_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    away = UnavailableError(
        "cannot make /shared/dynamo: Stale file handle; mend it, or give another directory"
    )

    @asynccontextmanager
    async def open_file(url: str, settings: Settings) -> AsyncIterator[Any]:
        raise away
        yield

    monkeypatch.setattr(registry.discovery, "_factories", {"file": open_file})
    async with make_runtime(discovery="file", startup_timeout_s=0.1) as runtime:
        with pytest.raises(UnavailableError) as refused:
            await runtime.endpoint(PATH).client()
    assert (
        str(refused.value) == f"{away}, after 0.1 s (startup_timeout_s); or set discovery_backend to another"
    )


async def test_a_probe_by_an_adapter_that_still_opens_waits_for_it(slow: Slow) -> None:
    async with make_runtime() as runtime:
        await runtime.endpoint(PATH).client()
        plane = runtime._adapters.dial(f"{slow.scheme}://nobody")
        assert plane is not None
        probing = asyncio.ensure_future(plane.check(f"{slow.scheme}://nobody"))
        await until(lambda: slow.opening)
        assert not probing.done()
        slow.gate.set()
        assert (await bounded(probing)).status is Status.DOWN

        other = runtime._adapters.dial(f"{slow.scheme}://nobody")
        assert other is not None
        assert other.capability.schemes == (slow.scheme,)


async def test_a_late_call_sends_nothing_and_can_be_left(slow: Slow) -> None:
    async with make_runtime() as runtime:
        await runtime.endpoint(PATH).client()
        plane = runtime._adapters.dial(f"{slow.scheme}://nobody")
        assert plane is not None
        call = plane.call(f"{slow.scheme}://nobody", Request(endpoint=PATH, request_id="r"))
        assert not call.send(b"\xc0")
        assert (call.ended, call.answered, call.received, call.receive_nowait()) == (False, False, 0, None)
        call.kill()
        await bounded(call.wait())
        assert isinstance(call.error, CallCancelledError)
        slow.gate.set()


async def test_an_address_that_nothing_dials_is_none() -> None:
    adapters = Adapters(Settings.from_env({}, discovery_backend="mem", request_plane="mem"))
    assert adapters.dial("carrier-pigeon://roof") is None
    assert adapters.dial("") is None


@pytest.mark.parametrize(
    "url, safe",
    [
        ("etcd://h1:2379,h2:2379?ttl_s=10", "etcd://h1:2379,h2:2379?ttl_s=10"),
        ("nats://user:secret@h:4222", "nats://***@h:4222"),
        ("mem", "mem"),
    ],
)
def test_messages_show_no_password(url: str, safe: str) -> None:
    assert without_password(url) == safe
