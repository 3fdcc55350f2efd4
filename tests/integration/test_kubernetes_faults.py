"""What breaks in the middle of a watch or of a listing: each fault ends in the right state, is told where the
state is not known to be right, and costs few requests. A double does it, as the real one does not on demand.
"""

from __future__ import annotations

import time

import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from dynamo.adapters.discovery.kubernetes import feed
from dynamo.core.ports.discovery import Snapshot
from dynamo.testing.discovery import by_key
from integration.fake_kubernetes import RECORDS, SLICES, FakeKubernetes
from integration.fake_kubernetes_answers import (
    EXPIRED,
    Answer,
    lines,
    nothing,
    status,
)
from integration.kubernetes_faults import (
    ONE,
    THREE,
    TWO,
    change_all,
    follows,
    healed,
    patience,
    stales,
    until_stale,
    watched,
)

pytestmark = [pytest.mark.anyio]


@pytest.mark.parametrize("told", ["as an event", "as an event of the next watch", "as a status"])
async def test_history_that_is_gone_is_listed_again(fake: FakeKubernetes, told: str) -> None:
    async with watched(fake) as follower:
        change_all(fake)
        fake.forget()
        if told == "as a status":
            fake.answer(f"watch {RECORDS}", status(410, "Expired"))
        elif told == "as an event":
            fake.tell(RECORDS, EXPIRED)
        for plural in (RECORDS, SLICES):
            fake.end(plural)
        await healed(fake, follower)
        assert len(fake.times(f"list {RECORDS}")) == len(fake.times(f"list {SLICES}")) == 1
        assert not stales(follower)


@pytest.mark.parametrize("expired", [lines(EXPIRED), status(410, "Expired")], ids=["event", "status"])
async def test_history_that_is_always_gone_is_listed_slowly(fake: FakeKubernetes, expired: Answer) -> None:
    async with watched(fake) as follower:
        began = time.monotonic()
        fake.always(f"watch {RECORDS}", expired)
        fake.end(RECORDS)
        await patience(fake, began, f"list {RECORDS}", f"watch {RECORDS}")
        fake.always(f"watch {RECORDS}", None)
        change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)
        assert not stales(follower), "each listing was the state of its time"


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end"])
async def test_a_watch_that_breaks_in_a_line_goes_on_before_it(fake: FakeKubernetes, reset: bool) -> None:
    async with watched(fake) as follower:
        change_all(fake)
        for plural in (RECORDS, SLICES):
            fake.tell(plural, b'{"type": "ADDED", "object": {"metadata": {"name": "wor')
            fake.end(plural, reset=reset)
        await follower.until(lambda live: live == by_key(ONE, THREE))
        await follows(fake, follower)
        assert not fake.times(f"list {RECORDS}")
        assert not stales(follower)
        assert not [one for one in follower.changes[1:] if isinstance(one, Snapshot)]


async def test_a_watch_goes_on_after_the_last_bookmark(fake: FakeKubernetes) -> None:
    async with watched(fake) as follower:
        *_, last = (fake.bookmark(RECORDS) for _ in range(3))
        fake.end(RECORDS)
        await fake.until_asked(f"watch {RECORDS}", 1)
        assert fake.times(f"watch {RECORDS}")[0].query["resourceVersion"] == last
        await follows(fake, follower)
        assert not fake.times(f"list {RECORDS}")
        assert len(follower.changes) == 2


async def test_a_watch_that_is_silent_for_too_long_is_begun_again(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "SILENCE_S", 0.2)
    began = time.monotonic()
    async with watched(fake) as follower:
        change_all(fake)
        await follower.until(lambda live: live == by_key(ONE, THREE))
        assert not fake.times(f"list {RECORDS}")
        assert not stales(follower)
        await patience(fake, began, f"watch {RECORDS}")


@pytest.mark.parametrize("verb", ["watch", "list"])
async def test_a_server_that_does_not_answer_is_away(fake: FakeKubernetes, verb: str) -> None:
    async with watched(fake, answer_s=0.2) as follower:
        began = time.monotonic()
        fake.always(f"{verb} {RECORDS}", nothing)
        if verb == "list":
            fake.forget()
            change_all(fake)
            fake.answer(f"watch {RECORDS}", status(500, "InternalError"))
        fake.end(RECORDS)
        assert ("no answer within 0.2 s" if verb == "watch" else "InternalError") in await until_stale(
            follower
        )
        await patience(fake, began, f"list {RECORDS}")
        assert follower.live == by_key(ONE, TWO)
        fake.always(f"{verb} {RECORDS}", None)
        if verb == "watch":
            change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)


async def test_pages_that_expire_are_begun_again(fake: FakeKubernetes) -> None:
    fake.page = 1
    fake.answer(f"continue {RECORDS}", status(410, "Expired"))
    async with watched(fake) as follower:
        assert not stales(follower)
        await follows(fake, follower)


async def test_pages_that_always_expire_are_an_outage(fake: FakeKubernetes) -> None:
    async with watched(fake) as follower:
        began = time.monotonic()
        fake.page = 1
        fake.always(f"continue {RECORDS}", status(410, "Expired"))
        change_all(fake)
        fake.forget()
        fake.end(RECORDS)
        fake.end(SLICES)
        assert "Expired" in await until_stale(follower)
        await patience(fake, began, f"list {RECORDS}")
        assert follower.live == by_key(ONE, TWO)
        fake.always(f"continue {RECORDS}", None)
        await healed(fake, follower)
