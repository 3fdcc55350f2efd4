"""The contract's part about registrations, on the etcd that this computer has: Debian's is 3.4."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from contract.etcd_harness import SETTINGS, EtcdHarness, etcd_harness
from dynamo.adapters.discovery.etcd import capability, configuration
from dynamo.testing.discovery import Power
from dynamo.testing.discovery.registrations import Registrations
from etcd_server import EtcdServer

PROGRAM = Path(os.environ.get("DYNAMO_TEST_ETCD") or "/usr/bin/etcd")


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    if not PROGRAM.exists():
        pytest.skip(
            f"no {PROGRAM}: it comes with Debian's package etcd-server, or DYNAMO_TEST_ETCD names one"
        )
    with EtcdServer(program=PROGRAM) as server:
        yield server


@pytest.mark.optional_tool
class TestInstalledEtcd(Registrations):
    capability = capability(configuration.read("etcd://", SETTINGS))
    powers = Power.OUTAGE | Power.EXPIRE | Power.DELETE | Power.CORRUPT | Power.KILL

    @pytest.fixture
    async def harness(self, server: EtcdServer) -> AsyncIterator[EtcdHarness]:
        async with etcd_harness(server) as harness:
            yield harness
