"""The Discovery contract can fail: the test of a promise catches each adapter that breaks it."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from contract.broken_discovery import BREAKS, D14_CLIENT, Break
from contract.mem_harness import CAPABILITY, mem_harness
from dynamo.adapters.discovery import mem
from dynamo.adapters.discovery.mem import client
from dynamo.testing.discovery import DiscoveryContract, Power

INVARIANTS = [f"D{number}" for number in range(1, 17)]


class Suite(DiscoveryContract):
    """The whole contract, run by hand: a test that notices nothing ends well within ``patience_s``."""

    capability = CAPABILITY
    powers = ~Power.NONE
    patience_s = 1.5


TESTS = [name for name, test in inspect.getmembers(Suite, callable) if name.startswith("test_")]


async def run(name: str) -> bool:
    """Whether the test passes."""
    async with mem_harness() as harness:
        try:
            await getattr(Suite(), name)(harness)
        except (Exception, pytest.fail.Exception):
            return False
    return True


async def failures() -> set[str]:
    """Run all tests beside each other, those of D14 on loops of their own, as they count tasks.

    The one that counts the process's threads and descriptors runs alone.
    """
    together = [name for name in TESTS if name != D14_CLIENT]
    passed = await asyncio.gather(
        *(asyncio.to_thread(asyncio.run, run(name)) if "_D14_" in name else run(name) for name in together)
    )
    failed = {name for name, fine in zip(together, passed, strict=True) if not fine}
    return failed if await run(D14_CLIENT) else failed | {D14_CLIENT}


@pytest.mark.parametrize("broken", BREAKS, ids=str)
def test_a_broken_adapter_is_caught(broken: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = broken.stand_in.__mro__[1]
    for module in (mem, client):
        if getattr(module, replaced.__name__, None) is replaced:
            monkeypatch.setattr(module, replaced.__name__, broken.stand_in)
    assert asyncio.run(failures()) == set(broken.caught_by)
    assert broken.caught_by[0].startswith(f"test_{broken.invariant}_")


def test_the_reference_adapter_passes_when_run_in_the_same_way() -> None:
    assert asyncio.run(failures()) == set()


def test_every_invariant_and_every_test_has_a_broken_adapter() -> None:
    assert [i for i in INVARIANTS if not any(broken.invariant == i for broken in BREAKS)] == []
    noticing = {name for broken in BREAKS for name in broken.caught_by}
    assert set(TESTS) - noticing == set()
