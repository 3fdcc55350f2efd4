"""Every mistake of somebody's first hour, and the one line that each is answered with: see newcomer.txt.

``python tests/integration/test_newcomer.py`` writes that file anew.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import frozen

TRANSCRIPT = Path(__file__).with_name("newcomer.txt")
BOUND_S = 50
AT_A_TIME = 4
WITHOUT = re.compile(r"  # without ([\w]+)$")
RUNNING = "# While `dynamo serve hello:Frontend --discovery file` runs in another terminal"

# As a package that was never installed: not found by whoever looks, rather than an error of our making.
BLOCKER = """
import os
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None:
    None if name.partition(".")[0] == os.environ.get("WITHOUT") else find(name, path, target)
)
"""
FILES = {
    "hello.py": """
from collections.abc import AsyncIterator
from dynamo.runtime import api, depends, endpoint, service

@service(namespace="demo")
class Backend:
    @endpoint
    async def generate(self, prompt: str) -> AsyncIterator[str]:
        for word in prompt.split():
            yield word

@service(namespace="demo")
class Frontend:
    backend = depends(Backend)

    def __init__(self, greeting: str = "hello") -> None:
        self.greeting = greeting

    @api
    async def chat(self, prompt: str) -> AsyncIterator[str]:
        yield self.greeting
        async for word in self.backend.generate(prompt):
            yield word
""",
    "both.py": """
import hello
from dynamo.runtime import depends, endpoint, service

@service(namespace="demo")
class Backend:
    @endpoint
    async def answer(self) -> int:
        return 42

@service(namespace="demo")
class Both:
    one, other = depends(hello.Backend), depends(Backend)
""",
    "torn.py": "from dynamo.runtime import service\n\n@service(\nclass Torn: ...\n",
    "typo.yaml": "Frontend:\n  greting: hi\n",
    "torn.yaml": 'Frontend:\n  greeting: "hi\n',
}


@frozen
class Mistake:
    """A command line of the transcript, and the line below it."""

    command: str
    told: str


def read(text: str) -> tuple[list[Mistake], list[Mistake]]:
    """Those before, and those while something is served."""
    before, _, after = text.partition(RUNNING)
    found = re.compile(r"^\$ (.*)\n((?:(?![$#]).+\n)*)", re.MULTILINE)
    first, second = ([Mistake(*match) for match in found.findall(part)] for part in (before, after))
    return first, second


class Newcomer:
    """A folder, a shell without variables of ours, and a few ports that others have."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder / "hello"
        self._folder.mkdir()
        for name, text in FILES.items():
            (self._folder / name).write_text(text)
        shell, blocker = folder / "bin", folder / "blocker"
        for one in (shell, blocker):
            one.mkdir()
        (shell / "dynamo").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m dynamo.cli "$@"\n')
        (shell / "dynamo").chmod(0o755)
        (blocker / "sitecustomize.py").write_text(BLOCKER)
        taken, etcd = (stack.enter_context(socket.socket()) for _ in range(2))
        for port in (taken, etcd):
            port.bind(("127.0.0.1", 0))
        taken.listen()  # etcd's does not: whoever connects there is refused
        self._ports = {
            "8000": taken.getsockname()[1],
            "9090": taken.getsockname()[1],
            "2379": etcd.getsockname()[1],
        }
        plain = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DYN_", "ETCD_", "NATS_")) and name not in ("FORCE_COLOR", "PYTHONPATH")
        }
        self._env = {
            **plain,
            "PATH": f"{shell}{os.pathsep}{plain['PATH']}",
            "PYTHONPATH": str(blocker),
            "PWD": str(self._folder),
            "DYN_FILE_KV": str(folder / "kv"),
            "DYN_DRAIN_GRACE_S": "0",
            "ETCD_ENDPOINTS": f"http://localhost:{self._ports['2379']}",
        }

    def tell(self, command: str) -> tuple[int, str]:
        """The exit code and all that is printed, with the names and ports that the transcript has."""
        env, line = dict(self._env), command
        if without := WITHOUT.search(command):
            env["WITHOUT"], line = without[1], command[: without.start()]
        for name in ("8000", "9090"):
            line = re.sub(rf"\b{name}\b", str(self._ports[name]), line)
        done = subprocess.run(
            ["sh", "-c", line], env=env, cwd=self._folder, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BOUND_S, check=False,
        )  # fmt: skip
        text = done.stdout.replace(str(self._folder), "/home/you/hello")
        text = text.replace(self._env["DYN_FILE_KV"], "/tmp/dynamo_store_kv")
        text = re.sub(r"\b\d{12,16}\b", "7177162611713", text)  # an instance's id is random
        for name, port in self._ports.items():
            if name in command or name == "2379":
                text = re.sub(rf"\b{port}\b", name, text)
        return done.returncode, text

    def tell_all(self, mistakes: list[Mistake]) -> list[tuple[int, str]]:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            return list(pool.map(lambda one: self.tell(one.command), mistakes))

    @contextmanager
    def serving(self) -> Iterator[None]:
        arguments = ["dynamo", "serve", "hello:Frontend", "--discovery", "file", "--http-port", "0"]
        serving = subprocess.Popen(
            arguments,
            env=self._env,
            cwd=self._folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            assert serving.stdout is not None
            assert any("up: Backend 1/1, Frontend 1/1" in line for line in serving.stdout)
            yield
        finally:
            serving.terminate()
            serving.communicate(timeout=BOUND_S)


def told_now(folder: Path) -> list[tuple[Mistake, int, str]]:
    """All mistakes of the transcript, made again."""
    first, second = read(TRANSCRIPT.read_text())
    with ExitStack() as stack:
        newcomer = Newcomer(folder, stack)
        answers = newcomer.tell_all(first)
        stack.enter_context(newcomer.serving())
        answers += newcomer.tell_all(second)
    return [(one, *answer) for one, answer in zip(first + second, answers, strict=True)]


@pytest.mark.slow
@pytest.mark.timeout(180)  # forty processes, four at a time
def test_each_mistake_is_answered_with_the_line_in_the_transcript(tmp_path: Path) -> None:
    for package in ("aiohttp", "click", "etcd3aio", "grpc", "kubernetes", "msgspec", "rich", "yaml"):
        pytest.importorskip(package, reason="an extra is not installed")
    told = told_now(tmp_path)
    assert len(told) > 20
    assert {one.command: text for one, _, text in told} == {one.command: one.told for one, _, _ in told}
    for one, code, text in told:
        assert code in (1, 2) or "nothing is served" in text, one
        assert text.count("\n") == 1, one
        assert "Traceback" not in text


def write() -> None:
    with TemporaryDirectory() as folder:
        text = TRANSCRIPT.read_text()
        for one, _, told in told_now(Path(folder)):
            text = text.replace(f"$ {one.command}\n{one.told}", f"$ {one.command}\n{told}", 1)
    TRANSCRIPT.write_text(text)


if __name__ == "__main__":
    write()
