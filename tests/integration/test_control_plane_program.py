"""The tests' control plane is built once, and who cannot build it learns what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import control_plane_program
from control_plane_part import program

SCRIPT = Path(control_plane_program.__file__)
SLOW_GO = """#!/bin/sh
echo "$$" >> "$XDG_CACHE_HOME/builds"
read -r _ < "$XDG_CACHE_HOME/go-on"
while [ "$1" != -o ]; do shift; done
echo built > "$2"
"""
BROKEN_GO = """#!/bin/sh
echo "main.go:1: this is no Go" >&2
exit 3
"""


def environment(folder: Path, go: str = "", **variables: str) -> dict[str, str]:
    """An empty cache, and a stand-in for Go that the script finds, or none."""
    if go:
        (folder / "go").write_text(go)
        (folder / "go").chmod(0o755)
    kept = {
        name: value for name, value in os.environ.items() if name not in ("CI", "DYNAMO_TEST_CONTROL_PLANE")
    }
    return kept | {"PATH": str(folder), "XDG_CACHE_HOME": str(folder)} | variables


def start(variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_processes_that_need_it_at_the_same_time_build_it_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go-on")
    variables = environment(tmp_path, SLOW_GO)
    first, second = start(variables), start(variables)
    with (tmp_path / "go-on").open("w") as go_on:  # waits for the one that builds
        assert first.poll() is None
        assert second.poll() is None
        go_on.write("\n")
    said = [process.communicate(timeout=20) for process in (first, second)]
    assert first.returncode == second.returncode == 0, said
    path = Path(said[0][0].strip())
    assert said[1][0].strip() == str(path)
    assert path.read_text() == "built\n"
    assert len((tmp_path / "builds").read_text().split()) == 1
    assert start(variables).communicate(timeout=20) == (f"{path}\n", "")


def test_what_go_says_is_told_and_nothing_is_left_for_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        broken = start(environment(tmp_path, BROKEN_GO))
        out, err = broken.communicate(timeout=20)
        assert broken.returncode == 1
        assert not out
        assert "ended with 3:\nmain.go:1: this is no Go" in err


@pytest.mark.parametrize("variables, code", [({}, 0), ({"CI": "true"}, 1)])
def test_without_go_it_says_what_to_install(tmp_path: Path, variables: dict[str, str], code: int) -> None:
    without = start(environment(tmp_path, **variables))
    _, err = without.communicate(timeout=20)
    assert without.returncode == code
    assert err == f"{control_plane_program.WITHOUT_GO}\n"


@pytest.mark.parametrize(
    "ci, outcome", [("", pytest.skip.Exception), ("true", pytest.fail.Exception)], ids=["at home", "in CI"]
)
def test_without_go_a_test_is_skipped_but_not_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    for name, value in environment(tmp_path, CI=ci).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DYNAMO_TEST_CONTROL_PLANE", raising=False)
    with pytest.raises(outcome, match=r"install it from https://go\.dev/dl"):
        program()


def test_a_program_that_is_named_must_exist(tmp_path: Path) -> None:
    named = str(tmp_path / "none")
    process = start(environment(tmp_path, DYNAMO_TEST_CONTROL_PLANE=named))
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err == f"DYNAMO_TEST_CONTROL_PLANE={named}: there is no such file\n"
