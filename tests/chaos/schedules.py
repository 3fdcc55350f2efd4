"""Random faults and random calls, the same for the same seed."""

from __future__ import annotations

import random

from attrs import frozen

HORIZON_S = 0.06  # in which calls begin and faults happen
CALLS = 8
WORKERS = 3
FAULTS = ("cut", "reset", "kill", "drain", "newcomer")
KINDS = ("call", "stream", "generate", "duplex")
SIZES = (0, 10, 900, 5_000, 20_000)  # around a window of 4 KiB


@frozen
class Fault:
    """What happens to one worker; ``newcomer`` is another one that comes."""

    at_s: float
    kind: str
    worker: int


@frozen
class Plan:
    """One call: what its handler does, how it is read, and how its caller leaves it, if early."""

    at_s: float
    kind: str
    items: int
    item_bytes: int
    work_s: float | None  # before each item; None: the handler never waits
    reading_s: float | None  # after each item
    fails: bool  # the handler raises after its items
    idempotent: bool
    timeout_s: float | None
    leave: str | None  # break, stop or kill at ``leave_at`` items; cancel after ``leave_s`` seconds
    leave_at: int
    leave_s: float


@frozen
class Schedule:
    seed: int
    calls: tuple[Plan, ...]
    faults: tuple[Fault, ...]

    @classmethod
    def drawn(cls, seed: int) -> Schedule:
        """The schedule of this seed."""
        chance = random.Random(seed)
        faults = tuple(
            Fault(chance.uniform(0, HORIZON_S), chance.choice(FAULTS), chance.randrange(WORKERS))
            for _ in range(chance.randrange(5))
        )
        return cls(seed, tuple(_plan(chance) for _ in range(CALLS)), tuple(sorted(faults, key=_when)))

    def __str__(self) -> str:
        return "\n  ".join([f"seed {self.seed}", *map(str, self.calls), *map(str, self.faults)])


def _when(fault: Fault) -> float:
    return fault.at_s


def _plan(chance: random.Random) -> Plan:
    kind = chance.choice(KINDS)
    pauses = (None, None, 0.0, 0.002)
    return Plan(
        at_s=chance.uniform(0, HORIZON_S),
        kind=kind,
        items=chance.choice((0, 1, 1, 1, 2)) if kind == "call" else chance.choice((0, 1, 3, 20)),
        item_bytes=chance.choice(SIZES),
        work_s=chance.choice(pauses),
        reading_s=chance.choice(pauses),
        fails=chance.random() < 0.15,
        idempotent=chance.random() < 0.5,
        timeout_s=chance.choice((None, None, 0.02, 2.0)),
        leave=chance.choice((None, None, None, "break", "stop", "kill", "cancel")),
        leave_at=chance.randrange(4),
        leave_s=chance.uniform(0, HORIZON_S),
    )
