"""A runtime and its lease: taken late, lost, taken again; and what is said while a backend is away."""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest

from dynamo.adapters.discovery.mem import open_mem
from dynamo.core import registrations as registrations_module
from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.model import EndpointId, Instance, Scope, random_incarnation
from dynamo.core.ports.discovery import Capability, Change, Discovery, Identity, Lease, Watch
from dynamo.core.ports.telemetry import NO_LABELS, EndpointTelemetry, Side, Telemetry
from dynamo.core.registrations import Registrations
from dynamo.runtime import (
    ClosedError,
    ConfigError,
    ConflictError,
    DistributedRuntime,
    DynamoError,
    LeaseLostError,
    Status,
    UnavailableError,
)
from unit.deployments import PATH, bounded, fresh, make_runtime, one_attempt, store, until

pytestmark = pytest.mark.anyio

ENDPOINT = EndpointId.parse(PATH)


async def echo(request: Any) -> Any:
    return request


class GuardedLease(Lease):
    """A lease, behind the same door."""

    def __init__(self, lease: Lease, backend: Backend) -> None:
        self._lease, self._backend = lease, backend

    async def put(self, instance: Instance) -> None:
        self._backend.puts.append(instance)
        await self._backend.puts_pass.wait()
        if self._backend.put_errors:
            raise self._backend.put_errors.pop(0)
        await self._lease.put(instance)

    async def remove(self, endpoint_id: EndpointId) -> None:
        await self._lease.remove(endpoint_id)

    async def lost(self) -> str:
        return await self._lease.lost()


class Backend(Discovery):
    """mem, behind a door that a test opens and closes: what a client of a real server meets."""

    def __init__(self) -> None:
        self.url = fresh()
        self.open_error: Exception | None = None
        self.identities: list[Identity | Exception] = []
        self.leases = 0
        self.lease_errors: list[Exception] = []
        self.silent = False
        self.puts: list[Instance] = []
        self.puts_pass = asyncio.Event()
        self.puts_pass.set()
        self.put_errors: list[Exception] = []
        self.leave_error: Exception | None = None
        self.lease_ends: list[type[BaseException] | None] = []
        self.leases_expire = True
        self._mem: Any = None

    @asynccontextmanager
    async def connect(self, url: str, settings: Settings) -> AsyncIterator[Discovery]:
        if self.open_error is not None:
            raise self.open_error
        async with open_mem(self.url, settings) as self._mem:
            yield self

    @property
    def capability(self) -> Capability:
        capability: Capability = self._mem.capability
        return capability if self.leases_expire else attrs.evolve(capability, ttl_s=math.inf)

    async def identity(self, endpoint_id: EndpointId) -> Identity | None:
        if not self.identities:
            return None
        identity = self.identities.pop(0) if len(self.identities) > 1 else self.identities[0]
        if isinstance(identity, Exception):
            raise identity
        return identity

    def watch(self, scope: Scope) -> AbstractAsyncContextManager[Watch]:
        watch: AbstractAsyncContextManager[Watch] = self._mem.watch(scope)
        return watch

    @asynccontextmanager
    async def lease(self, *, instance_id: int, incarnation: int) -> AsyncIterator[Lease]:
        self.leases += 1
        if self.lease_errors:
            raise self.lease_errors.pop(0)
        if self.silent:
            await asyncio.Event().wait()
        try:
            async with self._mem.lease(instance_id=instance_id, incarnation=incarnation) as lease:
                yield GuardedLease(lease, self)
        except BaseException as error:
            self.lease_ends.append(type(error))
            raise
        self.lease_ends.append(None)
        if self.leave_error is not None:
            raise self.leave_error

    async def check(self) -> Any:
        return await self._mem.check()


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()
    backend.scheme = f"test-{uuid.uuid4().hex[:8]}"  # type: ignore[attr-defined]
    registry.discovery.register(backend.scheme, backend.connect)  # type: ignore[attr-defined]
    yield backend
    registry.discovery.unregister(backend.scheme)  # type: ignore[attr-defined]


def runtime_on(backend: Backend, **options: Any) -> DistributedRuntime:
    return make_runtime(**{"discovery": backend.scheme, "request_plane": "mem", **options})  # type: ignore[attr-defined]


