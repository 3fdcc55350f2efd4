"""Whoever leaves a stream early cancels its handler, in every spelling and phase, on every plane; a read that
is given up does not.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from chaos.transports import TRANSPORTS, Neighbourhood, until
from dynamo.core.errors import CallCancelledError
from dynamo.runtime import Client, Context
from dynamo.testing.leaks import no_leaks

pytestmark = pytest.mark.anyio

WINDOW_BYTES = 16 * 1024
CANCELLATIONS = (
    asyncio.CancelledError,
    GeneratorExit,
)  # the second one at a yield, as Python closes generators
PHASES = ("before the first item", "between items", "at a full window")


class Worker:
    """One handler that goes on until it is cancelled, and what became of its calls."""

    def __init__(self) -> None:
        self.begun = self.cancelled = self.ended = self.sent = 0

    async def generate(self, phase: str) -> AsyncIterator[dict[str, Any]]:
        self.begun += 1
        try:
            if phase == "before the first item":
                await asyncio.get_running_loop().create_future()
            while True:
                yield {"number": self.sent, "filling": bytes(1000)}
                self.sent += 1
                if phase == "between items":
                    await asyncio.sleep(0.001)
        except CANCELLATIONS:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1

    async def five(self, pause_s: float) -> AsyncIterator[int]:
        """Five items, each when the test says so."""
        self.begun += 1
        try:
            for number in range(5):
                await asyncio.sleep(pause_s)
                yield number
        except CANCELLATIONS:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1


class Scene:
    """A worker, a client of it, and the phase that a call is to be in when it is left."""

    def __init__(self, worker: Worker, client: Client, five: Client, phase: str) -> None:
        self.worker, self.client, self.five, self.phase = worker, client, five, phase

    async def reached(self) -> None:
        """Wait until the handler is where the phase says."""
        await until(lambda: self.worker.begun == 1)
        if self.phase == "between items":
            await until(lambda: self.worker.sent > 3)
        elif self.phase == "at a full window":
            sent = -1
            while sent != self.worker.sent:  # it has stopped where its reader lets it
                sent = self.worker.sent
                await asyncio.sleep(0.05)
            assert self.worker.sent > 3


@asynccontextmanager
async def scene(transport: str, phase: str = "") -> AsyncIterator[Scene]:
    """A worker and a caller on this transport; nothing of either is left behind."""
    async with no_leaks(), Neighbourhood(transport, window_bytes=WINDOW_BYTES) as here:
        worker, working, calling = Worker(), here.runtime(), here.runtime()
        async with (
            working.endpoint("test.worker.generate").serve(worker.generate),
            working.endpoint("test.worker.five").serve(worker.five),
        ):
            client = await calling.endpoint("test.worker.generate").client()
            five = await calling.endpoint("test.worker.five").client()
            await client.wait_for_instances()
            await five.wait_for_instances()
            yield Scene(worker, client, five, phase)
            await until(lambda: worker.ended == worker.begun)
            await until(lambda: here.used_bytes == 0, lambda: f"{here.used_bytes} bytes of budget in use")


async def read_first(scene: Scene, items: Any) -> None:
    if scene.phase != "before the first item":
        await anext(items)


async def by_break(scene: Scene) -> None:
    async with scene.client.stream(scene.phase) as items:
        await read_first(scene, items)
        await scene.reached()


async def by_exception(scene: Scene) -> None:
    with pytest.raises(ZeroDivisionError):
        async with scene.client.stream(scene.phase) as items:
            await read_first(scene, items)
            await scene.reached()
            raise ZeroDivisionError


async def by_cancellation(scene: Scene) -> None:
    inside = asyncio.Event()

    async def read() -> None:
        async with scene.client.stream(scene.phase) as items:
            await read_first(scene, items)
            await scene.reached()
            inside.set()
            await asyncio.get_running_loop().create_future()

    reading = asyncio.create_task(read())
    await inside.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def by_cancelling_a_read(scene: Scene) -> None:
    async def read() -> None:
        async with scene.client.stream(scene.phase) as items:
            async for _ in items:
                if scene.phase == "at a full window":
                    await asyncio.get_running_loop().create_future()

    reading = asyncio.create_task(read())
    await scene.reached()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def by_timeout_of_the_block(scene: Scene) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as bound, scene.client.stream(scene.phase) as items:
            await read_first(scene, items)
            await scene.reached()
            bound.reschedule(asyncio.get_running_loop().time())
            await asyncio.get_running_loop().create_future()


async def by_aclose(scene: Scene) -> None:
    items = await scene.client.stream(scene.phase)
    await read_first(scene, items)
    await scene.reached()
    await items.aclose()
    await items.aclose()
    assert [item async for item in items] == []


async def by_killing_its_context(scene: Scene) -> None:
    context = Context()
    with pytest.raises(CallCancelledError):
        async with scene.client.stream(scene.phase, context=context) as items:
            await read_first(scene, items)
            await scene.reached()
            context.kill()
            async for _ in items:
                pass


async def by_dropping_the_stream(scene: Scene) -> None:
    items = await scene.client.generate(scene.phase)
    await read_first(scene, items)
    await scene.reached()
    del items
    gc.collect()


async def by_cancelling_dynamos_loop(scene: Scene) -> None:
    async def read() -> None:
        async for _ in await scene.client.round_robin(scene.phase, annotated=False):
            if scene.phase == "at a full window":
                await asyncio.get_running_loop().create_future()

    reading = asyncio.create_task(read())
    await scene.reached()
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    del reading
    gc.collect()


async def by_an_exception_in_dynamos_loop(scene: Scene) -> None:
    async def read() -> None:
        items = await scene.client.random(scene.phase)
        await read_first(scene, items)
        await scene.reached()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await read()
    gc.collect()


async def by_closing_the_client(scene: Scene) -> None:
    items = await scene.client.stream(scene.phase)
    await read_first(scene, items)
    await scene.reached()
    await scene.client.aclose()


WAYS: tuple[Callable[[Scene], Awaitable[None]], ...] = (
    by_break,
    by_exception,
    by_cancellation,
    by_cancelling_a_read,
    by_timeout_of_the_block,
    by_aclose,
    by_killing_its_context,
    by_dropping_the_stream,
    by_cancelling_dynamos_loop,
    by_an_exception_in_dynamos_loop,
    by_closing_the_client,
)


@pytest.mark.parametrize("leave", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_leaving_cancels_the_handler(
    transport: str, phase: str, leave: Callable[[Scene], Awaitable[None]]
) -> None:
    async with scene(transport, phase) as here:
        await leave(here)
        worker = here.worker
        await until(lambda: worker.cancelled == worker.ended == 1, lambda: str(vars(worker)))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_read_that_timed_out_loses_nothing_and_cancels_nothing(transport: str) -> None:
    async with scene(transport) as here:
        got, given_up = [], 0
        async with here.five.stream(0.03) as items:
            while True:
                try:
                    got.append(await asyncio.wait_for(anext(items), 0.01))
                except TimeoutError:
                    given_up += 1
                except StopAsyncIteration:
                    break
        assert got == [0, 1, 2, 3, 4]
        assert given_up >= 5
        assert (here.worker.cancelled, here.worker.ended) == (0, 1)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_read_that_timed_out_in_dynamos_spelling_loses_nothing(transport: str) -> None:
    async with scene(transport) as here:
        items = await here.five.round_robin(0.03, annotated=False)
        got: list[int] = []
        while len(got) < 5:
            with suppress(TimeoutError):
                got.append(await asyncio.wait_for(anext(items), 0.01))
        assert got == [0, 1, 2, 3, 4]
        await until(lambda: here.worker.ended == 1)
        assert here.worker.cancelled == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_cancelled_read_takes_no_item_along(transport: str) -> None:
    async with scene(transport) as here, here.five.stream(0.01) as items:
        got: list[int] = []
        for _ in range(50):
            reading: asyncio.Future[int] = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0)
            reading.cancel()
            (outcome,) = await asyncio.gather(reading, return_exceptions=True)
            if isinstance(outcome, int):
                got.append(outcome)
            await asyncio.sleep(0.001)
        got += [item async for item in items]
        assert got == [0, 1, 2, 3, 4]
        assert here.worker.cancelled == 0
