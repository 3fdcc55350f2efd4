"""The services of hello_world under `dynamo serve`: the demo, and what the README shows of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from integration.examples import EXAMPLES, on_stage

README = EXAMPLES.parent / "README.md"
DIFFERS = [  # from run to run
    (r"(Frontend|Middle|Backend) \d+", r"\1 PID"),
    (r"kill -9 \d+", "kill -9 PID"),
    (r"Backend/\d", "Backend/N"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
    (r"ready +\d+ +\d+s +\d+ req +", "ready  ID  AGE  COUNT  "),
    (r"after \d+\.\d\d s", "after SECONDS"),
]


def normal(text: str) -> str:
    for pattern, name in DIFFERS:
        text = re.sub(pattern, name, text)
    return text


@pytest.mark.slow
def test_the_readme_shows_what_the_demo_prints(tmp_path: Path) -> None:
    """Whether answers are whole and nothing is left, the demo itself checks."""
    with on_stage("hello_world", tmp_path) as stage:
        printed = stage.run("demo.py")
    shown = re.search(r"^```text\n(\$ dynamo serve .*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert normal(printed) == normal(shown[1])


def test_the_services_can_be_used_without_a_runtime() -> None:
    code = """
import asyncio
from hello_world import Backend, Frontend, Middle

async def main():
    frontend, middle = Frontend(), Middle()
    frontend.middle, middle.backend = middle, Backend(pause_s=0)
    print(*[word.text async for word in frontend.greet("Ada")])

asyncio.run(main())
"""
    folder = EXAMPLES / "hello_world"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("Hello Ada, nice to meet you!\n", "")