async def test_health_tells_of_a_client_that_routes_on_the_last_known_state() -> None:
    async with make_runtime() as runtime:
        async with runtime.endpoint(PATH).serve(echo):
            client = await runtime.endpoint(PATH).client()
            await bounded(client.wait_for_instances())
            store(runtime).outage(True)
            await until(lambda: runtime.health().status is Status.STALE)
            assert "last known" in runtime.health().detail
            assert await bounded(client.call("served all the same")) == "served all the same"
            store(runtime).outage(False)
            await until(lambda: runtime.health().status is Status.UP)


# Losing the lease.


async def test_after_a_lost_lease_everything_is_registered_again_under_the_same_id() -> None:
    async with make_runtime() as runtime:
        async with (
            runtime.endpoint("a.b.c").serve(echo) as one,
            runtime.endpoint("a.b.d").serve(echo) as two,
        ):
            client = await runtime.endpoint("a.b.c").client()
            await bounded(client.wait_for_instances())
            call = await one_attempt(client, "before", endpoint="a.b.c")
            store(runtime).expire()
            assert not store(runtime).entries
            assert call.error is None
            await until(lambda: {one.key, two.key} == store(runtime).entries.keys())
            assert await bounded(client.call("after")) == "after"
            assert runtime.connection_id() == one.instance_id


async def test_health_tells_of_a_lost_lease_and_of_the_next(backend: Backend) -> None:
    async with runtime_on(backend) as runtime:
        async with runtime.endpoint(PATH).serve(echo):
            assert runtime.health().status is Status.UP
            backend._mem.store.outage(True)
            backend._mem.store.expire()
            await until(lambda: runtime.health().status is Status.STALE)
            assert "lease" in runtime.health().detail or "away" in runtime.health().detail
            assert runtime._hosting.registrations is not None
            assert not runtime._hosting.registrations.held
            backend._mem.store.outage(False)
            await until(lambda: runtime.health().status is Status.UP)
            assert backend._mem.store.entries


