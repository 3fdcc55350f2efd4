"""Workers die, freeze and are replaced while calls arrive at a steady rate, as processes of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chaos.load import Load
from dynamo.core.errors import DeadlineError, StreamBrokenError
from matrix.deployment import Deployment, Pair, ProcessWorker, deployed, pairs

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    # etcd and Kubernetes have chaos of their own; what a worker's death does to calls is the plane's and the
    # core's.
    # Nats (no ports) with static alone, for time: there it is told of nobody's coming and going.
    pytest.mark.parametrize(
        "pair",
        pairs(
            lambda pair: (
                pair.separate
                and pair.discovery not in ("etcd", "kubernetes")
                and (pair.ports or pair.discovery == "static")
            )
        ),
    ),
]

Tell = Callable[[object], None]

RATE_PER_S = 100.0
WORK_S = 0.02  # each call takes, so that some are always under way
DEADLINE_S = 5.0
KEEPALIVE_S = 0.5


@asynccontextmanager
async def under_load(
    pair: Pair,
    folder: Path,
    *names: str,
    idempotent: bool,
    deadline_s: float = DEADLINE_S,
    **settings: Any,
) -> AsyncIterator[tuple[Deployment, Load]]:
    """A deployment that is being called; the block begins and ends while all goes well."""
    async with deployed(pair, folder, *names, **settings) as deployment:
        client = await deployment.client("echo")
        load = Load(client, {"pause_s": WORK_S}, RATE_PER_S, deadline_s, idempotent)
        async with load:
            await load.answered_by(*names)
            await load.steady()
            yield deployment, load
            await load.steady()
        load.check()


def process(deployment: Deployment, name: str) -> ProcessWorker:
    """The worker of that name, as the process that it is here."""
    (found,) = (worker for worker in deployment.workers if worker.name == name)
    assert isinstance(found, ProcessWorker)
    return found


async def test_kill_9_fails_no_idempotent_call(pair: Pair, tmp_path: Path, tell: Tell) -> None:
    async with under_load(pair, tmp_path, "stays", "dies", idempotent=True) as (deployment, load):
        killed_at = time.monotonic()
        process(deployment, "dies").kill()
        await load.answered_by("stays")
        await load.steady()
        recovery_s = load.recovery_s(killed_at)
        await deployment.start("succeeds")
        await load.answered_by("stays", "succeeds")
    tell(f"{load}; recovered {recovery_s * 1e3:.0f} ms after kill -9")
    assert load.failed == []


async def test_kill_9_fails_only_the_calls_it_caught(pair: Pair, tmp_path: Path, tell: Tell) -> None:
    async with under_load(pair, tmp_path, "stays", "dies", idempotent=False) as (deployment, load):
        killed_at = time.monotonic()
        process(deployment, "dies").kill()
        await load.answered_by("stays")
        await load.steady()
    tell(f"{load}; recovered {load.recovery_s(killed_at) * 1e3:.0f} ms after kill -9")
    for call in load.failed:
        assert isinstance(call.error, StreamBrokenError)
        assert call.due_at < killed_at + 0.1  # it was on its way when the link broke


async def test_a_frozen_worker_is_stepped_over_and_comes_back(pair: Pair, tmp_path: Path, tell: Tell) -> None:
    async with under_load(pair, tmp_path, "stays", "freezes", idempotent=True, keepalive_s=KEEPALIVE_S) as (
        deployment,
        load,
    ):
        frozen = process(deployment, "freezes")
        frozen_at = time.monotonic()
        frozen.suspend()
        await load.answered_by("stays")
        await load.steady()
        recovery_s = load.recovery_s(frozen_at)
        await asyncio.sleep(4 * KEEPALIVE_S)  # long enough for its links to be given up
        frozen.go_on()
        await load.answered_by("stays", "freezes")
    tell(
        f"{load}; recovered {recovery_s * 1e3:.0f} ms after SIGSTOP (DYN_KEEPALIVE_S={KEEPALIVE_S:g}), "
        "called again after SIGCONT"
    )
    assert load.failed == []
    assert recovery_s < 6 * KEEPALIVE_S


async def test_a_frozen_worker_fails_only_what_it_was_sent(pair: Pair, tmp_path: Path, tell: Tell) -> None:
    async with under_load(pair, tmp_path, "stays", "freezes", idempotent=False, keepalive_s=KEEPALIVE_S) as (
        deployment,
        load,
    ):
        frozen_at = time.monotonic()
        process(deployment, "freezes").suspend()
        await load.answered_by("stays")
        await asyncio.sleep(4 * KEEPALIVE_S)
        process(deployment, "freezes").go_on()
        await load.answered_by("stays", "freezes")
    tell(f"{load}; recovered {load.recovery_s(frozen_at) * 1e3:.0f} ms after SIGSTOP")
    for call in load.failed:
        assert isinstance(call.error, (StreamBrokenError, DeadlineError))
        assert call.due_at < frozen_at + 2 * KEEPALIVE_S  # then nothing new is sent there


async def test_no_call_outlives_its_deadline_when_everybody_is_frozen(
    pair: Pair, tmp_path: Path, tell: Tell
) -> None:
    async with under_load(pair, tmp_path, "freezes", idempotent=True, deadline_s=1.0) as (deployment, load):
        frozen_at = time.monotonic()
        process(deployment, "freezes").suspend()
        await asyncio.sleep(2.0)
        process(deployment, "freezes").go_on()
        await load.steady()
    tell(f"{load}; recovered {load.recovery_s(frozen_at) - 2.0:.2f} s after SIGCONT")
    assert load.failed
    assert {type(call.error) for call in load.failed} == {DeadlineError}


async def test_a_rolling_restart_fails_no_call(pair: Pair, tmp_path: Path, tell: Tell) -> None:
    async with under_load(pair, tmp_path, "a1", "b1", idempotent=False) as (deployment, load):
        began_at = time.monotonic()
        for old, new in (("a1", "a2"), ("b1", "b2")):
            leaver = process(deployment, old)
            leaver.drain()
            await leaver.gone()
            await deployment.start(new)
        await load.answered_by("a2", "b2")
    tell(f"{load}; a rolling restart of two in {time.monotonic() - began_at:.1f} s")
    assert load.failed == []


@pytest.mark.parametrize("end", ["kill", "drain"])
async def test_a_restart_of_all_workers_is_waited_out(
    pair: Pair, tmp_path: Path, tell: Tell, end: str
) -> None:
    async with under_load(pair, tmp_path, "a1", "b1", idempotent=end == "kill", deadline_s=15.0) as (
        deployment,
        load,
    ):
        ended_at = time.monotonic()
        for name in ("a1", "b1"):
            getattr(process(deployment, name), end)()
        for name in ("a1", "b1"):
            await process(deployment, name).gone()
        await deployment.start("a2", "b2")
        served_at = time.monotonic()
        await load.answered_by("a2", "b2")
        await load.steady()
        recovery_s = load.recovery_s(ended_at)
    tell(f"{load}; all gone, served again after {served_at - ended_at:.2f} s, recovered {recovery_s:.2f} s")
    assert load.failed == []
