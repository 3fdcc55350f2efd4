"""The example of an adapter in a distribution of its own is found by entry point and meets the contract."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dynamo.testing.discovery import DiscoveryContract
from integration.examples import EXAMPLES

THEIRS = EXAMPLES / "custom_adapter"
WHOLE = [name for name in dir(DiscoveryContract) if name.startswith("test_")]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A place on the path where the distribution is installed, as its pyproject.toml says."""
    project = tomllib.loads((THEIRS / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    site = tmp_path / "site"
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{scheme} = {target}\n" for scheme, target in found.items())
        for group, found in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("".join(lines))
    shutil.copy(THEIRS / "sqlite_discovery.py", site)
    return {**os.environ, "PYTHONPATH": str(site)}


def test_it_knows_no_adapter_of_ours() -> None:
    imported = {
        name
        for node in ast.walk(ast.parse((THEIRS / "sqlite_discovery.py").read_text()))
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
    shutil.copy(THEIRS / "test_sqlite_discovery.py", tests)
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", "-rs"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_sqlite_discovery.py"],
        cwd=tests, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"\n{len(WHOLE)} passed in" in result.stdout


PROGRAM = """
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


@pytest.mark.parametrize("place,output,error", [
    ("{tmp_path}/deployment.db", "found\n[]\n", ""),
    ("", "", "sqlite://: expected the path of a file, such as sqlite:///var/run/deployment.db"),
])  # fmt: skip
def test_a_runtime_finds_it_by_its_url(
    tmp_path: Path, environment: dict[str, str], place: str, output: str, error: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"sqlite://{place.format(tmp_path=tmp_path)}"],
        env=environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (result.stdout, error in result.stderr) == (output, True), result.stderr
