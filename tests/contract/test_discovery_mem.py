"""The Discovery contract on ``mem``, the adapter that it is written against."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contract.mem_harness import CAPABILITY, MemHarness, mem_harness
from dynamo.testing.discovery import DiscoveryContract, Power


class TestMemDiscovery(DiscoveryContract):
    capability = CAPABILITY
    powers = Power.OUTAGE | Power.EXPIRE | Power.DELETE | Power.CORRUPT | Power.KILL

    @pytest.fixture
    async def harness(self) -> AsyncIterator[MemHarness]:
        async with mem_harness() as harness:
            yield harness
