"""One item back, from whom, after how many attempts, by when; and which instances there are."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack, nullcontext
from typing import Any

import attrs
import pytest

from dynamo.core import availability, retrying
from dynamo.core.codec import encode
from dynamo.core.context import Context
from dynamo.core.errors import (
    AuthError,
    CallCancelledError,
    CardinalityError,
    ClosedError,
    ConfigError,
    ConflictError,
    DeadlineError,
    DrainingError,
    DynamoError,
    EncodeError,
    NoInstancesError,
    OverloadedError,
    RemoteError,
    Retry,
    StreamBrokenError,
    TooLargeError,
    UnavailableError,
    UnknownEndpointError,
)
from dynamo.core.model import EndpointId, Phase
from dynamo.core.peers import Peer, Peers
from dynamo.core.ports.discovery import Change
from dynamo.core.ports.request_plane import IncomingCall, OutgoingCall, Request, RequestPlane
from dynamo.core.ports.telemetry import NO_LABELS, EndpointTelemetry, Side, Telemetry
from dynamo.core.routing import Strategy
from unit.calling import (
    BOUND_S,
    Worker,
    World,
    deployed,
    fail,
    refuse,
    reply,
    silent,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here waits for an instance to come back by itself."""
    monkeypatch.setattr(availability, "FIRST_BACKOFF_S", 60.0)
    monkeypatch.setattr(availability, "LONGEST_BACKOFF_S", 60.0)


def peer_of(world: World, worker: Worker) -> Peer:
    return world.memberships.of(worker.instance.endpoint_id).peers.by_id[worker.id]


def broken(worker: Worker, *items: Any) -> None:
    """``worker`` sends these items and vanishes."""

    def answer(call: IncomingCall) -> None:
        for item in items:
            call.send(encode(item))
        asyncio.get_running_loop().call_soon(worker.server.break_links)

    worker.answer = answer


# One item


async def test_a_call_returns_the_one_item() -> None:
    async with deployed() as world:
        worker = await world.worker()
        client = await world.ready_client()
        assert await client.call({"prompt": "hi"}) == {"echo": {"prompt": "hi"}, "from": worker.id}
        assert peer_of(world, worker).in_flight == 0


@pytest.mark.parametrize("value", [None, 0, "", [], b"raw", {"a": [1, None, b"x"]}])
async def test_any_item_is_returned_as_it_was_sent(value: object) -> None:
    async with deployed() as world:
        await world.worker(reply(value))
        client = await world.ready_client()
        assert await client.call("anything") == value


async def test_raw_bytes_arrive_as_a_memoryview_where_asked() -> None:
    async with deployed() as world:
        await world.worker(reply(b"raw"))
        client = await world.ready_client()
        assert type(await client.call(0)) is bytes
        item = await client.call(0, buffers=True)
        assert type(item) is memoryview
        assert bytes(item) == b"raw"


async def test_no_item_is_a_cardinality_error() -> None:
    async with deployed() as world:
        await world.worker(reply())
        client = await world.ready_client()
        with pytest.raises(CardinalityError, match=r"demo\.backend\.generate returned no response"):
            await client.call(0)


async def test_a_second_item_is_a_cardinality_error_and_a_kill() -> None:
    def answer(call: IncomingCall) -> None:
        call.send(encode(1))
        call.send(encode(2))

    async with deployed() as world:
        worker = await world.worker(answer)
        client = await world.ready_client()
        with pytest.raises(CardinalityError, match="multiple responses"):
            await client.call(0)
        await until(lambda: worker.cancelled == [True])


async def test_a_call_returns_only_after_the_end() -> None:
    async with deployed() as world:
        worker = await world.worker(lambda call: call.send(encode(1)))
        client = await world.ready_client()
        calling = asyncio.create_task(client.call(0))
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not calling.done()
        worker.calls[0].end()
        assert await calling == 1


async def test_what_cannot_be_encoded_is_refused_at_once() -> None:
    async with deployed() as world:
        worker = await world.worker()
        client = await world.ready_client()
        with pytest.raises(EncodeError):
            await client.call(object())
        assert not worker.calls


async def test_a_request_past_the_limit_is_told_to_the_caller() -> None:
    async with deployed(max_message_bytes=4096) as world:
        await world.worker()
        client = await world.ready_client()
        with pytest.raises(TooLargeError, match="DYN_TCP_MAX_MESSAGE_SIZE"):
            await client.call("x" * 5000)
        assert await client.call("x" * 50)


async def test_what_travels_with_the_request() -> None:
    async with deployed() as world:
        worker = await world.worker(idempotent=True)
        client = await world.ready_client()
        await client.call(0, timeout_s=30, metadata={"user": "me"}, priority=3)
        await client.call(1)
        first, second = (call.request for call in worker.calls)
        assert first.endpoint == "demo.backend.generate"
        assert first.timeout_s is not None
        assert 29 < first.timeout_s <= 30
        assert (dict(first.metadata), first.priority, first.attempt, first.end) == (
            {"user": "me"},
            3,
            1,
            True,
        )
        assert (dict(second.metadata), second.timeout_s) == ({}, None)
        assert first.request_id != second.request_id
        assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]+", first.request_id)


async def test_metadata_is_text_to_text() -> None:
    async with deployed() as world:
        await world.worker()
        client = await world.ready_client()
        with pytest.raises(TypeError, match="text to text"):
            await client.call(0, metadata={"n": 1})  # type: ignore[dict-item]


