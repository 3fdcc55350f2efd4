"""What all parts of the suite share: the capability that gates tests, a bound on waiting, the harness."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

import anyio
import pytest
from attrs import frozen

from dynamo.core.ports.discovery import Capability, Liveness
from dynamo.testing.discovery.harness import DiscoveryHarness, Power


@frozen(kw_only=True)
class Needs:
    """What a test asks of an adapter and its harness."""

    powers: Power
    dynamic: bool
    liveness: Liveness | None

    def met_by(self, capability: Capability, powers: Power) -> bool:
        return (
            self.powers in powers
            and (capability.dynamic or not self.dynamic)
            and self.liveness in (None, capability.liveness)
        )


T = TypeVar("T", bound=Callable[..., Awaitable[None]])


def needs(
    powers: Power = Power.NONE, *, dynamic: bool = True, liveness: Liveness | None = None
) -> Callable[[T], T]:
    """Say when a test applies, and bound it by the suite's ``patience_s``."""

    def mark(test: T) -> T:
        @functools.wraps(test)
        async def bounded(self: Suite, *args: Any, **kwargs: Any) -> None:
            with anyio.fail_after(self.patience_s):
                await test(self, *args, **kwargs)

        bounded.needs = Needs(powers=powers, dynamic=dynamic, liveness=liveness)  # type: ignore[attr-defined]
        return bounded  # type: ignore[return-value]

    return mark


class Suite:
    """A part of the suite: a subclass that says its ``capability`` keeps the tests that apply to it."""

    capability: ClassVar[Capability]
    powers: ClassVar[Power] = Power.NONE
    patience_s: ClassVar[float] = 20.0
    """How long one test may take, the waits for a TTL included."""
    rival_s: ClassVar[float | None] = None
    """How long an older incarnation's end is waited for, where leases do not expire; else it is the TTL."""

    pytestmark = pytest.mark.anyio

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "capability"):
            return
        for part in reversed(cls.__mro__):
            for name, test in list(vars(part).items()):
                if isinstance(needed := getattr(test, "needs", None), Needs):
                    applies = needed.met_by(cls.capability, cls.powers)
                    if not applies or getattr(cls, name) is None:  # pytest collects no attribute that is None
                        setattr(cls, name, test if applies else None)

    @property
    def rival_wait_s(self) -> float:
        """``rival_s``, or the TTL."""
        return self.capability.ttl_s if self.rival_s is None else self.rival_s

    @pytest.fixture
    def harness(self) -> DiscoveryHarness:
        raise NotImplementedError("override the fixture `harness`")
