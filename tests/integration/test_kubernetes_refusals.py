"""An API server that is busy, fails, wants another token, or talks nonsense: each ends in the right state, is
told, and costs few requests. A double says it, as the real one does not on demand.
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from dynamo.adapters.discovery.kubernetes import access, errors, feed, open_kubernetes
from dynamo.core.config import Settings
from dynamo.core.errors import UnavailableError
from dynamo.testing.discovery import by_key
from integration.fake_kubernetes import RECORDS, SLICES, FakeKubernetes
from integration.fake_kubernetes_answers import (
    Answer,
    error_event,
    lines,
    status,
    text,
)
from integration.kubernetes_faults import (
    ONE,
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


@pytest.mark.parametrize(
    "busy",
    [status(429, "TooManyRequests", retry_after="1"), lines(error_event(429, "Busy", retryAfterSeconds=1))],
    ids=["status", "event"],
)
async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(fake: FakeKubernetes, busy: Answer) -> None:
    async with watched(fake) as follower:
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
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, busy: Answer
) -> None:
    monkeypatch.setattr(errors, "LONGEST_REST_S", 0.2)
    async with watched(fake) as follower:
        fake.answer(f"watch {RECORDS}", busy)
        fake.end(RECORDS)
        await until_stale(follower)
        change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)
        refused, next_one = fake.times(f"watch {RECORDS}")[0], fake.times(f"list {RECORDS}")[0]
        assert next_one.at - refused.at < 5.0


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
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, line: Any
) -> None:
    monkeypatch.setattr(access, "LONGEST_LINE", 1000)
    async with watched(fake) as follower:
        began = time.monotonic()
        fake.always(f"watch {RECORDS}", lines(line))
        fake.end(RECORDS)
        await until_stale(follower)
        await patience(fake, began, f"watch {RECORDS}")
        fake.always(f"watch {RECORDS}", None)
        change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)


async def test_a_token_that_was_replaced_in_time_is_no_outage(fake: FakeKubernetes) -> None:
    async with watched(fake) as follower:
        fake.token_file.write_text("second\n")
        fake.token = "second"
        fake.end(RECORDS)
        await follows(fake, follower)
        assert [one.token for one in fake.times(f"watch {RECORDS}")] == ["first", "second"]
        assert not stales(follower)


async def test_a_token_that_is_replaced_too_late_ends_the_outage(
    fake: FakeKubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(fake) as follower:
        began = time.monotonic()
        fake.token = "second"
        fake.end(RECORDS)
        assert "refused our credentials" in await until_stale(follower)
        await patience(fake, began, f"list {RECORDS}")
        assert len([one for one in caplog.records if one.levelno >= logging.ERROR]) == 1
        fake.token_file.write_text("second")
        change_all(fake)
        fake.end(SLICES)
        await healed(fake, follower)


async def test_a_server_that_fails_is_asked_ever_more_slowly(fake: FakeKubernetes) -> None:
    whats = [" ".join(what) for what in itertools.product(("list", "watch"), (RECORDS, SLICES))]
    async with watched(fake) as follower:
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
async def test_what_is_no_listing_is_not_taken_for_an_empty_one(fake: FakeKubernetes, answer: Answer) -> None:
    async with watched(fake) as follower:
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


async def test_a_right_that_is_taken_away_is_logged_once_each_time(
    fake: FakeKubernetes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "LONGEST_DELAY_S", 0.1)
    async with watched(fake) as follower:
        for times in (1, 2):
            fake.asked.clear()
            fake.always(f"watch {RECORDS}", status(403, "Forbidden"))
            fake.end(RECORDS)
            await fake.until_asked(f"watch {RECORDS}", 3)
            assert len([one for one in caplog.records if one.levelno >= logging.ERROR]) == times
            fake.always(f"watch {RECORDS}", None)
            await fake.until_watched(RECORDS)
        await follows(fake, follower)


async def test_an_object_that_is_nested_too_deeply_is_told_in_one_line(fake: FakeKubernetes) -> None:
    """Kubernetes takes 10,000 levels, of anybody who may write there."""
    deep = '{"a":' * 2000 + "1" + "}" * 2000
    listing = f'{{"kind": "List", "metadata": {{"resourceVersion": "1"}}, "items": [{deep}]}}'
    async with watched(fake) as follower:
        fake.always(f"list {RECORDS}", text(listing))
        fake.answer(f"watch {RECORDS}", status(500, "InternalError"))
        fake.end(RECORDS)
        await fake.until_asked(f"list {RECORDS}", 2)
        await until_stale(follower)
        fake.always(f"probe {RECORDS}", text(listing))
        settings = Settings.from_env({}, kubeconfig=str(fake.kubeconfig))
        with pytest.raises(UnavailableError, match="nested too deeply"):
            async with open_kubernetes("kubernetes://", settings):
                pass
