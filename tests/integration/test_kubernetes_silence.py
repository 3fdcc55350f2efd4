"""An API server that says nothing: one that is frozen is noticed, and one that has nothing to say is left
alone. A double does it, as the real one does not on demand.
"""

from __future__ import annotations

import asyncio
import time

import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from dynamo.adapters.discovery.kubernetes import silence
from integration.fake_kubernetes import RECORDS, SLICES, FakeKubernetes
from integration.fake_kubernetes_answers import Answer, nothing, status
from integration.kubernetes_faults import change_all, follows, healed, stales, until_stale, watched

pytestmark = [pytest.mark.anyio]
EVERYTHING = ["version", *(f"{verb} {plural}" for verb in ("list", "watch") for plural in (RECORDS, SLICES))]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "QUIET_S", 0.2)


async def test_a_server_that_is_frozen_is_noticed_though_its_connections_stay(fake: FakeKubernetes) -> None:
    async with watched(fake, answer_s=0.5) as follower:
        for what in EVERYTHING:
            fake.always(what, nothing)
        assert "no answer within 0.5 s" in await until_stale(follower)
        for what in EVERYTHING:
            fake.always(what, None)
        change_all(fake)
        await healed(fake, follower)


async def test_a_server_that_has_nothing_to_say_is_asked_for_its_version_now_and_then(
    fake: FakeKubernetes,
) -> None:
    async with watched(fake) as follower:
        await fake.until_asked("version", 3)
        assert {one.what for one in fake.asked} == {"version"}, "and the watches go on"
        first, second, third = [one.at for one in fake.times("version")][:3]
        assert second - first >= 0.8 * silence.QUIET_S
        assert third - second >= 0.8 * silence.QUIET_S
        await follows(fake, follower)
        assert not stales(follower)


async def test_a_server_that_says_something_is_not_asked(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "QUIET_S", 1.0)  # a busy machine may keep its word from us for a while
    async with watched(fake):
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            fake.bookmark(SLICES)
            await asyncio.sleep(0.01)
        assert not fake.asked


@pytest.mark.parametrize("code", [401, 403, 404, 429])
async def test_a_server_that_refuses_to_tell_is_there(fake: FakeKubernetes, code: int) -> None:
    async with watched(fake) as follower:
        fake.always("version", status(code, "No"))
        await fake.until_asked("version", 2)
        assert not [one for one in fake.asked if one.what != "version"]
        await follows(fake, follower)
        assert not stales(follower)


@pytest.mark.parametrize("answer", [status(503, "ServiceUnavailable"), nothing], ids=["503", "nothing"])
async def test_what_does_not_answer_for_once_has_the_watches_begun_again_and_nobody_told(
    fake: FakeKubernetes, answer: Answer
) -> None:
    async with watched(fake, answer_s=1.0) as follower:
        fake.answer("version", answer)
        for plural in (RECORDS, SLICES):
            await fake.until_asked(f"watch {plural}", 1)
        assert not fake.times(f"list {RECORDS}") + fake.times(f"list {SLICES}")
        change_all(fake)
        fake.end(RECORDS)
        fake.end(SLICES)
        await follows(fake, follower)
        assert not stales(follower)


async def test_nobody_asks_once_nobody_watches(fake: FakeKubernetes) -> None:
    """A worker that calls nobody has its own record to follow, and whether it is told of that can wait."""
    async with watched(fake) as follower:
        await fake.until_asked("version", 1)
        await follows(fake, follower)
    fake.asked.clear()
    assert not [task for task in asyncio.all_tasks() if "dynamo" in task.get_name()]
