"""The examples as their reader runs them: each program in a process of its own, in its own folder."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dynamo.runtime import DistributedRuntime

EXAMPLES = Path(__file__).parents[2] / "examples"
BOUND_S = 50.0


class Program:
    """Ended by its stage."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self.process, self._errors = process, errors

    @property
    def stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def errors(self) -> str:
        """What it wrote to stderr so far."""
        return self._errors.read_text()

    def line(self, pattern: str) -> re.Match[str]:
        """The next line of its output in which the pattern is found."""
        return self._until("\n", pattern)

    def word(self, pattern: str = "") -> re.Match[str]:
        """The next word of its output in which the pattern is found."""
        return self._until(" \n", pattern)

    def _until(self, ends: str, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        read = seen = ""
        while character := self.process.stdout.read(1):
            if character not in ends:
                read += character
            elif found := re.search(pattern, read):
                return found
            else:
                seen, read = f"{seen}{read}{character}", ""
        raise AssertionError(f"no {pattern!r} before its end: {seen}{read}{self.errors()}")


class Stage:
    """A folder of examples, and an environment in which nothing is set but what the test says."""

    def __init__(self, folder: str, tmp_path: Path, **env: str) -> None:
        self._folder, self._tmp_path = EXAMPLES / folder, tmp_path
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
        self.env = {
            **inherited,
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(tmp_path / "store"),
            "DYN_DRAIN_GRACE_S": "0.05",
            "PYTHONUNBUFFERED": "1",
            **env,
        }
        self.programs: list[Program] = []

    def start(self, *arguments: str, merged: bool = False) -> Program:
        """Start a Python program; with ``merged`` its stderr is part of its output, as its framework logs
        there, whose own warnings are no errors either.
        """
        errors = self._tmp_path / f"stderr-{len(self.programs)}"
        with errors.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *([] if merged else ["-W", "error"]), *arguments],
                cwd=self._folder, env=self.env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merged else file,
            )  # fmt: skip
        self.programs.append(Program(process, errors))
        return self.programs[-1]

    def run(self, *arguments: str) -> str:
        """Run it to its end; what it printed."""
        program = self.start(*arguments)
        output, _ = program.process.communicate()
        assert (program.process.returncode, program.errors()) == (0, ""), (output, program.errors())
        return output

    def end(self, program: Program) -> None:
        """SIGTERM; it has to end with 0 and without a complaint."""
        program.process.terminate()
        program.process.communicate()
        assert (program.process.returncode, program.errors()) == (0, "")

    def wait_for(self, endpoint: str) -> None:
        """Wait until somebody serves it, as discovery by files says."""

        async def look() -> None:
            discovery = f"file://{self.env['DYN_FILE_KV']}"
            async with DistributedRuntime(discovery=discovery, request_plane="tcp") as runtime:
                client = await runtime.endpoint(endpoint).client()
                await client.wait_for_instances(timeout_s=BOUND_S)

        asyncio.run(look())

    def kill(self) -> None:
        for program in self.programs:
            program.process.kill()


@contextmanager
def on_stage(folder: str, tmp_path: Path, **env: str) -> Iterator[Stage]:
    """Whatever the block leaves running is killed, and so is what runs longer than the bound."""
    stage = Stage(folder, tmp_path, **env)
    bound = threading.Timer(BOUND_S, stage.kill)
    bound.start()
    try:
        yield stage
    finally:
        bound.cancel()
        stage.kill()
        for program in stage.programs:
            with program.process:  # closes its pipes and waits
                pass
