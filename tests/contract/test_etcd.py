"""The Discovery contract on ``etcd``, against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contract.etcd_harness import SETTINGS, EtcdHarness, etcd_harness
from dynamo.adapters.discovery.etcd import capability, configuration
from dynamo.testing.discovery import DiscoveryContract, Power


class TestEtcdDiscovery(DiscoveryContract):
    capability = capability(configuration.read("etcd://", SETTINGS))
    powers = Power.OUTAGE | Power.EXPIRE | Power.DELETE | Power.CORRUPT | Power.KILL

    @pytest.fixture
    async def harness(self) -> AsyncIterator[EtcdHarness]:
        async with etcd_harness() as harness:
            yield harness