# Whom


async def test_round_robin_spreads_calls_evenly() -> None:
    async with deployed() as world:
        workers = [await world.worker() for _ in range(3)]
        client = await world.ready_client()
        for number in range(9):
            await client.call(number)
        assert [len(worker.calls) for worker in workers] == [3, 3, 3]


@pytest.mark.parametrize("strategy", ["random", "power_of_two", "least_loaded"])
async def test_other_strategies_reach_everybody(strategy: str) -> None:
    async with deployed() as world:
        workers = [await world.worker() for _ in range(3)]
        client = await world.ready_client(strategy=strategy)
        for number in range(100):
            await client.call(number)
        assert all(worker.calls for worker in workers)


async def test_least_loaded_avoids_who_is_busy() -> None:
    async with deployed() as world:
        busy, idle = await world.worker(silent), await world.worker()
        client = await world.ready_client(strategy="least_loaded")
        async with client.stream(0, instance=busy.id):
            for number in range(10):
                assert (await client.call(number))["from"] == idle.id


async def test_a_call_can_name_its_instance() -> None:
    async with deployed() as world:
        await world.worker()
        second = await world.worker(name="worker-2")
        client = await world.ready_client()
        for instance in (second.id, "worker-2"):
            for _ in range(3):
                assert (await client.call(0, instance=instance))["from"] == second.id


async def test_a_client_of_the_first_generation_is_bound_to_its_instance() -> None:
    async with deployed() as world:
        await world.worker(name="worker-0")
        worker = await world.worker(name="worker-1")
        client = await world.ready_client(strategy="direct", instance="worker-1")
        for _ in range(3):
            assert (await client.call(0))["from"] == worker.id


async def test_a_name_that_two_bear_is_an_error() -> None:
    async with deployed() as world:
        await world.worker(name="twin")
        await world.worker(name="twin")
        client = await world.ready_client()
        with pytest.raises(ConflictError, match="twin"):
            await client.call(0, instance="twin")


async def test_a_users_own_strategy_picks() -> None:
    class Last(Strategy):
        def pick(self, peers: Peers) -> Peer | None:
            return max(peers.ready, key=lambda peer: peer.instance_id, default=None)

    async with deployed() as world:
        await world.worker(instance_id=1)
        await world.worker(instance_id=2)
        client = await world.ready_client(strategy=Last())
        assert [(await client.call(0))["from"] for _ in range(3)] == [2, 2, 2]


async def test_a_strategy_that_raises_fails_its_call_alone() -> None:
    class Bad(Strategy):
        def pick(self, peers: Peers) -> Peer | None:
            raise LookupError("no shard for this key")

    async with deployed() as world:
        await world.worker()
        client = await world.ready_client(strategy=Bad())
        with pytest.raises(LookupError, match="no shard"):
            await client.call(0)
        assert await client.call(0, instance=client.instance_ids()[0])


async def test_draining_instances_get_nothing_new() -> None:
    async with deployed() as world:
        draining, staying = await world.worker(), await world.worker()
        client = await world.ready_client()
        await draining.update(phase=Phase.DRAINING)
        await until(lambda: client.instance_ids() == [staying.id])
        for number in range(5):
            await client.call(number)
        assert not draining.calls


# Nobody there


async def test_without_instances_a_call_waits_for_one() -> None:
    async with deployed() as world:
        client = world.client()
        calling = asyncio.create_task(client.call(0))
        await until(lambda: world.memberships.of(client.endpoint_id).waiters)
        worker = await world.worker()
        assert (await asyncio.wait_for(calling, BOUND_S))["from"] == worker.id


async def test_without_instances_the_error_says_what_was_looked_for_and_what_is_there() -> None:
    async with deployed(instance_wait_s=0.05) as world:
        await world.worker(endpoint_id=EndpointId.parse("demo.backend.generte"))
        client = await world.ready_client()
        with pytest.raises(NoInstancesError) as caught:
            await client.call(0)
        for part in (
            "no instance of demo.backend.generate after 0.05 s (DYN_INSTANCE_WAIT_S)",
            "discovery 'mem' lists none",
            "registered there: demo.backend.generte (1)",
            "DYN_DISCOVERY_BACKEND",
        ):
            assert part in str(caught.value)
        assert not world.memberships.of(client.endpoint_id).waiters


async def test_an_unknown_instance_is_waited_for_too() -> None:
    async with deployed(instance_wait_s=0.05) as world:
        await world.worker()
        client = await world.ready_client()
        with pytest.raises(NoInstancesError, match=r"no instance 12345 of demo.*lists 1"):
            await client.call(0, instance=12345)
        with pytest.raises(NoInstancesError, match=r"no instance named '12345' \(an id is an int\) of demo"):
            await client.call(0, instance="12345")
        with pytest.raises(DeadlineError, match=r"no instance worker-9 of demo.*lists 1"):
            await client.call(0, instance="worker-9", timeout_s=0.02)


async def test_with_a_deadline_the_deadline_is_the_bound() -> None:
    async with deployed(instance_wait_s=60) as world:
        client = await world.ready_client()
        with pytest.raises(
            DeadlineError,
            match=r"no instance of demo\.backend\.generate within 0\.05 s: discovery 'mem' lists none",
        ):
            await client.call(0, timeout_s=0.05)
        worker = await world.worker(refuse(OverloadedError("full")))
        await until(client.instance_ids)
        with pytest.raises(DeadlineError, match=rf"instance {worker.id} at mem://.*before that: full"):
            await client.call(0, timeout_s=0.05)


