"""The Discovery contract on ``kubernetes``, against a real control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contract.kubernetes_harness import RIVAL_S, KubernetesHarness, kubernetes_harness
from dynamo.adapters.discovery.kubernetes import CAPABILITY
from dynamo.testing.discovery import DiscoveryContract, Power


@pytest.mark.kubernetes
class TestKubernetesDiscovery(DiscoveryContract):
    capability = CAPABILITY
    powers = Power.OUTAGE | Power.DELETE | Power.CORRUPT
    rival_s = RIVAL_S

    @pytest.fixture
    async def harness(self) -> AsyncIterator[KubernetesHarness]:
        async with kubernetes_harness() as harness:
            yield harness
