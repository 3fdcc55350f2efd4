"""What all parts of the suite share: the harness, the faults that an adapter knows, a bound on waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from dynamo.core.ports.request_plane import IncomingCall
from dynamo.testing.request_plane.rig import Handler, RequestPlaneHarness, Rig, forever, set_up

LEAVING = "leaving serve"  # the way to break calls that every adapter has


class Suite:
    """Tests run on asyncio by anyio's plugin, or by a fixture ``anyio_backend`` of the subclass."""

    pytestmark = pytest.mark.anyio

    patience_s: ClassVar[float] = 10.0
    """How long a test may wait in all before it fails."""
    quiet_s: ClassVar[float] = 0.05
    """How long a test looks on before it believes that nothing happens."""
    faults: ClassVar[tuple[str, ...]] = ()
    """The kinds that the harness's ``link`` knows; each must end the calls that go over it as broken."""
    many_streams: ClassVar[int] = 1000
    """How many streams "many" are."""

    @pytest.fixture
    def harness(self) -> RequestPlaneHarness:
        """The adapter under test."""
        raise NotImplementedError("override the fixture `harness`")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test that breaks links runs once for each way that this adapter has."""
        if "fault" in metafunc.fixturenames:
            metafunc.parametrize("fault", (LEAVING, *self.faults))

    @asynccontextmanager
    async def rig(
        self, harness: RequestPlaneHarness, handler: Handler | None = None, **options: Any
    ) -> AsyncGenerator[Rig]:
        """``set_up``, within the test's patience; without a handler calls get no answer."""
        async with asyncio.timeout(self.patience_s):
            async with set_up(harness, handler or silence, **options) as rig:
                yield rig

    @asynccontextmanager
    async def breaking(
        self, harness: RequestPlaneHarness, rig: Rig, fault: str
    ) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
        """Lead the rig's calls over a link that breaks, in this way, when the result is awaited."""

        async def break_link() -> None:
            link.fault(fault)

        if fault == LEAVING:
            yield rig.leave
        else:
            async with harness.link(rig.server) as link:
                rig.address = link.address
                yield break_link


async def silence(call: IncomingCall) -> None:
    """A handler that does nothing until it is cancelled."""
    await forever()