async def test_with_a_deadline_refusals_are_retried_for_longer_than_the_wait_for_an_instance() -> None:
    async with deployed(instance_wait_s=0.01) as world:
        worker = await world.worker(refuse(OverloadedError("full")))
        client = await world.ready_client()
        calling = asyncio.create_task(client.call(0, timeout_s=60))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await until(lambda: loop.time() > begun + 0.05)
        worker.answer = None
        assert (await asyncio.wait_for(calling, BOUND_S))["from"] == worker.id


async def test_an_outage_of_discovery_does_not_stop_calls() -> None:
    async with deployed() as world:
        worker = await world.worker()
        client = await world.ready_client()
        world.store.outage(True)
        await until(lambda: world.memberships.of(client.endpoint_id).stale)
        assert (await client.call(0))["from"] == worker.id


async def test_addresses_without_an_adapter_are_passed_over() -> None:
    async with deployed() as world:
        await world.worker(addresses=lambda address: ("nats://x", address))
        client = await world.ready_client()
        await client.call(0)
        await client.call(1)
        assert world.dialled[0] == "nats://x"
        assert len(world.dialled) == 2  # found once


async def test_an_instance_that_cannot_be_dialled_is_passed_over() -> None:
    async with deployed() as world:
        worker = await world.worker()
        for _ in range(3):
            await world.worker(addresses=lambda address: ("nats://x",))
        client = await world.ready_client()
        for number in range(8):
            assert (await client.call(number))["from"] == worker.id


async def test_an_instance_asked_for_that_cannot_be_dialled_is_told_at_once() -> None:
    async with deployed(instance_wait_s=60) as world:
        await world.worker()
        await world.worker(instance_id=7, addresses=lambda address: ("nats://x",))
        client = await world.ready_client()
        for _ in range(2):
            with pytest.raises(NoInstancesError, match=r"/7 cannot be dialled"):
                await asyncio.wait_for(client.call(0, instance=7), BOUND_S)


@pytest.mark.parametrize("instance", [None, 7])
async def test_if_nobody_can_be_dialled_both_sides_are_named(instance: int | None) -> None:
    async with deployed(instance_wait_s=60) as world:
        await world.worker(instance_id=7, addresses=lambda address: ("nats://x", "http2://y"))
        client = await world.ready_client()
        for _ in range(2):
            with pytest.raises(
                NoInstancesError,
                match=r"listens on http2, nats, this process dials .*mem, .*tcp.*DYN_REQUEST_PLANE",
            ) as caught:
                await client.call(0, instance=instance)
            assert caught.value.retry is Retry.NEVER


async def test_an_instance_that_gets_an_address_can_be_dialled_again() -> None:
    async with deployed() as world:
        worker = await world.worker(addresses=lambda address: ("nats://x",))
        client = await world.ready_client()
        with pytest.raises(NoInstancesError):
            await client.call(0)
        await worker.update(addresses=worker.server.addresses)
        membership = world.memberships.of(client.endpoint_id)
        await membership.wait_for(lambda membership: bool(membership.peers.ready), BOUND_S)
        assert (await client.call(0))["from"] == worker.id


async def test_an_instance_that_moved_is_called_at_its_new_address() -> None:
    async with deployed() as world:
        worker = await world.worker()
        client = await world.ready_client()
        await client.call(0)
        async with world.plane.serve(
            worker.accept, instance_id=worker.id, incarnation=worker.instance.incarnation
        ) as server:
            await worker.update(addresses=server.addresses)
            await until(lambda: client.instances() == [worker.instance])
            worker.server.abort()
            assert (await client.call(1))["from"] == worker.id
            assert worker.calls[-1].request.attempt == 1


