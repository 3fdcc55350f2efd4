"""Where CI is set a skipped test fails, unless a mark says that what it needs may be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
INNER = """
import pytest

def test_skips():
    pytest.skip("no such thing")

@pytest.mark.optional_tool
def test_lacks_a_program():
    pytest.skip("no such program")

@pytest.mark.skipif(True, reason="another platform")
def test_lacks_a_platform():
    pass

@pytest.mark.xfail
def test_fails_as_expected():
    assert False
"""


@pytest.mark.parametrize(
    "variables, outcome",
    [({}, "4 skipped, 1 xfailed in"), ({"CI": "true"}, "1 failed, 2 skipped, 1 xfailed, 1 error in")],
    ids=["at home", "in CI"],
)
def test_a_skip_is_a_failure_in_ci(tmp_path: Path, variables: dict[str, str], outcome: str) -> None:
    (tmp_path / "conftest.py").write_text("from skips import *")
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = optional_tool\n")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors", tmp_path],
        env={**environment, **variables, "PYTHONPATH": str(TESTS)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert outcome in done.stdout
    told = "nothing is skipped where CI is set: Skipped: no such thing"
    assert (told in done.stdout) == bool(variables)