async def test_a_lease_that_a_registration_finds_lost_is_taken_again_for_all(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    async with runtime_on(backend) as runtime:
        async with runtime.endpoint(PATH).serve(echo) as one:
            backend.put_errors.append(LeaseLostError("the test server forgot it"))
            async with runtime.endpoint("a.b.other").serve(echo) as other:
                await until(lambda: backend._mem.store.entries.keys() == {one.key, other.key})
                assert backend.leases == 2
                assert "is lost (the test server forgot it)" in caplog.text


async def test_a_lease_that_was_never_held_is_not_lost(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dynamo.runtime")
    async with runtime_on(backend, lease_loss="shutdown") as runtime:
        await bounded(enter(runtime))
        assert "held again" not in caplog.text
    backend.lease_errors = [UnavailableError("no test server")]
    async with runtime_on(backend, lease_loss="shutdown") as runtime:
        await bounded(enter(runtime))
        assert "held again" in caplog.text
    assert "no lease for instance" not in caplog.text  # who serves says what it waits for


async def test_the_end_leaves_the_lease_in_order(backend: Backend) -> None:
    async with runtime_on(backend) as runtime:
        await bounded(enter(runtime))
    assert backend.lease_ends == [None]


async def test_a_lease_that_cannot_be_left_is_not_lost(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.leave_error = LeaseLostError("the test server forgot it")
    async with runtime_on(backend) as runtime:
        await bounded(enter(runtime))
    assert "is lost" not in caplog.text


async def test_a_lost_lease_shuts_down_where_that_is_the_policy() -> None:
    async with make_runtime(lease_loss="shutdown") as runtime:
        serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(echo))
        await until(lambda: runtime.serving and store(runtime).entries)
        await until(
            lambda: runtime._hosting.registrations is not None and runtime._hosting.registrations.held
        )
        store(runtime).expire()
        await bounded(serving)
        assert runtime.health().status is Status.DOWN


async def test_another_live_incarnation_of_our_name_is_said_and_tried_again(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.url += "?ttl_s=0.2"
    async with runtime_on(backend) as runtime:
        async with runtime.endpoint(PATH).serve(echo) as instance:
            store = backend._mem.store
            rival = Instance(
                endpoint_id=ENDPOINT,
                instance_id=instance.instance_id,
                incarnation=random_incarnation(),
                addresses=("mem://elsewhere",),
            )
            async with open_mem(backend.url, Settings()) as other:
                lease = other.lease(instance_id=rival.instance_id, incarnation=rival.incarnation)
                async with lease as held:
                    store.entries.pop(instance.key)  # lost and taken over while we were away
                    await held.put(rival)
                    for own in list(backend._mem._leases):
                        own.lose("taken over")
                    await until(lambda: runtime.health().status is Status.DOWN)
                    assert "another incarnation" in runtime.health().detail
                    assert "another incarnation" in caplog.text
            await until(lambda: runtime.health().status is Status.UP)


async def test_a_name_that_is_taken_when_the_runtime_starts_is_a_conflict(backend: Backend) -> None:
    backend.url += "?ttl_s=0.2"
    backend.identities = [Identity(instance_id=7)]
    async with runtime_on(backend) as first, runtime_on(backend) as second:
        async with first.endpoint(PATH).serve(echo):
            with pytest.raises(ConflictError, match="another incarnation"):
                async with second.endpoint(PATH).serve(echo):
                    pass
            assert second.health().status is Status.UP  # and serves nothing
        async with second.endpoint(PATH).serve(echo):
            assert second.connection_id() == 7


async def test_a_conflict_over_what_is_wanted_no_more_is_no_trouble(backend: Backend) -> None:
    backend.url += "?ttl_s=0.2"
    backend.identities = [Identity(instance_id=7)]
    async with runtime_on(backend) as first, runtime_on(backend) as second:
        async with first.endpoint(PATH).serve(echo):
            entering = asyncio.ensure_future(enter(second, PATH))
            await until(
                lambda: second._hosting.registrations is not None and second._hosting.registrations.pending
            )
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await bounded(entering)
            assert second.health().status is Status.UP


@pytest.mark.parametrize("expire, bound", [(True, ", up to 5 s)"), (False, ")")])
async def test_a_restarted_process_waits_for_its_predecessor_and_says_so(
    backend: Backend,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    expire: bool,
    bound: str,
) -> None:
    monkeypatch.setattr("dynamo.core.lifetime.NOTICE_S", 0.05)
    backend.url += "?ttl_s=5"
    backend.leases_expire = expire
    backend.identities = [Identity(instance_id=7)]
    async with runtime_on(backend) as successor:
        async with runtime_on(backend) as predecessor:
            async with predecessor.endpoint(PATH).serve(echo):
                serving = asyncio.ensure_future(successor.endpoint(PATH).serve_endpoint(echo))
                await until(lambda: f"an earlier process of this id may hold it{bound}" in caplog.text)
        await until(lambda: successor.health().status is Status.UP)
        assert successor._hosting.registrations is not None
        assert successor._hosting.registrations.pending is None
        await successor.shutdown()
        await bounded(serving)


async def test_what_no_adapter_may_raise_is_told_as_ours_and_tried_again(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    mistake = RuntimeError("a third party's")
    backend.lease_errors = [mistake, mistake]
    async with runtime_on(backend) as runtime:
        with pytest.raises(DynamoError, match="discovery adapter failed: RuntimeError: a third") as caught:
            await bounded(enter(runtime))
        assert caught.value.__cause__ is mistake
        assert caplog.text.count("trying again: the discovery adapter failed") == 1
        backend.lease_errors.clear()
        await bounded(enter(runtime))


async def test_a_single_failure_in_groups_is_that_failure(backend: Backend) -> None:
    away = UnavailableError("no test server")
    backend.lease_errors = [ExceptionGroup("lease", [ExceptionGroup("keeping", [away])]) for _ in range(2)]
    async with runtime_on(backend) as runtime:
        await bounded(enter(runtime))


# Starting without a backend.


async def test_what_all_of_a_runtime_wait_for_is_said_once(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dynamo.core.lifetime.NOTICE_S", 0.05)
    backend.open_error = UnavailableError("no test server at test://nowhere (TEST_SERVER)")
    async with runtime_on(backend, startup_timeout_s=0.3) as runtime:
        waiting = [runtime.endpoint(f"demo.backend.{name}").serve_endpoint(echo) for name in ("one", "other")]
        outcomes = await bounded(
            asyncio.gather(*waiting, runtime.endpoint(PATH).client(), return_exceptions=True)
        )
    assert {type(outcome) for outcome in outcomes} == {UnavailableError}
    assert caplog.text.count("waiting for") == 1


async def test_a_backend_that_is_away_is_waited_for(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.open_error = UnavailableError("no test server at test://nowhere (TEST_SERVER)")
    async with runtime_on(backend) as runtime:
        serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(echo))
        await until(lambda: "waiting for" in caplog.text, 1.0)
        (record,) = (record for record in caplog.records if "waiting for" in record.message)
        assert record.levelno == logging.WARNING
        for part in ("no test server at test://nowhere", "DYN_STARTUP_TIMEOUT_S", "file (one host)"):
            assert part in record.getMessage()
        assert runtime.health().status is Status.DOWN
        assert "no test server" in runtime.health().detail
        backend.open_error = None
        await until(
            lambda: runtime._hosting.registrations is not None and runtime._hosting.registrations.held
        )
        await until(lambda: runtime.health().status is Status.UP)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bounded(serving)


@pytest.mark.parametrize("where", ["serve", "client"])
async def test_a_backend_that_stays_away_is_one_clear_error(backend: Backend, where: str) -> None:
    backend.open_error = UnavailableError("no test server at test://nowhere (TEST_SERVER)")
    async with runtime_on(backend, startup_timeout_s=0.1) as runtime:
        with pytest.raises(UnavailableError) as raised:
            if where == "client":
                await bounded(runtime.endpoint(PATH).client())
            else:
                await bounded(runtime.endpoint(PATH).serve_endpoint(echo))
    assert "no test server at test://nowhere (TEST_SERVER), after 0.1 s (startup_timeout_s)" in str(
        raised.value
    )
    assert "set discovery_backend to one that needs no server: mem" in str(raised.value)


async def test_a_backend_that_only_the_lease_needs_is_waited_for_too() -> None:
    async with make_runtime(startup_timeout_s=0.2) as runtime:
        await runtime.endpoint(PATH).client()  # opens discovery
        store(runtime).outage(True)
        with pytest.raises(UnavailableError, match=r"is away .*after 0\.2 s"):
            await bounded(runtime.endpoint(PATH).serve_endpoint(echo))
        assert runtime.serving == ()
        store(runtime).outage(False)
        async with runtime.endpoint(PATH).serve(echo):
            assert store(runtime).entries


async def test_a_pure_client_takes_no_lease_and_no_address(backend: Backend) -> None:
    backend.identities = [ConfigError("this process is none of the declared ones")]
    async with runtime_on(backend) as runtime:
        await runtime.endpoint(PATH).client()
        assert backend.leases == 0
        assert runtime._hosting.present is None


async def test_who_has_left_is_registered_no_more() -> None:
    async with make_runtime() as runtime:
        async with runtime.endpoint(PATH).serve(echo):
            assert store(runtime).entries
            store(runtime).outage(True)
            asyncio.get_running_loop().call_later(0.05, store(runtime).outage, False)
        assert not store(runtime).entries


async def test_a_removal_that_the_loss_of_the_lease_made_needless_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamo.core.serving.UNREGISTER_S", 0.05)
    async with make_runtime() as runtime:
        async with runtime.endpoint(PATH).serve(echo) as staying:
            async with runtime.endpoint("a.b.leaving").serve(echo):
                store(runtime).outage(True)
            store(runtime).expire()
            store(runtime).outage(False)
            await until(lambda: store(runtime).entries.keys() == {staying.key})
            await until(lambda: runtime.health().status is Status.UP)


@pytest.mark.parametrize("away", [False, True])
async def test_the_end_is_bounded_though_the_backend_is_away(
    away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo.core.serving.UNREGISTER_S", 0.1)
    async with make_runtime() as runtime:
        async with runtime.endpoint(PATH).serve(echo):
            store(runtime).outage(away)
        await bounded(runtime.shutdown())


async def enter(runtime: DistributedRuntime, path: str = "a.b.entered") -> None:
    async with runtime.endpoint(path).serve(echo):
        pass


async def test_a_shutdown_while_a_runtime_waits_for_its_backend_ends_the_wait(backend: Backend) -> None:
    backend.open_error = UnavailableError("no test server")
    async with runtime_on(backend) as runtime:
        serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(echo))
        calling = asyncio.ensure_future(runtime.endpoint(PATH).client())
        entering = asyncio.ensure_future(enter(runtime))
        await until(lambda: len(runtime.serving) == 2)
        await bounded(runtime.shutdown())
        for waiting in (calling, entering):
            with pytest.raises(ClosedError):
                await bounded(waiting)
        await bounded(serving)  # until the shutdown, as it says


async def test_a_shutdown_while_the_lease_is_waited_for_ends_the_wait() -> None:
    async with make_runtime() as runtime:
        await runtime.endpoint(PATH).client()
        store(runtime).outage(True)
        entering = asyncio.ensure_future(enter(runtime))
        await until(lambda: runtime._hosting.registrations)
        await bounded(runtime.shutdown())
        with pytest.raises(ClosedError):
            await bounded(entering)


# Without a runtime around it.


class Told(Telemetry):
    def __init__(self) -> None:
        self.held: list[bool] = []

    def endpoint(
        self, endpoint_id: EndpointId, side: Side, labels: Mapping[str, str] = NO_LABELS
    ) -> EndpointTelemetry:
        raise AssertionError("no request is made here")

    def instances_changed(self, change: Change) -> None:
        raise AssertionError("nothing is watched here")

    def lease_changed(self, held: bool, reason: str) -> None:
        self.held.append(held)


def registrations_on(discovery: Discovery, telemetry: Telemetry | None = None) -> Registrations:
    return Registrations(
        discovery, instance_id=7, incarnation=1, telemetry=telemetry, lost=lambda reason: None
    )


HERE = Instance(endpoint_id=ENDPOINT, instance_id=7, incarnation=1, addresses=("mem://here",))


async def test_who_waits_for_a_registration_is_told_of_the_end_though_the_backend_is_silent(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.silent = True
    async with backend.connect(backend.url, Settings()) as discovery:
        before = asyncio.all_tasks()
        registrations = registrations_on(discovery)
        registrations.want(HERE)
        waiting = asyncio.ensure_future(registrations.settled(ENDPOINT))
        await until(lambda: backend.leases)
        await bounded(registrations.close(60))
        with pytest.raises(ClosedError):
            await bounded(waiting)
        assert asyncio.all_tasks() == before
    assert "left behind" not in caplog.text


async def test_an_update_that_fails_waits_before_it_is_tried_again(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def delays() -> Iterator[float]:
        while True:
            tried.append(len(backend.puts))
            yield 0

    monkeypatch.setattr(registrations_module, "backoff", delays)
    async with backend.connect(backend.url, Settings()) as discovery:
        registrations = registrations_on(discovery)
        registrations.want(HERE)
        await bounded(registrations.settled(ENDPOINT))
        backend.put_errors += [UnavailableError("away"), UnavailableError("away")]
        registrations.want(attrs.evolve(HERE, metadata={"another": 1}))
        await bounded(registrations.settled(ENDPOINT))
        await registrations.close(60)
    assert tried == [2, 3]
    assert len(backend.puts) == 4


async def test_what_is_registered_is_not_registered_again(backend: Backend) -> None:
    another = attrs.evolve(HERE, endpoint_id=EndpointId.parse("a.b.other"))
    async with backend.connect(backend.url, Settings()) as discovery:
        registrations = registrations_on(discovery)
        for instance in (HERE, another):
            registrations.want(instance)
            await bounded(registrations.settled(instance.endpoint_id))
        registrations.unwant(ENDPOINT)
        await bounded(registrations.settled(ENDPOINT))
        assert backend.puts == [HERE, another]
        await registrations.close(5)


async def test_who_leaves_waits_for_what_is_being_registered(backend: Backend) -> None:
    backend.puts_pass.clear()
    async with backend.connect(backend.url, Settings()) as discovery:
        registrations = registrations_on(discovery)
        registrations.want(HERE)
        await until(lambda: registrations.pending)
        registrations.unwant(ENDPOINT)
        leaving = asyncio.ensure_future(registrations.settled(ENDPOINT))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not leaving.done()
        backend.puts_pass.set()
        await bounded(leaving)
        assert not backend._mem.store.entries
        await registrations.close(5)
        assert backend.lease_ends == [None]


async def test_telemetry_is_told_of_each_lease_and_its_loss(backend: Backend) -> None:
    told = Told()
    async with backend.connect(backend.url, Settings()) as discovery:
        registrations = registrations_on(discovery, told)
        registrations.want(HERE)
        await bounded(registrations.settled(ENDPOINT))
        assert registrations.registered(ENDPOINT)
        backend._mem.store.expire()
        await until(lambda: told.held == [True, False, True])
        await registrations.close(5)
    assert told.held == [True, False, True]


# Who we are.


async def test_the_backend_may_say_who_we_are(backend: Backend) -> None:
    backend.identities = [Identity(instance_id=0xBEEF)]
    async with runtime_on(backend) as runtime:
        async with runtime.endpoint(PATH).serve(echo) as instance:
            assert instance.instance_id == runtime.connection_id() == 0xBEEF


async def test_who_we_are_is_asked_until_the_backend_answers(backend: Backend) -> None:
    backend.identities = [UnavailableError("no test server")]
    async with runtime_on(backend) as runtime:
        serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(echo))
        await until(lambda: "no test server" in runtime.health().detail)
        assert runtime.health().status is Status.DOWN
        backend.identities = [Identity(instance_id=7)]
        await until(lambda: runtime.health().status is Status.UP)
        assert runtime.connection_id() == 7
        await bounded(runtime.shutdown())
        await bounded(serving)


async def test_an_id_that_was_given_out_is_kept_or_the_start_fails(backend: Backend) -> None:
    backend.identities = [Identity(instance_id=0xBEEF)]
    async with runtime_on(backend) as runtime:
        early = runtime.connection_id()
        with pytest.raises(ConfigError, match=f"{early}.*{0xBEEF}"):
            async with runtime.endpoint(PATH).serve(echo):
                pass
    async with make_runtime() as runtime:
        early = runtime.connection_id()
        async with runtime.endpoint(PATH).serve(echo) as instance:
            assert instance.instance_id == early


async def test_a_declared_address_that_was_taken_meanwhile_is_asked_for_again(backend: Backend) -> None:
    taken, free = fresh(), fresh()
    backend.identities = [Identity(instance_id=1, address=taken), Identity(instance_id=2, address=free)]
    other = Backend()
    other.identities = [Identity(instance_id=3, address=taken)]
    other.scheme = backend.scheme + "-other"  # type: ignore[attr-defined]
    registry.discovery.register(other.scheme, other.connect)  # type: ignore[attr-defined]
    try:
        async with runtime_on(other) as neighbour, runtime_on(backend) as runtime:
            async with neighbour.endpoint(PATH).serve(echo), runtime.endpoint(PATH).serve(echo) as instance:
                assert (instance.instance_id, instance.addresses) == (2, (free,))
    finally:
        registry.discovery.unregister(other.scheme)  # type: ignore[attr-defined]


async def test_a_process_for_which_no_declared_address_is_free_gives_up(backend: Backend) -> None:
    taken = fresh()
    async with make_runtime() as neighbour:
        plane = await neighbour._adapters.serving_plane()
        async with plane.serve(lambda call: None, instance_id=1, incarnation=1, address=taken):
            backend.identities = [Identity(instance_id=2, address=taken)]
            async with runtime_on(backend) as runtime:
                with pytest.raises(ConflictError, match="declared addresses was taken"):
                    await bounded(runtime.endpoint(PATH).serve_endpoint(echo))


async def test_a_backend_with_no_place_for_us_says_so(backend: Backend) -> None:
    backend.identities = [ConfigError("no declared address of this host is free (DYN_STATIC_INSTANCES)")]
    async with runtime_on(backend) as runtime:
        with pytest.raises(ConfigError, match="DYN_STATIC_INSTANCES"):
            await bounded(runtime.endpoint(PATH).serve_endpoint(echo))
        backend.identities = []
        async with runtime.endpoint(PATH).serve(echo):  # it is asked again
            pass
