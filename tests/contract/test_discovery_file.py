"""The Discovery contract on ``file``: on one host, with and without file events, and on a shared disk."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contract.file_harness import FileHarness
from dynamo.adapters.discovery.file import capability
from dynamo.testing.discovery import DiscoveryContract, Power

EVENTS = [0, 1] if importlib.util.find_spec("watchfiles") else [0]


class TestFileDiscovery(DiscoveryContract):
    capability = capability(shared=False, ttl_s=1.0)
    powers = Power.OUTAGE | Power.DELETE | Power.CORRUPT | Power.KILL

    @pytest.fixture(params=EVENTS, ids=["looking", "events"][: len(EVENTS)])
    async def harness(self, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[FileHarness]:
        harness = FileHarness(tmp_path, f"ttl_s=1&events={request.param}")
        yield harness
        await harness.close()


class TestFileDiscoveryOnASharedDisk(DiscoveryContract):
    capability = capability(shared=True, ttl_s=1.5)
    powers = Power.OUTAGE | Power.DELETE | Power.CORRUPT | Power.KILL | Power.EXPIRE

    @pytest.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[FileHarness]:
        harness = FileHarness(tmp_path, "ttl_s=1.5&shared=1")
        yield harness
        await harness.close()
