"""Somebody else's adapter, in a distribution of its own, is found by entry point and meets the contract."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo.testing.discovery import DiscoveryContract

THEIRS = Path(__file__).parent / "third_party"
WHOLE = [name for name in vars(DiscoveryContract) if name.startswith("test_")]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A place on the path where Acme's distribution is installed."""
    site = tmp_path / "site"
    info = site / "acme_discovery-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-discovery\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dynamo.discovery]\nacme = acme_discovery:open_acme\n")
    shutil.copy(THEIRS / "acme_discovery.py", site)
    return {**os.environ, "PYTHONPATH": str(site)}


def test_it_is_short_and_knows_no_adapter_of_ours() -> None:
    source = (THEIRS / "acme_discovery.py").read_text()
    assert len(source.splitlines()) < 150
    imported = {
        name
        for node in ast.walk(ast.parse(source))
        for name in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in getattr(node, "names", [])]
        )
    }
    assert not [name for name in imported if name and name.startswith("dynamo.adapters")]
    assert any(name and name.startswith("dynamo.core") for name in imported)


def test_it_passes_the_whole_contract_in_a_process_of_its_own(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(THEIRS / "suite.py", tests / "test_acme.py")
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "-rs"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_acme.py"],
        cwd=tests,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"\n{len(WHOLE)} passed in" in result.stdout


def test_a_runtime_finds_it_by_its_url(tmp_path: Path, environment: dict[str, str]) -> None:
    script = """
import asyncio, sys
from dynamo.runtime import DistributedRuntime

async def echo(request):
    yield request

async def main():
    async with DistributedRuntime(discovery=sys.argv[1], request_plane="tcp") as runtime:
        endpoint = runtime.endpoint("demo.backend.echo")
        async with endpoint.serve(echo):
            client = await endpoint.client()
            await client.wait_for_instances()
            print(await client.call("found"))
    print([name for name in sys.modules if name.startswith("dynamo.adapters.discovery.")])

asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", script, f"acme://{tmp_path}/acme.db"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.stdout == "found\n[]\n", result.stderr
