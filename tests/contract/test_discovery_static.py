"""The Discovery contract on ``static``: what of it applies to instances that are declared."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import pytest

from dynamo.adapters.discovery.static import CAPABILITY, StaticDiscovery, open_static
from dynamo.core.config import Settings
from dynamo.testing.discovery import DECLARED, DiscoveryContract, DiscoveryHarness


class StaticHarness(DiscoveryHarness):
    def __init__(self) -> None:
        declared = (f"{i.endpoint_id}={i.addresses[0]}#{i.instance_id}" for i in DECLARED)
        self.settings = Settings.from_env({"DYN_STATIC_INSTANCES": ";".join(declared)})

    def client(self) -> AbstractAsyncContextManager[StaticDiscovery]:
        return open_static("static://", self.settings)

    async def leftovers(self) -> list[str]:
        return []


class TestStaticDiscovery(DiscoveryContract):
    capability = CAPABILITY

    @pytest.fixture
    def harness(self) -> StaticHarness:
        return StaticHarness()