class Picky(RequestPlane):
    """Dials ``odd://`` addresses: refuses them at the call, or by an answer, as a Unix socket may.

    Or it dials the address ``good`` instead.
    """

    def __init__(self, plane: RequestPlane, answer: DynamoError | None, good: str = "mem://nobody") -> None:
        self.plane, self.answer, self.good, self.calls = plane, answer, good, 0

    @property
    def capability(self) -> Any:
        return self.plane.capability

    def serve(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("nobody serves here")

    def call(
        self, address: str, request: Request, *, instance_id: int = 0, incarnation: int = 0
    ) -> OutgoingCall:
        self.calls += 1
        if self.answer is None:
            raise ConfigError("another boot")
        return self.plane.call(self.good, request, instance_id=instance_id, incarnation=incarnation)

    async def check(self, address: str) -> Any:
        return await self.plane.check(self.good)


@pytest.mark.parametrize("answer", [None, UnavailableError("no such socket")])
async def test_an_address_that_does_not_work_here_gives_way_to_the_next(answer: DynamoError | None) -> None:
    async with deployed() as world:
        worker = await world.worker(addresses=lambda address: ("odd://socket", address))
        picky = Picky(world.plane, answer)
        client = await world.ready_client(
            dial=lambda address: picky if address.startswith("odd:") else world.plane
        )
        for number in range(3):
            assert (await client.call(number))["from"] == worker.id
        assert picky.calls == 1  # remembered
        assert not peer_of(world, worker).failures


async def test_calls_that_fail_late_follow_those_that_found_the_way() -> None:
    async with deployed() as world, AsyncExitStack() as stack:
        held: dict[str, list[IncomingCall]] = {"first": [], "second": []}

        async def gate(name: str, worker: Worker) -> str:
            server = await stack.enter_async_context(
                world.plane.serve(
                    held[name].append, instance_id=worker.id, incarnation=worker.instance.incarnation
                )
            )
            return server.addresses[0]

        worker = await world.worker()
        gates = (await gate("first", worker), await gate("second", worker))
        await worker.update(addresses=(*gates, *worker.instance.addresses))
        client = await world.ready_client()
        early, late = (asyncio.create_task(client.call(number)) for number in range(2))
        await until(lambda: len(held["first"]) == 2)
        held["first"][0].refuse(UnavailableError("closed"))
        await until(lambda: held["second"])
        held["second"][0].refuse(UnavailableError("closed"))
        await early
        held["first"][1].refuse(UnavailableError("closed"))
        await late
        assert len(held["second"]) == 1
        assert not peer_of(world, worker).failures


async def test_an_address_that_has_worked_fails_with_its_instance() -> None:
    async with deployed() as world:
        worker, good = await world.worker(), await world.worker()
        picky = Picky(world.plane, UnavailableError("gone"), worker.server.addresses[0])
        await worker.update(addresses=("odd://socket", "mem://other"))
        client = await world.ready_client(
            dial=lambda address: picky if address.startswith("odd:") else world.plane
        )
        for number in range(4):
            await client.call(number)
        worker.answer = refuse(UnavailableError("silent for too long"))
        for number in range(4):
            assert (await client.call(number))["from"] == good.id
        assert picky.calls == 3  # twice it worked, once it was enough
        assert peer_of(world, worker).failures == 1


async def test_an_adapter_that_was_opened_meanwhile_dials_the_same_address() -> None:
    async with deployed() as world:
        worker = await world.worker(addresses=lambda address: (address, "mem://other"))
        opening = Picky(world.plane, UnavailableError("still opening"))
        planes: list[RequestPlane] = [opening, world.plane]
        client = await world.ready_client(
            dial=lambda address: planes.pop(0) if len(planes) > 1 else planes[0]
        )
        assert (await client.call(0))["from"] == worker.id
        assert worker.calls[0].request.attempt == 2
        assert not peer_of(world, worker).failures


@pytest.mark.parametrize("other", ["mem://nobody", None])
async def test_a_probe_asks_at_every_address(other: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "FIRST_BACKOFF_S", 0.002)
    async with deployed() as world:
        worker, good = await world.worker(), await world.worker()
        addresses = (
            other or worker.server.addresses[0],
            worker.server.addresses[0] if other else "mem://nobody",
        )
        await worker.update(addresses=addresses)
        client = await world.ready_client()
        worker.answer = refuse(DrainingError("d"))
        for number in range(6):
            assert (await client.call(number))["from"] == good.id
        assert worker.calls
        peers = world.memberships.of(client.endpoint_id).peers
        await until(lambda: len(peers.ready) == 2)


async def test_an_instance_that_comes_back_is_called_at_its_preferred_address() -> None:
    async with deployed() as world:
        worker = await world.worker(addresses=lambda address: ("odd://socket", address), idempotent=True)
        good = await world.worker(idempotent=True)
        picky = Picky(world.plane, UnavailableError("no such socket"))
        client = await world.ready_client(
            dial=lambda address: picky if address.startswith("odd:") else world.plane
        )
        broken(worker)
        for number in range(4):
            assert (await client.call(number))["from"] == good.id
        assert picky.calls == 1
        world.memberships.of(client.endpoint_id).peers.restore(peer_of(world, worker))
        for number in range(4):
            assert (await client.call(number))["from"] == good.id
        assert picky.calls == 2


# Failures


REFUSALS = [DrainingError("d"), UnknownEndpointError("u"), OverloadedError("o"), UnavailableError("r")]


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
async def test_a_refusal_is_stepped_over(error: DynamoError) -> None:
    async with deployed() as world:
        refusing = await world.worker(refuse(error))
        good = await world.worker()
        client = await world.ready_client()
        for number in range(10):
            assert (await client.call(number))["from"] == good.id
        aside = not isinstance(error, OverloadedError)
        assert (peer_of(world, refusing).failures > 0) is aside
        assert len(refusing.calls) == 1 if aside else len(refusing.calls) > 1


async def test_attempts_count_and_keep_the_request_id() -> None:
    async with deployed() as world:
        workers = [await world.worker(refuse(OverloadedError("o"))) for _ in range(3)]
        client = await world.ready_client()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        calling = asyncio.create_task(client.call({"n": 1}, timeout_s=30))
        await until(lambda: sum(len(worker.calls) for worker in workers) >= 6 and loop.time() > begun + 0.01)
        for worker in workers:
            worker.answer = None
        await calling
        requests = [call.request for worker in workers for call in worker.calls]
        assert len({request.request_id for request in requests}) == 1
        assert sorted(request.attempt for request in requests) == list(range(1, len(requests) + 1))
        times = [request.timeout_s for request in sorted(requests, key=lambda request: request.attempt)]
        assert times[0] is not None
        assert times[-1] is not None
        assert times[-1] < times[0] - 0.005
        assert all(item == {"n": 1} for worker in workers for item in worker.requests)


async def test_retries_ask_everybody_before_anybody_twice() -> None:
    async with deployed() as world:
        workers = [await world.worker(refuse(OverloadedError("o"))) for _ in range(5)]
        client = await world.ready_client(strategy="random")
        calling = asyncio.create_task(client.call(0))
        for rounds in (1, 2):
            await until(lambda rounds=rounds: sum(len(worker.calls) for worker in workers) == 5 * rounds)  # type: ignore[misc]
            assert [len(worker.calls) for worker in workers] == [rounds] * 5
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)


