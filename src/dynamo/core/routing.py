"""Which instance takes the next call: the strategies. A pick costs O(1), whatever the number of instances."""

from __future__ import annotations

from abc import abstractmethod
from random import random, randrange
from typing import Protocol

from dynamo.core.errors import ConfigError
from dynamo.core.peers import Peer, Peers


class Strategy(Protocol):
    """Picks the instance of each call. One object may serve one client only: it may keep a position."""

    @abstractmethod
    def pick(self, peers: Peers) -> Peer | None:
        """The instance for the next call, usually out of ``peers.ready``; None: wait until the table changes.

        Called for every attempt, on the loop; must return at once.
        """


class RoundRobin(Strategy):
    """One after the other, from a random start, so that many clients do not begin at the same instance."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next: int | None = None

    def pick(self, peers: Peers) -> Peer | None:
        ready = peers.ready
        if not ready:
            return None
        position = self._next
        if position is None:
            position = randrange(len(ready))
        elif position >= len(ready):
            position = 0
        self._next = position + 1
        return ready[position]


class Random(Strategy):
    """Any one, each as likely as the other."""

    __slots__ = ()

    def pick(self, peers: Peers) -> Peer | None:
        ready = peers.ready
        return ready[int(random() * len(ready))] if ready else None


class PowerOfTwo(Strategy):
    """The less loaded of two random ones (Mitzenmacher, "The Power of Two Choices in Randomized Load
    Balancing", 2001)."""

    __slots__ = ()

    def pick(self, peers: Peers) -> Peer | None:
        ready = peers.ready
        count = len(ready)
        if count < 2:
            return ready[0] if ready else None
        first = int(random() * count)
        second = int(random() * (count - 1))
        one, other = ready[first], ready[second + (second >= first)]
        return one if one.in_flight <= other.in_flight else other


class LeastLoaded(Strategy):
    """The one with the fewest calls in flight from this runtime."""

    __slots__ = ()

    def pick(self, peers: Peers) -> Peer | None:
        return peers.least_loaded()


class Direct(Strategy):
    """Always the instance of that id or name; it never moves."""

    __slots__ = ("target",)

    def __init__(self, target: int | str | None = None) -> None:
        self.target = target

    def pick(self, peers: Peers) -> Peer | None:
        if self.target is None:
            raise ConfigError(
                "strategy 'direct' needs an instance: client.call(request, instance=...), "
                "client.direct(request, id), or endpoint.client(strategy='direct', endpoint_id=...)"
            )
        return peers.find(self.target)

    def __str__(self) -> str:
        if isinstance(self.target, str) and self.target.isdigit():
            return f"instance named {self.target!r} (an id is an int)"
        return f"instance {self.target}"


_NAMED: dict[str, type[Strategy]] = {
    "roundrobin": RoundRobin,
    "random": Random,
    "poweroftwo": PowerOfTwo,
    "poweroftwochoices": PowerOfTwo,
    "leastloaded": LeastLoaded,
}


def strategy_of(choice: str | Strategy, target: int | str | None = None) -> Strategy:
    """A strategy by name (``round_robin``, ``RoundRobin`` and ``round-robin`` alike), or the caller's own
    object.

    ``target`` is the instance of ``direct``. Raises ConfigError.
    """
    if isinstance(choice, str):
        name = choice.lower().replace("_", "").replace("-", "")
        if name == "direct":
            return Direct(target)
        if (found := _NAMED.get(name)) is not None:
            return found()
    elif callable(getattr(choice, "pick", None)):
        return choice
    raise ConfigError(
        f"unknown strategy {choice!r}; known: round_robin, random, direct, power_of_two, least_loaded, "
        "or an object with pick(peers)"
    )
