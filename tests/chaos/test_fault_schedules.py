"""Whatever happens to links, workers and callers, every call ends in one of result, typed error and
cancellation, no handler runs more often than allowed, and nothing is left behind.

A failing test prints its schedule, and its id has the seed, by which it runs alone:
``pytest tests/chaos/test_fault_schedules.py -m "soak or not soak" -k "tcp-123]"``.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chaos.schedules import WORKERS, Fault, Plan, Schedule
from chaos.transports import BOUND_S, TRANSPORTS, Neighbourhood, Seat, until
from dynamo.core.errors import DynamoError
from dynamo.runtime import Client, Context, DistributedRuntime, RequestStream
from dynamo.testing.leaks import no_leaks

pytestmark = pytest.mark.anyio

SEEDS, ALWAYS = 1000, 20  # of which so many run in every session
WINDOW_BYTES = 4096
MOST_RUNS = 3  # of a call that may be repeated
SETTINGS: dict[str, Any] = {
    "window_bytes": WINDOW_BYTES,
    "receive_budget_bytes": 128 * 1024,
    "instance_wait_s": 0.3,
    "connect_timeout_s": 2.0,
    "graceful_shutdown_timeout_s": 0.2,
}


class World:
    """Workers that come and go, one caller, and what is known of every call."""

    def __init__(self, here: Neighbourhood) -> None:
        self.here = here
        self.runs: Counter[str] = Counter()  # of handlers, by request id
        self.running = 0
        self.workers: list[tuple[DistributedRuntime, Seat, AsyncExitStack]] = []
        self.gone: set[int] = set()
        self.streams: Client
        self.sums: Client

    # The worker's side.

    async def generate(self, plan: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        self.runs[context.id()] += 1
        self.running += 1
        try:
            for number in range(plan["items"]):
                if plan["work_s"] is not None:
                    await asyncio.sleep(plan["work_s"])
                if context.is_stopped():
                    return
                yield {"number": number, "filling": bytes(plan["item_bytes"])}
            if plan["fails"]:
                raise KeyError("as planned")
        finally:
            self.running -= 1

    async def total(self, numbers: RequestStream[Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        self.runs[context.id()] += 1
        self.running += 1
        try:
            count = 0
            async for number in numbers:
                assert number["number"] == count
                yield {"number": count, "filling": number["filling"]}
                count += 1
        finally:
            self.running -= 1

    async def start(self) -> None:
        """One more worker."""
        runtime, stack = self.here.runtime(), AsyncExitStack()
        serving = runtime.endpoint("chaos.worker.generate").serve(self.generate)
        instance = await stack.enter_async_context(serving)
        await stack.enter_async_context(runtime.endpoint("chaos.worker.total").serve(self.total))
        (seat,) = (seat for seat in self.here.seats if seat.addresses == instance.addresses)
        self.workers.append((runtime, seat, stack))

    async def strike(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        runtime, seat, _ = self.workers[fault.worker]
        match fault.kind:
            case "cut":
                seat.cut()
            case "reset":
                seat.cut(reset=True)
            case "kill":
                self.gone.add(fault.worker)
                seat.vanish()
            case "drain":
                self.gone.add(fault.worker)
                await runtime.shutdown()
            case "newcomer":
                await self.start()

    # The caller's side.

    async def run(self, plan: Plan, context: Context) -> int:
        """Make the call as planned; returns how many items came, each of which was the right one."""
        await asyncio.sleep(plan.at_s)
        request = {
            "items": plan.items,
            "item_bytes": plan.item_bytes,
            "work_s": plan.work_s,
            "fails": plan.fails,
        }
        options: dict[str, Any] = {
            "context": context,
            "timeout_s": plan.timeout_s,
            "idempotent": plan.idempotent,
        }
        match plan.kind:
            case "call":
                item = await self.streams.call(request, **options)
                assert item == {"number": 0, "filling": bytes(plan.item_bytes)}
                return 1
            case "generate":
                return await self.read(plan, await self.streams.round_robin(request, False, context), context)
            case "duplex":
                inputs = (
                    {"number": number, "filling": bytes(plan.item_bytes)} for number in range(plan.items)
                )
                async with self.sums.duplex(inputs=spaced(inputs, plan.work_s), **options) as items:
                    return await self.read(plan, items, context)
            case _:
                async with self.streams.stream(request, **options) as items:
                    return await self.read(plan, items, context)

    async def read(self, plan: Plan, items: Any, context: Context) -> int:
        count = 0
        try:
            while True:
                if count == plan.leave_at:
                    match plan.leave:
                        case "break":
                            return count
                        case "stop":
                            items.stop()
                        case "kill":
                            context.kill()
                item = await anext(items, None)
                if item is None:
                    assert [item async for item in items] == []
                    return count
                assert item == {"number": count, "filling": bytes(plan.item_bytes)}
                count += 1
                if plan.reading_s is not None:
                    await asyncio.sleep(plan.reading_s)
        except DynamoError:
            assert [item async for item in items] == []  # told once, and ended for good
            raise

    async def play(self, schedule: Schedule) -> None:
        """Make all calls while the faults happen, and judge how each of them ended."""
        plans, loop = schedule.calls, asyncio.get_running_loop()
        contexts = [Context(f"call {number}") for number in range(len(plans))]
        calls = [
            asyncio.create_task(self.run(plan, context))
            for plan, context in zip(plans, contexts, strict=True)
        ]
        for plan, call in zip(plans, calls, strict=True):
            if plan.leave == "cancel":
                loop.call_later(plan.at_s + plan.leave_s, call.cancel)
        faults = [asyncio.create_task(self.strike(fault)) for fault in schedule.faults]
        _, endless = await asyncio.wait(calls, timeout=BOUND_S)
        assert not endless, [plan for plan, call in zip(plans, calls, strict=True) if call in endless]
        await asyncio.gather(*faults)
        for plan, call, context in zip(plans, calls, contexts, strict=True):
            check(plan, call, self.runs[context.id()], faults=bool(faults))

    async def check_survivors(self) -> None:
        """Whoever was neither killed nor drained still streams, more than its windows hold."""
        plan = {"items": 10, "item_bytes": WINDOW_BYTES // 2, "work_s": None, "fails": False}
        ids = {
            seat.addresses[0]: runtime.connection_id()
            for number, (runtime, seat, _) in enumerate(self.workers)
            if number not in self.gone
        }
        options: dict[str, Any] = {"timeout_s": BOUND_S, "idempotent": True}  # a cut may not be noticed yet
        for instance in ids.values():
            async with self.streams.stream(plan, instance=instance, **options) as items:
                assert [item["number"] async for item in items] == list(range(10))


async def spaced(inputs: Any, pause_s: float | None) -> AsyncIterator[Any]:
    for item in inputs:
        if pause_s is not None:
            await asyncio.sleep(pause_s)
        yield item


def check(plan: Plan, task: asyncio.Task[int], runs: int, *, faults: bool) -> None:
    """The call ended in one of the three ways, for a reason, and ran no more often than it may."""
    assert runs <= (MOST_RUNS if plan.idempotent and plan.kind != "generate" else 1), plan
    if task.cancelled():
        assert plan.leave == "cancel", plan
        return
    error = task.exception()
    if error is not None:
        spoilt = plan.fails or plan.leave is not None or plan.timeout_s == 0.02
        wrong_count = plan.kind == "call" and plan.items != 1
        if not isinstance(error, DynamoError) or not (faults or spoilt or wrong_count):
            raise AssertionError(f"{plan} ended in {error!r}") from error
    elif plan.leave is None:
        assert task.result() == plan.items, plan
        assert not plan.fails or plan.kind == "duplex", plan


def _seeds() -> list[Any]:
    return [pytest.param(seed, marks=[pytest.mark.soak] if seed >= ALWAYS else []) for seed in range(SEEDS)]


@pytest.mark.parametrize("seed", _seeds())
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_call_ends_once_and_nothing_is_left(transport: str, seed: int) -> None:
    schedule = Schedule.drawn(seed)
    print(schedule)
    random.seed(seed)  # what the library draws: delays, and whom to try
    async with no_leaks(), Neighbourhood(transport, **SETTINGS) as here:
        world = World(here)
        for _ in range(WORKERS):
            await world.start()
        caller = here.runtime()
        world.streams = await caller.endpoint("chaos.worker.generate").client()
        world.sums = await caller.endpoint("chaos.worker.total").client()
        for client in (world.streams, world.sums):
            await client.wait_for_instances(WORKERS)
        await world.play(schedule)
        gc.collect()  # a cancelled task holds on to what it read, as a reference like any other
        await until(lambda: world.running == 0, lambda: f"{world.running} handlers run on")
        await until(lambda: here.used_bytes == 0, lambda: f"{here.used_bytes} bytes of budget in use")
        await until(lambda: all(seat.calls == 0 for seat in here.seats), lambda: "calls at the servers")
        for client in (world.streams, world.sums):
            await until(lambda client=client: not client._out.active, lambda: "calls of the client")  # type: ignore[misc]
            assert all(peer.in_flight == 0 for peer in client._out.peers.by_id.values())
        await world.check_survivors()
        for _, _, stack in world.workers:
            await stack.aclose()
