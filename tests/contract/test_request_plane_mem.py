"""The memory request plane keeps the contract, faults of its links and server included."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import pytest

from dynamo.adapters.request_plane.mem import MemRequestPlane, MemServer, open_mem
from dynamo.core.config import Settings
from dynamo.core.ports.request_plane import Server
from dynamo.testing.request_plane import Link, RequestPlaneContract, RequestPlaneHarness


class MemLink(Link):
    def __init__(self, server: MemServer) -> None:
        self.server, self.address = server, server.addresses[0]

    def fault(self, kind: str) -> None:
        {"cut": self.server.break_links, "abort": self.server.abort}[kind]()


class MemHarness(RequestPlaneHarness):
    def open_plane(self, **settings: Any) -> AbstractAsyncContextManager[MemRequestPlane]:
        return open_mem("mem://", Settings(**settings))

    def link(self, server: Server) -> AbstractAsyncContextManager[Link]:
        assert isinstance(server, MemServer)
        return nullcontext(MemLink(server))


class TestMemRequestPlane(RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture
    def harness(self) -> MemHarness:
        return MemHarness()
