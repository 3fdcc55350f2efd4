"""The pytest plugin: a runtime inside the test's own process, and readable assertions of the contract suites.

pytest loads it wherever the distribution is installed, so importing it imports nothing else of ours.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dynamo.core.distributed import DistributedRuntime

pytest.register_assert_rewrite("dynamo.testing.discovery", "dynamo.testing.request_plane")


@pytest.fixture
async def dynamo_runtime(anyio_backend_name: str) -> AsyncIterator[DistributedRuntime]:
    """An open runtime, on ``mem`` discovery and request plane that no other test shares.

    It lives on the loop of anyio's pytest plugin: mark the test ``anyio``, with ``asyncio`` as backend.
    """
    if anyio_backend_name != "asyncio":
        pytest.fail(
            f"dynamo_runtime runs on asyncio, not on {anyio_backend_name}: "
            "override the fixture anyio_backend to return 'asyncio'"
        )
    from dynamo.core.distributed import DistributedRuntime

    name = f"mem://test-{uuid.uuid4().hex}"
    async with DistributedRuntime(discovery=name, request_plane=name, drain_grace_s=0.0) as runtime:
        yield runtime
