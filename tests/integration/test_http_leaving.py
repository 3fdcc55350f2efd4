"""Two hundred HTTP clients that leave in mid-answer, through three services in processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the extra http is not installed")
pytest.importorskip("msgspec", reason="the extra services is not installed")
pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

from integration.test_cli import environment

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "leaving.py"


def test_all_handlers_along_the_chain_are_cancelled(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--clients", "200", "--rounds", "1"],
        env=environment(f"file://{tmp_path}"), text=True, capture_output=True, timeout=50, check=False,
    )  # fmt: skip
    counts = re.findall(r"^(close|reset) +(\w+) +(\d+) +(\d+) ", done.stdout, re.MULTILINE)
    assert counts == [
        (way, service, "200", "200")
        for way in ("close", "reset")
        for service in ("Frontend", "Middle", "Backend")
    ], done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
