"""max_inflight and queue of a route: who runs, who waits, who is refused."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("aiohttp", reason="the extra http is not installed")
pytest.importorskip("msgspec", reason="the extra services is not installed")

from dynamo.adapters.http.admission import Admission
from dynamo.runtime import DrainingError, OverloadedError

pytestmark = pytest.mark.anyio


async def entering(admission: Admission) -> asyncio.Task[None]:
    task = asyncio.create_task(admission.enter())
    await asyncio.sleep(0)
    return task


async def test_those_who_wait_get_places_in_order() -> None:
    admission = Admission("ns.c.e", 1, 2)
    await admission.enter()
    first, second = await entering(admission), await entering(admission)
    with pytest.raises(OverloadedError, match=r"ns\.c\.e runs 1 requests \(max_inflight\) and 2 wait"):
        await admission.enter()
    admission.leave()
    await first
    assert not second.done()
    admission.leave()
    await second
    admission.leave()
    await admission.enter()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(admission.enter(), 0.01)


async def test_without_a_queue_as_many_wait_as_run_and_without_a_limit_all_run() -> None:
    admission = Admission("ns.c.e", 2, None)
    await admission.enter()
    await admission.enter()
    waiting = [await entering(admission) for _ in range(2)]
    with pytest.raises(OverloadedError):
        await admission.enter()
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    unlimited = Admission("ns.c.e", None, None)
    for _ in range(1000):
        await unlimited.enter()


@pytest.mark.parametrize("when", ["while it waits", "as its place comes"])
async def test_one_who_gives_up_leaves_no_hole(when: str) -> None:
    admission = Admission("ns.c.e", 1, 2)
    await admission.enter()
    leaver, stayer = await entering(admission), await entering(admission)
    if when == "as its place comes":
        admission.leave()
        leaver.cancel()
    else:
        leaver.cancel()
        await asyncio.wait((leaver,))
        admission.leave()
    await asyncio.wait_for(stayer, 5)
    admission.leave()
    await asyncio.wait_for(admission.enter(), 5)


async def test_those_who_wait_can_be_turned_away() -> None:
    admission = Admission("ns.c.e", 1, 1)
    await admission.enter()
    waiting = await entering(admission)
    admission.turn_away(DrainingError("leaving"))
    with pytest.raises(DrainingError):
        await waiting
    admission.leave()
    await asyncio.wait_for(admission.enter(), 5)
