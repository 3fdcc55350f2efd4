"""Which files are a program's code."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")
pytest.importorskip("msgspec", reason="the extra services is not installed")

from dynamo.cli.planning import Root
from dynamo.cli.watching import is_code, told


@pytest.mark.parametrize(
    "path,expected",
    [
        ("hello.py", True),
        ("sub/deep/er.py", True),
        ("config.yaml", True),
        ("other.yaml", False),
        ("hello.pyc", False),
        ("hello.py~", False),
        (".#hello.py", False),
        ("__pycache__/hello.py", False),
        (".git/hooks/x.py", False),
        (".venv/lib/x.py", False),
        ("env/lib/python3.11/x.py", False),
        ("node_modules/x.py", False),
        ("../beside.py", False),
    ],
)
def test_code_is_python_and_the_configuration(tmp_path: Path, path: str, expected: bool) -> None:
    folder = tmp_path / ".hidden" / "site-packages"  # where the program is changes nothing
    (folder / "env").mkdir(parents=True)
    (folder / "env" / "pyvenv.cfg").touch()
    root = Root(folder=folder, config=folder / "config.yaml")
    assert is_code(str((folder / path).resolve()), root) is expected


def test_many_changes_are_told_in_a_few_words() -> None:
    root = Root(folder=Path("/app"))
    assert told({"/app/x.py"}, root) == "x.py"
    assert told({"/app/x.py", "/app/a/b.py", "/c.yaml"}, root) == "a/b.py and 2 more"
