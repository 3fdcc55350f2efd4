"""The pytest plugin gives a test a runtime, says what it needs, and makes assertions of suites readable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dynamo.runtime import DistributedRuntime

BOUND_S = 60


async def count(request: int) -> AsyncIterator[int]:
    for number in range(request):
        yield number


@pytest.mark.anyio
@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_a_runtime_of_its_own(dynamo_runtime: DistributedRuntime, turn: int) -> None:
    endpoint = dynamo_runtime.endpoint("test.worker.count")
    client = await endpoint.client()
    assert client.instance_ids() == []  # nothing of the other turn
    async with endpoint.serve(count), client.stream(3) as numbers:
        assert [number async for number in numbers] == [0, 1, 2]


def inner(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_inner.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-qp", "no:cacheprovider", f"--rootdir={folder}", *options, folder],
        capture_output=True, text=True, timeout=BOUND_S, check=False, cwd=folder,
    )  # fmt: skip


INSIDE = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_it(dynamo_runtime):
    assert dynamo_runtime.health().status.name == "UP"
"""


def test_a_users_test_gets_it_without_any_configuration(tmp_path: Path) -> None:
    done = inner(tmp_path, INSIDE, "-W", "error")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_another_backend_is_told_what_to_do(tmp_path: Path) -> None:
    pretend = 'import pytest\n\n@pytest.fixture\ndef anyio_backend_name():\n    return "trio"\n'
    done = inner(tmp_path, INSIDE + pretend)
    assert done.returncode == 1
    assert "dynamo_runtime runs on asyncio, not on trio: override the fixture anyio_backend" in done.stdout


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    done = inner(tmp_path, "def test_it(dynamo_runtime):\n    pass\n", "-p", "no:dynamo")
    assert done.returncode == 1
    assert "fixture 'dynamo_runtime' not found" in done.stdout


def test_loading_it_imports_nothing_else_of_ours(tmp_path: Path) -> None:
    code = """
import sys

def test_it():
    ours = sorted(name for name in sys.modules if name.startswith("dynamo."))
    assert ours == ["dynamo.testing", "dynamo.testing.plugin"]
"""
    done = inner(tmp_path, code)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("suite", ["discovery", "request_plane"])
def test_assertions_of_the_suites_are_rewritten(tmp_path: Path, suite: str) -> None:
    code = f"""
import dynamo.testing.{suite} as suite

def test_it():
    assert type(suite.__spec__.loader).__name__ == "AssertionRewritingHook"
"""
    done = inner(tmp_path, code)
    assert done.returncode == 0, done.stdout
