"""What an API server says at the worst moment: each fault ends in the right state, is told where the state is
not known to be right, and costs few requests. A double says it, as the real one does not on demand.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from dynamo.adapters.discovery.kubernetes import access, errors, feed, open_kubernetes
from dynamo.core.config import Settings
from dynamo.core.ports.discovery import Put, Snapshot, Stale
from dynamo.testing.discovery import Follower, an_instance, by_key, following
from integration.fake_kubernetes import (
    EXPIRED,
    RECORDS,
    SLICES,
    Answer,
    FakeKubernetes,
    error_event,
    lines,
    nothing,
    status,
    text,
)

pytestmark = [pytest.mark.anyio]
ONE, TWO, THREE = (an_instance(number) for number in (1, 2, 3))
CHANGED = attrs.evolve(ONE, addresses=("tcp://127.0.0.1:1",))
BOUND_S = 10.0
WHILE_S = 0.3


@pytest.fixture
async def fake() -> AsyncIterator[FakeKubernetes]:
    made = FakeKubernetes()
    made.serve(ONE, TWO)
    async with made.run():
        yield made


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first")
    return path


@asynccontextmanager
async def caller(fake: FakeKubernetes, token: Path, answer_s: float = 2.0) -> AsyncIterator[Follower]:
    """One that has listed both, and watches; nothing that it is told afterwards may be an empty snapshot."""
    settings = Settings.from_env({}, kubeconfig=str(fake.kubeconfig(token)), connect_timeout_s=answer_s)
    async with asyncio.timeout(BOUND_S):
        async with open_kubernetes("kubernetes://", settings) as client, following(client) as follower:
            assert follower.live == by_key(ONE, TWO)
            await fake.until_watched()
            fake.asked.clear()
            yield follower
    assert not [one for one in follower.changes if isinstance(one, Snapshot) and not one.instances]


async def patience(fake: FakeKubernetes, began: float, *whats: str) -> None:
    """Since that moment it asked each of these at least twice, and no more often than back-off allows."""
    for what in whats:
        await fake.until_asked(what, 2)
    await asyncio.sleep(WHILE_S)
    allowed, at, delay_s = 1, 0.0, feed.FIRST_DELAY_S / 2  # the least that is drawn
    while (at := at + delay_s) < time.monotonic() - began:
        allowed, delay_s = allowed + 1, min(2 * delay_s, feed.LONGEST_DELAY_S / 2)
    for what in whats:
        assert len(fake.times(what)) <= allowed


def stales(follower: Follower) -> list[str]:
    return [change.reason for change in follower.changes if isinstance(change, Stale)]


async def until_stale(follower: Follower) -> str:
    while not (told := stales(follower)):
        await follower.next()
    return told[-1]


async def healed(fake: FakeKubernetes, follower: Follower) -> None:
    """What happened meanwhile is in a snapshot, and it follows again."""
    await follower.snapshot()
    await follower.until(lambda live: live == by_key(ONE, THREE))
    await follows(fake, follower)


async def follows(fake: FakeKubernetes, follower: Follower) -> None:
    """A change is told as one."""
    await fake.until_watched()
    fake.serve(CHANGED)
    await follower.until(lambda live: live.get(ONE.key) == CHANGED)
    assert follower.changes[-1] == Put(instance=CHANGED)


def change_all(fake: FakeKubernetes) -> None:
    """One leaves, and another one comes, of which no watch that is open is told."""
    fake.remove(RECORDS, "worker-2", told=False)
    fake.serve(THREE, told=False)


@pytest.mark.parametrize("told", ["as an event", "as an event of the next watch", "as a status"])
async def test_history_that_is_gone_is_listed_again(fake: FakeKubernetes, token: Path, told: str) -> None:
    async with caller(fake, token) as follower:
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
async def test_history_that_is_always_gone_is_listed_slowly(
    fake: FakeKubernetes, token: Path, expired: Answer
) -> None:
    async with caller(fake, token) as follower:
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
async def test_a_watch_that_breaks_in_a_line_goes_on_before_it(
    fake: FakeKubernetes, token: Path, reset: bool
) -> None:
    async with caller(fake, token) as follower:
        change_all(fake)
        for plural in (RECORDS, SLICES):
            fake.tell(plural, b'{"type": "ADDED", "object": {"metadata": {"name": "wor')
            fake.end(plural, reset=reset)
        await follower.until(lambda live: live == by_key(ONE, THREE))
        await follows(fake, follower)
        assert not fake.times(f"list {RECORDS}")
        assert not stales(follower)
        assert not [one for one in follower.changes[1:] if isinstance(one, Snapshot)]


async def test_a_watch_goes_on_after_the_last_bookmark(fake: FakeKubernetes, token: Path) -> None:
    async with caller(fake, token) as follower:
        *_, last = (fake.bookmark(RECORDS) for _ in range(3))
        fake.end(RECORDS)
        await fake.until_asked(f"watch {RECORDS}", 1)
        assert fake.times(f"watch {RECORDS}")[0].query["resourceVersion"] == last
        await follows(fake, follower)
        assert not fake.times(f"list {RECORDS}")
        assert len(follower.changes) == 2


@pytest.mark.parametrize(
    "busy",
    [status(429, "TooManyRequests", retry_after="1"), lines(error_event(429, "Busy", retryAfterSeconds=1))],
    ids=["status", "event"],
)
async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(
    fake: FakeKubernetes, token: Path, busy: Answer
) -> None:
    async with caller(fake, token) as follower:
        fake.answer(f"watch {RECORDS}", busy)
        fake.end(RECORDS)
        assert "ended the watch" in (said := await until_stale(follower)) or "busy" in said
        change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)
        refused, next_one = fake.times(f"watch {RECORDS}")[0], fake.times(f"list {RECORDS}")[0]
        assert next_one.at - refused.at >= 1.0


@pytest.mark.parametrize(
    "busy",
    [
        status(429, "TooManyRequests", retry_after="86400"),
        lines(error_event(429, "TooManyRequests", retryAfterSeconds=86400)),
        status(429, "TooManyRequests", retry_after="nan"),
        lines(error_event(429, "TooManyRequests", retryAfterSeconds="soon")),
    ],
    ids=["status", "event", "no number", "no number in the event"],
)
async def test_but_not_for_longer_than_is_sensible(
    fake: FakeKubernetes, token: Path, monkeypatch: pytest.MonkeyPatch, busy: Answer
) -> None:
    monkeypatch.setattr(errors, "LONGEST_REST_S", 0.2)
    async with caller(fake, token) as follower:
        fake.answer(f"watch {RECORDS}", busy)
        fake.end(RECORDS)
        await until_stale(follower)
        change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)
        refused, next_one = fake.times(f"watch {RECORDS}")[0], fake.times(f"list {RECORDS}")[0]
        assert next_one.at - refused.at < 5.0


async def test_a_watch_that_is_silent_for_too_long_is_begun_again(
    fake: FakeKubernetes, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "SILENCE_S", 0.2)
    began = time.monotonic()
    async with caller(fake, token) as follower:
        change_all(fake)
        await follower.until(lambda live: live == by_key(ONE, THREE))
        assert not fake.times(f"list {RECORDS}")
        assert not stales(follower)
        await patience(fake, began, f"watch {RECORDS}")


@pytest.mark.parametrize("verb", ["watch", "list"])
async def test_a_server_that_does_not_answer_is_away(fake: FakeKubernetes, token: Path, verb: str) -> None:
    async with caller(fake, token, answer_s=0.2) as follower:
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


@pytest.mark.parametrize(
    "line",
    [
        b'{"type": nonsense}\n',
        b"[]\n",
        {"type": "ADDED"},
        {"type": "ADDED", "object": {"metadata": {"name": "worker-1"}}},
        b"x" * 2000,
    ],
    ids=["no JSON", "no object", "nothing added", "no version", "no end"],
)
async def test_a_line_that_cannot_be_read_is_told_and_what_is_there_listed(
    fake: FakeKubernetes, token: Path, monkeypatch: pytest.MonkeyPatch, line: Any
) -> None:
    monkeypatch.setattr(access, "LONGEST_LINE", 1000)
    async with caller(fake, token) as follower:
        began = time.monotonic()
        fake.always(f"watch {RECORDS}", lines(line))
        fake.end(RECORDS)
        await until_stale(follower)
        await patience(fake, began, f"watch {RECORDS}")
        fake.always(f"watch {RECORDS}", None)
        change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)


async def test_a_token_that_was_replaced_in_time_is_no_outage(fake: FakeKubernetes, token: Path) -> None:
    async with caller(fake, token) as follower:
        token.write_text("second\n")
        fake.token = "second"
        fake.end(RECORDS)
        await follows(fake, follower)
        assert [one.token for one in fake.times(f"watch {RECORDS}")] == ["first", "second"]
        assert not stales(follower)


async def test_a_token_that_is_replaced_too_late_ends_the_outage(
    fake: FakeKubernetes, token: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with caller(fake, token) as follower:
        began = time.monotonic()
        fake.token = "second"
        fake.end(RECORDS)
        assert "refused our credentials" in await until_stale(follower)
        await patience(fake, began, f"list {RECORDS}")
        assert len([one for one in caplog.records if one.levelno >= logging.ERROR]) == 1
        token.write_text("second")
        change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)


async def test_pages_that_expire_are_begun_again(fake: FakeKubernetes, token: Path) -> None:
    fake.page = 1
    fake.answer(f"continue {RECORDS}", status(410, "Expired"))
    async with caller(fake, token) as follower:
        assert not stales(follower)
        await follows(fake, follower)


async def test_pages_that_always_expire_are_an_outage(fake: FakeKubernetes, token: Path) -> None:
    async with caller(fake, token) as follower:
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


async def test_a_server_that_fails_is_asked_ever_more_slowly(fake: FakeKubernetes, token: Path) -> None:
    whats = [" ".join(what) for what in itertools.product(("list", "watch"), (RECORDS, SLICES))]
    async with caller(fake, token) as follower:
        began = time.monotonic()
        for what in whats:
            fake.always(what, status(500, "InternalError"))
        fake.end(RECORDS)
        fake.end(SLICES)
        assert "InternalError" in await until_stale(follower)
        await patience(fake, began, f"list {RECORDS}", f"list {SLICES}")
        for what in whats:
            fake.always(what, None)
        change_all(fake)
        await healed(fake, follower)


@pytest.mark.parametrize(
    "answer",
    [
        text("{}"),
        text('{"kind": "Status", "status": "Success"}'),
        text("<html>Please log in</html>", "text/html"),
        text('{"kind": "List", "metadata": {}, "items": []}'),
    ],
    ids=["an empty object", "a status", "a page", "no version"],
)
async def test_what_is_no_listing_is_not_taken_for_an_empty_one(
    fake: FakeKubernetes, token: Path, answer: Answer
) -> None:
    async with caller(fake, token) as follower:
        began = time.monotonic()
        fake.always(f"list {RECORDS}", answer)
        fake.answer(f"watch {RECORDS}", status(500, "InternalError"))
        fake.end(RECORDS)
        await until_stale(follower)
        await patience(fake, began, f"list {RECORDS}")
        assert follower.live == by_key(ONE, TWO)
        fake.always(f"list {RECORDS}", None)
        change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)
