"""Every Python snippet of the README and of the documentation runs, alone, in a fresh process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BOUND_S = 30


def snippets() -> list[object]:
    return [
        pytest.param(found[1], id=f"{page.relative_to(ROOT)}:{text[: found.start()].count(chr(10)) + 1}")
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for found in SNIPPET.finditer(text)
    ]


def run(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, timeout=BOUND_S, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("code", snippets())
def test_it_runs(code: str, tmp_path: Path) -> None:
    run(code, tmp_path)


def test_the_first_example_prints_what_it_promises(tmp_path: Path) -> None:
    first = SNIPPET.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert first is not None
    assert run(first[1], tmp_path) == "TOKENS TRAVEL ONE BY ONE "


def test_the_test_command_is_the_one_that_ci_runs() -> None:
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert f"```sh\n{command}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