async def test_refused_by_everybody_the_last_refusal_is_raised_in_time() -> None:
    async with deployed(instance_wait_s=0.1) as world:
        await world.worker(refuse(OverloadedError("the queue is full")))
        client = await world.ready_client()
        gave_up = r"the queue is full; gave up after \d+ attempts in 0\.1 s"
        with pytest.raises(OverloadedError, match=gave_up) as caught:
            await client.call(0)
        assert str(caught.value.__cause__) == "the queue is full"


async def test_the_time_between_two_attempts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_DELAY_S", 3600.0)
    monkeypatch.setattr(retrying, "LONGEST_DELAY_S", 0.001)
    async with deployed() as world:
        worker = await world.worker(refuse(OverloadedError("the queue is full")))
        client = await world.ready_client()
        calling = asyncio.create_task(client.call(0))
        await until(lambda: len(worker.calls) >= 3)
        worker.answer = reply("at last")
        assert await asyncio.wait_for(calling, BOUND_S) == "at last"


async def test_a_dead_instance_is_put_aside_at_once() -> None:
    async with deployed() as world:
        dead, good = await world.worker(), await world.worker()
        client = await world.ready_client()
        dead.server.abort()
        for number in range(10):
            assert (await client.call(number))["from"] == good.id
        assert peer_of(world, dead).failures == 1


async def test_an_answer_brings_back_an_instance_that_was_aside_be_it_an_error() -> None:
    async with deployed() as world:
        worker = await world.worker()
        client = await world.ready_client()
        peers = world.memberships.of(client.endpoint_id).peers
        for error in (None, "its own backend"):
            broken(worker)
            with pytest.raises(StreamBrokenError):
                await client.call(0)
            assert list(peers.aside) == [worker.id]
            worker.answer = None if error is None else fail(StreamBrokenError(error))
            with nullcontext() if error is None else pytest.raises(StreamBrokenError, match=error):
                await client.call(0)
            assert not peers.aside
            assert not peer_of(world, worker).failures


async def test_if_everybody_failed_the_least_recently_failed_one_is_tried() -> None:
    async with deployed() as world:
        first, second = await world.worker(), await world.worker()
        client = await world.ready_client()
        peers = world.memberships.of(client.endpoint_id).peers
        for worker in (second, first):
            peers.set_aside(peer_of(world, worker))
        for _ in range(3):
            peers.set_aside(peer_of(world, first))
            assert (await client.call(0))["from"] == second.id


async def test_direct_never_moves() -> None:
    async with deployed(instance_wait_s=0.1) as world:
        pinned = await world.worker(refuse(DrainingError("going")))
        other = await world.worker()
        client = await world.ready_client()
        with pytest.raises(DrainingError, match="gave up"):
            await client.call(0, instance=pinned.id)
        assert len(pinned.calls) > 1
        assert not other.calls


async def test_what_may_have_run_is_not_sent_again() -> None:
    async with deployed() as world:
        first, second = await world.worker(), await world.worker()
        for worker in (first, second):
            broken(worker)
        client = await world.ready_client()
        with pytest.raises(StreamBrokenError) as caught:
            await client.call(0)
        assert caught.value.received == 0
        assert len(first.calls) + len(second.calls) == 1


@pytest.mark.parametrize("who", ["worker", "caller"])
async def test_what_is_idempotent_is_sent_three_times_at_most(who: str) -> None:
    async with deployed() as world:
        workers = [await world.worker(idempotent=who == "worker") for _ in range(5)]
        for worker in workers:
            broken(worker)
        client = await world.ready_client()
        with pytest.raises(StreamBrokenError):
            await client.call(0, idempotent=True if who == "caller" else None)
        assert Counter(len(worker.calls) for worker in workers) == {1: 3, 0: 2}


async def test_what_is_idempotent_gets_through() -> None:
    async with deployed() as world:
        bad, good = await world.worker(), await world.worker()
        broken(bad)
        client = await world.ready_client()
        for number in range(4):
            assert (await client.call(number, idempotent=True))["from"] == good.id
        assert peer_of(world, bad).failures == 1


async def test_after_an_attempt_that_ran_long_an_instance_is_waited_for_anew() -> None:
    wait_s = 0.3
    async with deployed(instance_wait_s=wait_s) as world:
        worker = await world.worker()
        client = await world.ready_client()
        broken(worker)
        calling = asyncio.create_task(client.call(0, idempotent=True))
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        worker.answer = silent
        await until(lambda: len(worker.calls) == 2)
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        await worker.leave()
        await until(lambda: client._out.peers.count == 0 and loop.time() > began_at + wait_s)
        worker.server.break_links()
        await until(lambda: calling.done() or client._membership.waiters)
        await world.worker(reply("at last"))
        assert await asyncio.wait_for(calling, BOUND_S) == "at last"


