"""A worker's record while the API server fails, is busy, or loses its answers: in the end it is there and
says what it should, or it is gone. A double does it, as the real one does not on demand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from aiohttp import web

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from dynamo.adapters.discovery.kubernetes import claiming, open_kubernetes
from dynamo.adapters.discovery.kubernetes.records import CLAIM
from dynamo.core.config import Settings
from dynamo.core.errors import UnavailableError
from dynamo.core.model import Phase
from dynamo.core.ports.discovery import Lease
from dynamo.testing.discovery import lease_for
from integration.fake_kubernetes import RECORDS, FakeKubernetes
from integration.fake_kubernetes_answers import reset, status, text
from integration.kubernetes_faults import BOUND_S, ONE, patience

pytestmark = [pytest.mark.anyio]
NAME = "worker-0-1"  # of the lease with the id 1 in pod worker-0
DRAINING = attrs.evolve(ONE, phase=Phase.DRAINING)


@asynccontextmanager
async def leased(fake: FakeKubernetes, url: str = "kubernetes://") -> AsyncIterator[Lease]:
    """A worker that has yet to register; it leaves nothing."""
    pod = {"POD_NAME": "worker-0", "POD_UID": "1234"}
    settings = Settings.from_env(pod, kubeconfig=str(fake.kubeconfig), connect_timeout_s=2.0)
    async with fake.run(), asyncio.timeout(BOUND_S):
        async with open_kubernetes(url, settings) as client, lease_for(client, ONE) as lease:
            await fake.until_watched(RECORDS)
            yield lease
        assert not fake.objects[RECORDS]


def record(fake: FakeKubernetes) -> dict[str, Any] | None:
    found = fake.objects[RECORDS].get(NAME)
    return found and found["spec"]["data"]["endpoints"]["contract/worker/generate"]


async def until_recorded(fake: FakeKubernetes, phase: Phase = Phase.READY) -> None:
    while (found := record(fake)) is None or found["phase"] != phase.value:
        await asyncio.sleep(0.01)


def unanswered(fake: FakeKubernetes) -> Any:
    """It is done, and the answer is lost."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await fake.right(request)
        reset(request)
        return web.Response()

    return answer


async def test_a_registration_whose_answer_was_lost_can_be_told_again(fake: FakeKubernetes) -> None:
    async with leased(fake) as lease:
        fake.answer(f"apply {RECORDS}", unanswered(fake))
        with pytest.raises(UnavailableError):
            await lease.put(ONE)
        assert record(fake)
        await lease.put(ONE)
        await lease.put(DRAINING)
        await until_recorded(fake, Phase.DRAINING)


async def test_a_registration_whose_answer_was_lost_goes_when_its_worker_leaves(fake: FakeKubernetes) -> None:
    async with leased(fake) as lease:
        fake.answer(f"apply {RECORDS}", unanswered(fake))
        with pytest.raises(UnavailableError):
            await lease.put(ONE)
        assert record(fake)


@pytest.mark.parametrize("said", ["{}", '{"metadata": {}}', '{"metadata": null}', "[]", "<html>"])
async def test_what_is_no_object_is_not_taken_for_a_registration(fake: FakeKubernetes, said: str) -> None:
    async with leased(fake) as lease:
        fake.answer(f"apply {RECORDS}", text(said))
        with pytest.raises(UnavailableError, match="is no Kubernetes API server"):
            await lease.put(ONE)
        await lease.put(ONE)
        fake.answer(f"apply {RECORDS}", text(said))
        fake.remove(RECORDS, NAME)
        await until_recorded(fake)


async def test_leaving_is_tried_again_while_there_is_time(fake: FakeKubernetes) -> None:
    async with leased(fake) as lease:
        await lease.put(ONE)
        fake.answer(f"delete {RECORDS}", status(500, "InternalError"), unanswered(fake))
    assert len(fake.times(f"delete {RECORDS}")) == 3


async def test_a_lost_record_is_put_back_when_the_server_can_write_again(fake: FakeKubernetes) -> None:
    async with leased(fake) as lease:
        await lease.put(ONE)
        fake.asked.clear()
        began = time.monotonic()
        fake.always(f"apply {RECORDS}", status(500, "InternalError"))
        fake.remove(RECORDS, NAME)
        await patience(fake, began, f"apply {RECORDS}")
        fake.always(f"apply {RECORDS}", None)
        await until_recorded(fake)


async def test_a_busy_server_is_not_asked_to_put_it_back_before_it_says(fake: FakeKubernetes) -> None:
    async with leased(fake) as lease:
        await lease.put(ONE)
        fake.asked.clear()
        fake.answer(f"apply {RECORDS}", status(429, "TooManyRequests", retry_after="1"))
        fake.remove(RECORDS, NAME)
        await until_recorded(fake)
        refused, next_one, *_ = fake.times(f"apply {RECORDS}")
        assert next_one.at - refused.at >= 1.0


async def test_a_record_that_somebody_set_back_is_put_right(fake: FakeKubernetes) -> None:
    """As a restored backup does: what is there was ours once."""
    async with leased(fake) as lease:
        await lease.put(ONE)
        await until_recorded(fake)
        earlier = fake.objects[RECORDS][NAME]
        await lease.put(DRAINING)
        await until_recorded(fake, Phase.DRAINING)
        fake.put(RECORDS, {**earlier, "metadata": dict(earlier["metadata"])})
        await until_recorded(fake, Phase.DRAINING)


async def test_who_asks_whether_we_live_is_answered_when_the_server_can_write_again(
    fake: FakeKubernetes,
) -> None:
    async with leased(fake) as lease:
        await lease.put(ONE)
        fake.asked.clear()
        began = time.monotonic()
        fake.always(f"merge {RECORDS}", status(500, "InternalError"))
        found = fake.objects[RECORDS][NAME]
        found["metadata"]["annotations"] = {f"{CLAIM}abc": "does its owner live?"}
        fake.put(RECORDS, found)
        await patience(fake, began, f"merge {RECORDS}")
        fake.always(f"merge {RECORDS}", None)
        while fake.objects[RECORDS][NAME]["metadata"]["annotations"]:
            await asyncio.sleep(0.01)


async def test_a_place_that_was_left_behind_is_not_looked_at_all_the_time(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a node comes back, all its workers do this at once."""
    monkeypatch.setattr(claiming, "ANSWER_S", 1.0)
    async with leased(fake) as lease:
        await lease.put(ONE)
        other = fake.objects[RECORDS][NAME]
        await lease.remove(ONE.endpoint_id)
        other["spec"]["data"]["incarnation"] = "f00"
        fake.put(RECORDS, other)
        fake.asked.clear()
        fake.answer(f"apply {RECORDS}", status(409, "Conflict"))
        await lease.put(ONE)
        await until_recorded(fake)
        assert len(fake.times(f"list {RECORDS}")) <= 12


async def test_a_place_whose_owner_can_never_be_asked_is_not_waited_for_for_ever(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "ANSWER_S", 0.1)
    async with leased(fake, "kubernetes://?takeover_s=0.1") as lease:
        await lease.put(ONE)
        other = fake.objects[RECORDS][NAME]
        await lease.remove(ONE.endpoint_id)
        other["spec"]["data"]["incarnation"] = "f00"
        fake.put(RECORDS, other)
        fake.answer(f"apply {RECORDS}", status(409, "Conflict"))
        fake.always(f"merge {RECORDS}", status(409, "Conflict"))
        with pytest.raises(UnavailableError, match="changes faster than its owner can be asked"):
            await lease.put(ONE)
        fake.remove(RECORDS, NAME)
