"""The table of live instances and the five strategies."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dynamo.core.errors import ConfigError, ConflictError
from dynamo.core.model import Instance, Phase
from dynamo.core.peers import Peer, Peers
from dynamo.core.routing import (
    Direct,
    LeastLoaded,
    PowerOfTwo,
    Random,
    RoundRobin,
    Strategy,
    strategy_of,
)
from unit.calling import ENDPOINT

IDS = st.integers(1, 8)


def instance(instance_id: int, **fields: Any) -> Instance:
    record = Instance(
        endpoint_id=ENDPOINT, instance_id=instance_id, incarnation=1, addresses=(f"mem://{instance_id}",)
    )
    return attrs.evolve(record, **fields)


def table(count: int) -> Peers:
    peers = Peers()
    for number in range(1, count + 1):
        peers.put(instance(number))
    return peers


def pick(strategy: Strategy, peers: Peers) -> Peer:
    peer = strategy.pick(peers)
    assert peer is not None
    return peer


class TableMachine(RuleBasedStateMachine):
    """Every change in any order, against what the table should say after it."""

    def __init__(self) -> None:
        super().__init__()
        self.peers = Peers()
        self.known: dict[int, Instance] = {}
        self.aside: list[int] = []  # least recently failed first
        self.unreachable: set[int] = set()
        self.running: list[Peer] = []

    def forget(self, instance_id: int) -> None:
        if instance_id in self.aside:
            self.aside.remove(instance_id)
        self.unreachable.discard(instance_id)

    @rule(
        instance_id=IDS,
        phase=st.sampled_from(Phase),
        incarnation=st.integers(1, 2),
        name=st.sampled_from([None, "a", "b"]),
    )
    def put(self, instance_id: int, phase: Phase, incarnation: int, name: str | None) -> None:
        record = instance(instance_id, phase=phase, incarnation=incarnation, name=name)
        if self.known.get(instance_id) != record:
            self.forget(instance_id)
        self.known[instance_id] = record
        self.peers.put(record)

    @rule(instance_id=IDS)
    def remove(self, instance_id: int) -> None:
        self.known.pop(instance_id, None)
        self.forget(instance_id)
        self.peers.remove(instance_id)

    @rule(listed=st.sets(IDS))
    def replace(self, listed: set[int]) -> None:
        for instance_id in [known for known in self.known if known not in listed]:
            del self.known[instance_id]
            self.forget(instance_id)
        for instance_id in listed:
            self.known.setdefault(instance_id, instance(instance_id))
        self.peers.replace([self.known[instance_id] for instance_id in listed])

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def set_aside(self, data: st.DataObject) -> None:
        peer = self.peers.by_id[data.draw(st.sampled_from(sorted(self.known)))]
        ready = peer.instance.phase is Phase.READY
        assert self.peers.set_aside(peer) is ready
        if ready:
            self.forget(peer.instance_id)
            self.aside.append(peer.instance_id)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        peer = self.peers.by_id[data.draw(st.sampled_from(sorted(self.known)))]
        if peer.instance_id in self.aside:
            self.aside.remove(peer.instance_id)
        self.peers.restore(peer)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def set_unreachable(self, data: st.DataObject) -> None:
        peer = self.peers.by_id[data.draw(st.sampled_from(sorted(self.known)))]
        if peer.instance.phase is Phase.READY:
            self.forget(peer.instance_id)
            self.unreachable.add(peer.instance_id)
        self.peers.set_unreachable(peer, "no adapter")

    @precondition(lambda self: self.peers.ready)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from(self.peers.ready))
        self.peers.begin(peer)
        self.running.append(peer)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.peers.finish(self.running.pop(data.draw(st.integers(0, len(self.running) - 1))))

    @precondition(lambda self: self.peers.ready)
    @rule(data=st.data())
    def pick_without(self, data: st.DataObject) -> None:
        ready = list(self.peers.ready)
        tried = data.draw(st.lists(st.sampled_from(ready), unique=True))
        picked = self.peers.pick_without(tried, Random())
        assert picked in ready
        assert picked not in tried or len(tried) == len(ready)

    @invariant()
    def ready_is_what_may_be_routed_to(self) -> None:
        ready = {
            instance_id
            for instance_id, record in self.known.items()
            if record.phase is Phase.READY
            and instance_id not in self.aside
            and instance_id not in self.unreachable
        }
        if not ready and self.aside:
            ready = {self.aside[0]}
        assert {peer.instance_id for peer in self.peers.ready} == ready
        assert len(self.peers.ready) == len(ready)
        assert self.peers.count == sum(record.phase is Phase.READY for record in self.known.values())
        assert [peer.position for peer in self.peers.ready] == list(range(len(ready)))
        assert list(self.peers.aside) == self.aside
        assert set(self.peers.unreachable) == self.unreachable
        assert {instance_id: peer.instance for instance_id, peer in self.peers.by_id.items()} == self.known

    @invariant()
    def the_least_loaded_has_the_fewest_calls(self) -> None:
        least = self.peers.least_loaded()
        if self.peers.ready:
            assert least in self.peers.ready
            assert least is not None
            assert least.in_flight == min(peer.in_flight for peer in self.peers.ready)
        else:
            assert least is None

    @invariant()
    def counts_are_those_of_the_calls_that_run(self) -> None:
        counts = Counter(map(id, self.running))
        for peer in self.peers.by_id.values():
            assert peer.in_flight == counts[id(peer)]

    @invariant()
    def names_are_found(self) -> None:
        for name in ("a", "b"):
            bearers = [
                instance_id
                for instance_id, record in self.known.items()
                if record.name == name and record.phase is Phase.READY
            ]
            if len(bearers) > 1:
                with pytest.raises(ConflictError):
                    self.peers.find(name)
            else:
                found = self.peers.find(name)
                assert ([] if found is None else [found.instance_id]) == bearers


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_change_of_one_instance_among_thousands_builds_no_new_list() -> None:
    peers = table(5000)
    LeastLoaded().pick(peers)
    ready, moved = peers.ready, []
    before = list(ready)
    for number in (1, 2500, 5000):
        peers.put(instance(number, metadata={"changed": True}))
        peers.set_aside(peers.by_id[number])
        peers.restore(peers.by_id[number])
        peers.remove(number)
        moved.append(sum(now is not then for now, then in zip(ready, before, strict=False)))
    assert peers.ready is ready
    assert max(moved) <= 3 * 4  # each step moves at most the last one into the gap


def test_a_restarted_instance_is_another_peer() -> None:
    peers = table(1)
    first = peers.by_id[1]
    peers.begin(first)
    peers.put(instance(1, incarnation=2))
    peers.finish(first)
    assert peers.by_id[1] is not first
    assert peers.by_id[1].in_flight == 0


def test_a_changed_record_keeps_the_calls_in_flight_and_forgets_failures() -> None:
    peers = table(2)
    peer = peers.by_id[1]
    peers.begin(peer)
    peer.failures = 3
    peers.set_aside(peer)
    peers.put(instance(1, metadata={"device_type": "cpu"}))
    assert (peer.in_flight, peer.failures, len(peers.ready)) == (1, 0, 2)


def test_round_robin_asks_each_once_in_a_round() -> None:
    peers, strategy = table(7), RoundRobin()
    for _ in range(3):
        assert {pick(strategy, peers).instance_id for _ in range(7)} == set(range(1, 8))


def test_round_robin_starts_anywhere() -> None:
    peers = table(10)
    assert len({pick(RoundRobin(), peers).instance_id for _ in range(200)}) > 3


def test_round_robin_outlives_instances_that_leave() -> None:
    peers, strategy = table(5), RoundRobin()
    for _ in range(4):
        pick(strategy, peers)
    for number in (2, 3, 4, 5):
        peers.remove(number)
    assert pick(strategy, peers).instance_id == 1


def test_random_reaches_everybody() -> None:
    peers, strategy = table(5), Random()
    assert {pick(strategy, peers).instance_id for _ in range(500)} == {1, 2, 3, 4, 5}


def test_power_of_two_never_picks_the_most_loaded() -> None:
    peers, strategy = table(3), PowerOfTwo()
    for _ in range(3):
        peers.begin(peers.by_id[2])
    picked = {pick(strategy, peers).instance_id for _ in range(300)}
    assert picked == {1, 3}


def test_least_loaded_levels_the_load() -> None:
    peers, strategy = table(4), LeastLoaded()
    for _ in range(40):
        peers.begin(pick(strategy, peers))
    assert {peer.in_flight for peer in peers.ready} == {10}


def test_least_loaded_spreads_equals() -> None:
    peers, strategy = table(4), LeastLoaded()
    assert len({pick(strategy, peers).instance_id for _ in range(200)}) == 4


def test_direct_finds_by_id_and_by_name() -> None:
    peers = table(2)
    peers.put(instance(3, name="worker-1"))
    assert pick(Direct(2), peers).instance_id == 2
    assert pick(Direct("worker-1"), peers).instance_id == 3
    assert Direct(9).pick(peers) is None
    assert Direct("worker-2").pick(peers) is None


def test_direct_goes_to_its_instance_though_it_is_aside() -> None:
    peers = table(2)
    peers.set_aside(peers.by_id[1])
    assert pick(Direct(1), peers).instance_id == 1


def test_direct_does_not_go_to_a_draining_instance() -> None:
    peers = table(2)
    peers.put(instance(1, phase=Phase.DRAINING))
    assert Direct(1).pick(peers) is None


def test_direct_to_a_name_that_two_bear_says_who_they_are() -> None:
    peers = Peers()
    peers.put(instance(10, name="twin"))
    peers.put(instance(11, name="twin"))
    with pytest.raises(ConflictError, match=r"'twin'.*\(10, 11\)"):
        Direct("twin").pick(peers)


def test_the_successor_of_a_draining_instance_may_bear_its_name() -> None:
    peers = Peers()
    peers.put(instance(10, name="worker-1", phase=Phase.DRAINING))
    peers.put(instance(11, name="worker-1"))
    assert pick(Direct("worker-1"), peers).instance_id == 11


@pytest.mark.parametrize(
    "spelling,kind",
    [
        ("round_robin", RoundRobin),
        ("RoundRobin", RoundRobin),
        ("random", Random),
        ("power-of-two", PowerOfTwo),
        ("PowerOfTwoChoices", PowerOfTwo),
        ("LEAST_LOADED", LeastLoaded),
        ("Direct", Direct),
    ],
)
def test_strategies_are_known_by_any_spelling(spelling: str, kind: type[Strategy]) -> None:
    assert type(strategy_of(spelling)) is kind


@pytest.mark.parametrize("choice", ["round_robbin", "", 7, None])
def test_an_unknown_strategy_is_shown_with_the_known_ones(choice: object) -> None:
    with pytest.raises(
        ConfigError, match="known: round_robin, random, direct, power_of_two, least_loaded"
    ) as e:
        strategy_of(choice)  # type: ignore[arg-type]
    assert repr(choice) in str(e.value)


def test_direct_without_an_instance_says_how_to_give_one() -> None:
    with pytest.raises(ConfigError, match="instance="):
        strategy_of("direct").pick(table(1))
