"""Who is put aside, for how long, and how it comes back."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator

import pytest

from dynamo.core import availability
from dynamo.core.availability import LONGEST_BACKOFF_S, PROBES_AT_ONCE, Availability, backoff_s
from dynamo.core.health import Health, Status
from dynamo.core.peers import Peers
from unit.calling import until
from unit.test_routing import instance, table

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "FIRST_BACKOFF_S", 0.002)


class Probe:
    """Answers a probe as told, and counts."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers, self.asked = list(answers), 0

    async def __call__(self) -> Health:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Health(status=Status.UP if answer else Status.DOWN)


def test_the_back_off_doubles_up_to_a_limit_and_is_spread() -> None:
    whole = [backoff_s(failures, 0) for failures in range(1, 3000)]  # hours of outage
    assert whole[0] == availability.FIRST_BACKOFF_S
    assert all(later in (2 * before, LONGEST_BACKOFF_S) for before, later in itertools.pairwise(whole))
    assert whole[-1] == LONGEST_BACKOFF_S
    assert backoff_s(1, 1) == whole[0] / 2


async def test_a_failed_instance_is_passed_over_until_a_probe_finds_it_alive() -> None:
    peers, probe = table(2), Probe(True)
    available = Availability(peers)
    peer = peers.by_id[1]
    available.failed(peer, 0, probe)
    assert [ready.instance_id for ready in peers.ready] == [2]
    await until(lambda: len(peers.ready) == 2)
    assert probe.asked == 1
    assert peer.failures == 1  # until it answers a call
    available.answered(peer)
    assert peer.failures == 0


@pytest.mark.parametrize("answer", [False, RuntimeError("a third party's mistake")])
async def test_a_probe_that_fails_makes_it_wait_longer(answer: bool | Exception) -> None:
    peers, probe = table(2), Probe(answer, answer, True)
    available = Availability(peers)
    available.failed(peers.by_id[1], 0, probe)
    await until(lambda: len(peers.ready) == 2)
    assert probe.asked == 3
    assert peers.by_id[1].failures == 3


async def test_a_probe_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(availability, "PROBE_TIMEOUT_S", 0.01)
    peers = table(2)
    answers: Iterator[Callable[[], Awaitable[object]]] = iter([asyncio.Event().wait, Probe(True)])

    async def probe() -> Health:
        answer = await next(answers)()
        assert isinstance(answer, Health)
        return answer

    Availability(peers).failed(peers.by_id[1], 0, probe)
    await until(lambda: len(peers.ready) == 2)
    assert peers.by_id[1].failures == 2


async def test_calls_that_break_together_are_one_failure() -> None:
    peers = table(2)
    available = Availability(peers)
    for _ in range(64):
        available.failed(peers.by_id[1], 0, Probe(False))
    assert peers.by_id[1].failures == 1
    await available.aclose()


async def test_a_call_of_before_the_failure_that_breaks_after_it_is_over_is_part_of_it() -> None:
    peers = table(2)
    available = Availability(peers)
    peer = peers.by_id[1]
    available.failed(peer, 0, Probe(True))
    await until(lambda: len(peers.ready) == 2)
    available.failed(peer, 0, Probe(False))
    assert peer.failures == 1
    assert len(peers.ready) == 2
    await available.aclose()


async def test_failing_again_on_trial_makes_it_the_last_in_line() -> None:
    peers = table(2)
    available = Availability(peers)
    available.failed(peers.by_id[1], 0, Probe(False))
    available.failed(peers.by_id[2], 0, Probe(False))
    assert [peer.instance_id for peer in peers.ready] == [1]
    available.failed(peers.by_id[1], 1, Probe(False))
    assert [peer.instance_id for peer in peers.ready] == [2]
    await available.aclose()


async def test_calls_that_fail_on_trial_do_not_keep_it_away_longer() -> None:
    peers, probe = table(2), Probe(True)
    available = Availability(peers)
    for number in (1, 2):
        available.failed(peers.by_id[number], 0, probe)
    for _ in range(20):
        (trial,) = peers.ready
        timer = trial.timer
        available.failed(trial, 1, Probe(False))
        assert (trial.failures, trial.timer) == (1, timer)
    await until(lambda: len(peers.ready) == 2)


async def test_an_answered_call_brings_it_back_at_once() -> None:
    peers, probe = table(2), Probe(False)
    available = Availability(peers)
    available.failed(peers.by_id[1], 0, probe)
    available.answered(peers.by_id[1])
    assert len(peers.ready) == 2
    assert peers.by_id[1].timer is None


async def test_a_change_in_discovery_brings_it_back_at_once() -> None:
    peers = table(2)
    available = Availability(peers)
    available.failed(peers.by_id[1], 0, Probe(False))
    peers.put(instance(1, addresses=("mem://elsewhere",)))
    assert len(peers.ready) == 2
    assert peers.by_id[1].failures == 0
    assert peers.by_id[1].timer is None


class SlowProbe:
    """Answers when told."""

    def __init__(self, status: Status) -> None:
        self.asked, self.answer, self._status = asyncio.Event(), asyncio.Event(), status

    async def __call__(self) -> Health:
        self.asked.set()
        await self.answer.wait()
        return Health(status=self._status)


@pytest.mark.parametrize("status", [Status.UP, Status.DOWN])
async def test_an_instance_that_left_while_it_was_probed_does_not_come_back(status: Status) -> None:
    peers, probe = table(2), SlowProbe(status)
    available = Availability(peers)
    peer = peers.by_id[1]
    available.failed(peer, 0, probe)
    await asyncio.wait_for(probe.asked.wait(), 5)
    peers.remove(1)
    probe.answer.set()
    await until(lambda: not available._probing)
    assert [peer.instance_id for peer in peers.ready] == [2]
    assert peer.timer is None  # nor is it probed again


async def test_a_probe_of_before_says_nothing_of_an_instance_that_was_answered_and_failed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peers, probe = table(2), SlowProbe(Status.DOWN)
    available = Availability(peers)
    peer = peers.by_id[1]
    peer.failures = 4
    available.failed(peer, 4, probe)
    await asyncio.wait_for(probe.asked.wait(), 5)
    available.answered(peer)
    monkeypatch.setattr(availability, "FIRST_BACKOFF_S", 60)
    available.failed(peer, 0, Probe(False))
    timer = peer.timer
    probe.answer.set()
    await asyncio.wait(available._probing)
    assert (peer.failures, peer.timer) == (1, timer)
    await available.aclose()


async def test_probes_are_bounded_in_number() -> None:
    peers: Peers = table(PROBES_AT_ONCE + 20)
    available = Availability(peers)
    running, most, go = 0, 0, asyncio.Event()

    async def probe() -> Health:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return Health(status=Status.UP)

    for peer in list(peers.by_id.values()):
        available.failed(peer, 0, probe)
    await until(lambda: running == PROBES_AT_ONCE)
    go.set()
    await until(lambda: len(peers.ready) == PROBES_AT_ONCE + 20)
    assert most == PROBES_AT_ONCE


async def test_closing_leaves_no_timer_and_no_task() -> None:
    before = asyncio.all_tasks()
    peers = table(3)
    available = Availability(peers)
    asked = asyncio.Event()

    async def probe() -> Health:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    available.failed(peers.by_id[1], 0, probe)
    await asyncio.wait_for(asked.wait(), 5)
    available.failed(peers.by_id[2], 0, probe)
    timer = peers.by_id[2].timer
    await available.aclose()
    assert timer is not None
    assert timer.cancelled()
    assert asyncio.all_tasks() == before
    assert all(peer.timer is None for peer in peers.by_id.values())
