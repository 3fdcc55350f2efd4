"""What the README promises; tests/docs runs all of its snippets."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BOUND_S = 30


def test_the_first_example_prints_what_it_promises(tmp_path: Path) -> None:
    first = SNIPPET.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert first is not None
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", first[1]],
        capture_output=True, text=True, timeout=BOUND_S, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "TOKENS TRAVEL ONE BY ONE "


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert f"```sh\n{command}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