async def test_an_item_whose_end_got_lost_is_not_the_answer_to_a_call_yet() -> None:
    async with deployed() as world:
        bad, good = await world.worker(), await world.worker()
        broken(bad, "half an answer")
        client = await world.ready_client()
        for number in range(4):
            assert (await client.call(number, idempotent=True))["from"] == good.id
        assert bad.calls
        with pytest.raises(StreamBrokenError) as caught:
            await client.call(0, idempotent=False, instance=bad.id)
        assert caught.value.received == 1


async def test_ends_that_get_lost_again_and_again_are_told_after_three_attempts() -> None:
    async with deployed() as world:
        workers = [await world.worker() for _ in range(5)]
        for worker in workers:
            broken(worker, "half an answer")
        client = await world.ready_client()
        with pytest.raises(StreamBrokenError):
            await client.call(0, idempotent=True)
        assert Counter(len(worker.calls) for worker in workers) == {1: 3, 0: 2}


async def test_an_answer_without_items_is_none_whatever_came_of_the_attempt_before() -> None:
    async with deployed() as world:
        worker = await world.worker()
        broken(worker, "half an answer")
        client = await world.ready_client()
        calling = asyncio.create_task(client.call(0, idempotent=True))
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        worker.answer = reply()
        with pytest.raises(CardinalityError, match="no response"):
            await calling


async def test_a_call_that_is_stopped_between_two_attempts_has_no_answer() -> None:
    async with deployed() as world:
        worker, context = await world.worker(silent), Context("c-1")
        client = await world.ready_client()
        calling = asyncio.create_task(client.call(0, idempotent=True, context=context))
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        await worker.leave()
        await until(lambda: client._out.peers.count == 0)
        (exchange,) = client._out.active
        worker.calls[0].send(encode("half an answer"))
        await until(lambda: exchange.answered)
        worker.server.break_links()
        await until(lambda: exchange.call is None)
        context.stop_generating()
        with pytest.raises(CardinalityError, match="no response"):
            await calling


async def test_the_caller_may_overrule_that_an_endpoint_is_idempotent() -> None:
    async with deployed() as world:
        workers = [await world.worker(idempotent=True) for _ in range(2)]
        for worker in workers:
            broken(worker)
        client = await world.ready_client()
        with pytest.raises(StreamBrokenError):
            await client.call(0, idempotent=False)
        assert sum(len(worker.calls) for worker in workers) == 1


