"""The contract kit notices when the adapter that the page shows is broken: its passing proves something."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "writing-an-adapter.md"
ADAPTER = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BOUND_S = 30


def test_a_lease_that_leaves_its_records_behind_is_caught(tmp_path: Path) -> None:
    board = ADAPTER.findall(PAGE.read_text(encoding="utf-8"))[0]
    broken = board.replace("            lease.end()", "            pass")
    assert broken != board
    (tmp_path / "test_board.py").write_text(broken, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "D9_leaving", "test_board.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    assert "FAILED test_board.py::TestBoard::test_D9_leaving_the_lease_removes" in done.stdout
