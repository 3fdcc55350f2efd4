"""What every test gets: the event loop that the session asks for, and a check that nothing blocks it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from blockbuster import BlockBuster
from hypothesis import settings

from skips import pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]  # beside those below

settings.register_profile("any machine", deadline=None)  # a bound per example fails on a busy one
settings.load_profile("any machine")

LOOP = os.environ.get("DYNAMO_TEST_LOOP", "asyncio")
BLOCKING_CALLS = ("time.", "socket.", "ssl.", "builtins.input")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the Kubernetes control plane where a test needs it: it takes longer than a test may."""
    if not session.config.option.collectonly and any(
        item.get_closest_marker("kubernetes") for item in session.items
    ):
        import control_plane_program  # not for Windows, where other tests run

        with suppress(control_plane_program.MissingGoError, control_plane_program.BuildError):
            control_plane_program.program()  # what is wrong is told by the tests that need it


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """asyncio, on uvloop where DYNAMO_TEST_LOOP=uvloop says so."""
    if LOOP not in ("asyncio", "uvloop"):
        pytest.exit(f"DYNAMO_TEST_LOOP={LOOP}: expected asyncio or uvloop")
    return "asyncio", {"use_uvloop": LOOP == "uvloop"}


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """A sleep or a blocking socket call under a frame of ours, on a loop, is an error; file I/O is not."""
    if request.node.get_closest_marker("blocks_loop"):
        yield
        return
    check = BlockBuster(scanned_modules=["dynamo"])
    check.functions = {
        name: function for name, function in check.functions.items() if name.startswith(BLOCKING_CALLS)
    }
    check.functions["time.sleep"].can_block_in("dynamo/engines/echo.py", "generate")
    check.activate()
    try:
        yield
    finally:
        check.deactivate()