@pytest.mark.parametrize(
    "error",
    [
        RemoteError("ValueError: no"),
        UnavailableError("its own backend"),
        StreamBrokenError("its own backend"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_a_handler_raised_is_never_retried_and_blames_nobody(error: DynamoError) -> None:
    async with deployed() as world:
        workers = [await world.worker(fail(error), idempotent=True) for _ in range(2)]
        client = await world.ready_client()
        with pytest.raises(type(error)) as caught:
            await client.call(0)
        assert caught.value.remote
        assert sum(len(worker.calls) for worker in workers) == 1
        assert not any(peer_of(world, worker).failures for worker in workers)


async def test_a_wrong_token_is_told_at_once_and_the_instance_put_aside() -> None:
    async with deployed() as world:
        error = AuthError("the token differs: DYN_AUTH_TOKEN")
        worker = await world.worker(lambda call: call.fail(error))
        client = await world.ready_client()
        with pytest.raises(AuthError, match="DYN_AUTH_TOKEN"):
            await client.call(0)
        assert len(worker.calls) == 1
        assert peer_of(world, worker).failures == 1


async def test_sixty_four_calls_that_break_together_are_one_failure() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        calls = [asyncio.create_task(client.call(number)) for number in range(64)]
        await until(lambda: len(worker.calls) == 64)
        worker.server.break_links()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, StreamBrokenError) for result in results)
        assert peer_of(world, worker).failures == 1
        assert peer_of(world, worker).in_flight == 0


# Deadlines


async def test_a_deadline_names_endpoint_instance_and_attempt_and_kills() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        with pytest.raises(
            DeadlineError,
            match=rf"generate: no answer within 0\.05 s from instance {worker.id} at mem://\S+, attempt 1",
        ):
            await client.call(0, timeout_s=0.05)
        await until(lambda: worker.cancelled == [True])
        assert peer_of(world, worker).failures == 1  # it was silent all the while


async def test_an_instance_that_answers_others_is_only_slow() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        waiting = asyncio.create_task(client.call(0, timeout_s=0.1))
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        worker.answer = None
        await client.call(1)
        with pytest.raises(DeadlineError):
            await waiting
        assert not peer_of(world, worker).failures


async def test_a_deadline_that_is_over_sends_nothing() -> None:
    async with deployed() as world:
        worker = await world.worker()
        client = await world.ready_client()
        with pytest.raises(DeadlineError, match="before the call began"):
            await client.call(0, timeout_s=0)
        assert not worker.calls


async def test_a_deadline_that_is_kept_leaves_no_timer() -> None:
    async with deployed() as world:
        await world.worker()
        client = await world.ready_client()
        loop = asyncio.get_running_loop()
        await client.call(0, timeout_s=60)
        if hasattr(loop, "_scheduled"):
            assert all(handle.cancelled() for handle in loop._scheduled if handle.when() > loop.time() + 50)


# Contexts


async def test_a_context_takes_its_id_metadata_trace_and_deadline_along() -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    async with deployed() as world:
        worker = await world.worker()
        client = await world.ready_client()
        context = Context("parent", {"user": "me", "traceparent": trace, "tracestate": "x=1"}, timeout_s=20)
        await client.call(0, context=context, timeout_s=60, metadata={"extra": "1"})
        await client.call(0, context=context, timeout_s=10)
        first, second = (call.request for call in worker.calls)
        assert first.request_id == "parent"
        assert first.timeout_s is not None
        assert second.timeout_s is not None
        assert 15 < first.timeout_s <= 20
        assert 5 < second.timeout_s <= 10
        assert first.metadata == {
            "user": "me",
            "extra": "1",
            "tracestate": "x=1",
            "traceparent": f"00-{'a' * 32}-{context.span_id}-01",
        }
        assert context.span_id != "b" * 16


async def test_killing_the_context_cancels_the_call_and_the_worker() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        context = Context()
        calling = asyncio.create_task(client.call(0, context=context))
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        context.kill()
        with pytest.raises(CallCancelledError, match="cancelled by its context"):
            await calling
        await until(lambda: worker.cancelled == [True])
        assert not context._hooks


async def test_stopping_the_context_asks_the_worker_to_finish() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        context = Context()
        calling = asyncio.create_task(client.call(0, context=context))
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        context.stop_generating()
        await until(lambda: worker.cancelled == [False])
        worker.calls[0].send(encode("early"), end=True)
        assert await calling == "early"


async def test_a_context_that_was_stopped_before_is_stopped_for_the_worker_too() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        context = Context()
        context.stop_generating()
        calling = asyncio.create_task(client.call(0, context=context))
        await until(lambda: worker.cancelled == [False])
        worker.calls[0].send(encode(1), end=True)
        assert await calling == 1


async def test_a_context_that_was_killed_before_sends_nothing() -> None:
    async with deployed() as world:
        worker = await world.worker()
        client = await world.ready_client()
        context = Context()
        context.kill()
        with pytest.raises(CallCancelledError):
            await client.call(0, context=context)
        assert not worker.calls
        assert not context._hooks


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_context_ends_the_wait_for_an_instance(how: str) -> None:
    async with deployed(instance_wait_s=60) as world:
        client = await world.ready_client()
        context = Context()
        calling = asyncio.create_task(client.call(0, context=context))
        await until(lambda: world.memberships.of(client.endpoint_id).waiters)
        context.stop_generating() if how == "stop" else context.kill()
        with pytest.raises(CallCancelledError):
            await asyncio.wait_for(calling, BOUND_S)


# Cancellation, and the client's end


async def test_cancelling_a_call_kills_it() -> None:
    async with deployed() as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        calling = asyncio.create_task(client.call(0, timeout_s=60))
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await until(lambda: worker.cancelled == [True])
        assert peer_of(world, worker).in_flight == 0
        assert not client._out.active


@pytest.mark.parametrize("phase", ["waiting for an instance", "pausing before a retry"])
async def test_cancelling_between_attempts_leaves_nothing(phase: str) -> None:
    async with deployed(instance_wait_s=60) as world:
        if phase.startswith("pausing"):
            await world.worker(refuse(OverloadedError("o")))
        client = await world.ready_client()
        calling = asyncio.create_task(client.call(0))
        (await until(lambda: any(exchange._wake for exchange in client._out.active)))
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert not client._out.active
        assert not world.memberships.of(client.endpoint_id).waiters


async def test_closing_a_client_ends_its_calls() -> None:
    async with deployed(instance_wait_s=60) as world:
        worker = await world.worker(silent)
        client = await world.ready_client()
        calls = [
            asyncio.create_task(client.call(0)),
            asyncio.create_task(client.call(0, instance=12345)),
            asyncio.create_task(client.wait_for_instances(2)),
        ]
        await asyncio.wait_for(worker.came.wait(), BOUND_S)
        await until(lambda: len(world.memberships.of(client.endpoint_id).waiters) == 2)
        await client.aclose()
        await client.aclose()
        for call in calls:
            with pytest.raises(ClosedError, match="closed"):
                await asyncio.wait_for(call, BOUND_S)
        await until(lambda: worker.cancelled == [True])
        with pytest.raises(ClosedError, match="closed"):
            await client.call(0)


async def test_closing_one_client_leaves_the_others_watch() -> None:
    async with deployed() as world:
        worker = await world.worker()
        first, second = await world.ready_client(), await world.ready_client()
        async with first:
            await first.call(0)
        another = await world.worker()
        await until(lambda: {*second.instance_ids()} == {worker.id, another.id})


async def test_closing_the_last_client_ends_the_watch() -> None:
    async with deployed() as world:
        before = asyncio.all_tasks()
        first, second = await world.ready_client(), await world.ready_client()
        assert len(asyncio.all_tasks() - before) == 1
        await first.aclose()
        await second.aclose()
        await until(lambda: asyncio.all_tasks() <= before)


async def test_the_end_of_the_runtime_ends_a_wait_for_an_instance() -> None:
    async with deployed(instance_wait_s=60) as world:
        client = await world.ready_client()
        calling = asyncio.create_task(client.call(0))
        await until(lambda: world.memberships.of(client.endpoint_id).waiters)
        await world.memberships.aclose()
        with pytest.raises(ClosedError, match="runtime ended"):
            await asyncio.wait_for(calling, BOUND_S)


async def test_another_loop_is_told_where_the_client_belongs() -> None:
    async with deployed() as world:
        await world.worker()
        client = await world.ready_client()
        caught: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(client.call(0))
            except ClosedError as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join, BOUND_S)
        assert "belongs to the event loop" in str(caught[0])


