"""The contract of a RequestPlane, as tests. An adapter's own test file binds them in a few lines::

    class Harness(RequestPlaneHarness):
        def open_plane(self, **settings):
            return open_mine("mine://", Settings(**settings))

    class TestMine(RequestPlaneContract):
        @pytest.fixture
        def harness(self):
            return Harness()

An adapter whose links can be broken from outside lists the ways in ``faults`` and overrides the harness's
``link``: the tests of R8 then run once more for each. Test names begin with the invariant that they check;
``dynamo.core.ports.request_plane`` lists them. The tests need pytest, and anyio's plugin on asyncio.
"""

from __future__ import annotations

from dynamo.testing.request_plane.ends import Ends
from dynamo.testing.request_plane.flow import Flow
from dynamo.testing.request_plane.items import Items
from dynamo.testing.request_plane.meeting import Meeting
from dynamo.testing.request_plane.rig import Link, RequestPlaneHarness

__all__ = ["Link", "RequestPlaneContract", "RequestPlaneHarness"]


class RequestPlaneContract(Items, Flow, Ends, Meeting):
    """R1 to R17; override ``harness``, and ``faults`` where links can be broken."""