# The instances


async def test_the_instances_are_those_that_routing_uses() -> None:
    async with deployed() as world:
        worker, draining = await world.worker(), await world.worker()
        client = await world.ready_client()
        assert sorted(client.instance_ids()) == sorted([worker.id, draining.id])
        await draining.update(phase=Phase.DRAINING)
        await until(lambda: client.instance_ids() == [worker.id])
        assert client.instances() == [worker.instance]
        assert str(client.instances()[0]) == f"demo/backend/generate/{worker.id}"
        assert client.instances()[0].transport.kind == "mem"


async def test_waiting_for_instances_gives_their_ids() -> None:
    async with deployed() as world:
        client = world.client()
        waiting = asyncio.create_task(client.wait_for_instances())
        worker = await world.worker()
        assert await asyncio.wait_for(waiting, BOUND_S) == [worker.id]
        with pytest.raises(TimeoutError, match="lists 1"):
            await client.wait_for_instances(2, timeout_s=0.02)


async def test_a_long_wait_for_instances_says_once_what_it_waits_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with deployed(instance_wait_s=0.02) as world:
        client = await world.ready_client()
        waiting = asyncio.create_task(client.wait_for_instances())
        await until(lambda: "s for an instance; discovery" in caplog.text)
        worker = await world.worker()
        assert await asyncio.wait_for(waiting, BOUND_S) == [worker.id]
        assert caplog.text.count("still waiting") == 1


async def test_instances_are_waited_for_by_a_property() -> None:
    async with deployed() as world:
        client = await world.ready_client()
        await world.worker(instance_id=5, metadata={"role": "prefill", "rank": 0})
        await world.worker(instance_id=4, metadata={"role": "decode", "rank": 0})
        await world.worker(instance_id=3, metadata={"role": "decode"})
        assert await client.wait_for_instance_by_runtime_data("role", "prefill", 5) == 5
        assert await client.wait_for_instances_by_runtime_data("role", "decode", 2, timeout_s=5) == [3, 4]
        assert await client.wait_for_instances_by_runtime_data("rank", "0", 2, 5) == [4, 5]


async def test_a_property_that_does_not_appear_is_a_timeout_that_counts() -> None:
    async with deployed() as world:
        client = await world.ready_client()
        await world.worker(instance_id=5, metadata={"role": "decode"})
        await world.worker(instance_id=4, metadata={"role": "decode"})
        await client.wait_for_instances(2)
        with pytest.raises(TimeoutError, match=r"last_match_count=2, matching_ids=\[4, 5\]"):
            await client.wait_for_instances_by_runtime_data("role", "decode", 3, timeout_s=0.02)
        with pytest.raises(TimeoutError, match=r"last_match_count=2, matching_ids=\[4, 5\]"):
            await client.wait_for_instance_by_runtime_data("role", "decode", timeout_s=0.02)
        with pytest.raises(TimeoutError, match=r"last_match_count=0, matching_ids=\[\]"):
            await client.wait_for_instance_by_runtime_data("role", "prefill", timeout_s=0.02)
        with pytest.raises(ConfigError):
            await client.wait_for_instances_by_runtime_data("role", "decode", 0)


# Telemetry


@attrs.define
class Counted(EndpointTelemetry):
    """What it was told, in order."""

    told: list[str] = attrs.Factory(list)

    def started(self) -> None:
        self.told.append("started")

    def first_item(self, after_s: float) -> None:
        assert 0 <= after_s < BOUND_S
        self.told.append("first item")

    def ended(self, after_s: float, error: str | None) -> None:
        assert 0 <= after_s < BOUND_S
        self.told.append(f"ended: {error}")

    def refused(self, error: str) -> None:
        self.told.append(f"refused: {error}")

    def retried(self, error: str) -> None:
        self.told.append(f"retried: {error}")


@attrs.define
class Telling(Telemetry):
    counted: Counted = attrs.Factory(Counted)
    asked: list[tuple[str, Side]] = attrs.Factory(list)

    def endpoint(
        self, endpoint_id: EndpointId, side: Side, labels: Mapping[str, str] = NO_LABELS
    ) -> EndpointTelemetry:
        self.asked.append((str(endpoint_id), side))
        return self.counted

    def instances_changed(self, change: Change) -> None: ...

    def lease_changed(self, held: bool, reason: str) -> None: ...


async def test_telemetry_is_told_of_each_request_once() -> None:
    async with deployed() as world:
        worker = await world.worker()
        telling = Telling()
        client = await world.ready_client(telemetry=telling)
        await client.call(0)
        worker.answer = refuse(OverloadedError("o"))
        calling = asyncio.create_task(client.call(0))
        await until(lambda: len(worker.calls) >= 2)
        worker.answer = fail(RemoteError("no"))
        with pytest.raises(RemoteError):
            await calling
        told = telling.counted.told
        assert telling.asked == [("demo.backend.generate", Side.CLIENT)]
        assert told[:4] == ["started", "first item", "ended: None", "started"]
        assert set(told[4:-1]) == {"retried: OverloadedError"}
        assert told[-1] == "ended: RemoteError"
