"""Runs blocks as a reader would: in a folder of their own, by the installed command, no variable set."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from docs.pages import Block, commands

BOUND_S = 30.0
FOREIGN = ("DYN_", "ETCD_", "NATS_", "POD_", "PYTHONPATH", "COLUMNS")
PORT = re.compile(r"\b8000\b")  # the pages' port, of which a busy machine has only one
SHELL = ("bash", "-eu", "-o", "pipefail", "-c")


class Reader:
    """Types what the pages show. Leaving the block ends what runs in the background, and complains if it
    had failed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        self._env = {
            **kept,
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DYN_FILE_KV": str(folder / ".kv"),
            "DYN_DRAIN_GRACE_S": "0",
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self._running: list[tuple[Block, subprocess.Popen[bytes], Path]] = []
        self._printed = ""

    def take(self, block: Block) -> None:
        """Do what the block asks for."""
        code = PORT.sub(self._port, block.code)
        match block.mark, block.language:
            case "file", _:
                path = self.folder / block.words
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(code, "utf-8")
            case "prints", _:
                expect(block.place, code, self._printed)
            case "background", _:
                self._start(block, code.removeprefix("$ "))
            case "", "python":
                self._printed = self.run(block.place, sys.executable, "-W", "error", "-c", code)
            case "", "sh":
                self._printed = self.run(block.place, *SHELL, code)
            case "", "console":
                for command, shown in commands(code):
                    printed = self.run(f"{block.place}: {command}", *SHELL, f"{{ {command}\n}} 2>&1")
                    expect(f"{block.place}: {command}", shown, printed)

    def run(self, place: str, *arguments: str) -> str:
        """What it prints; a failure of it is ours."""
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=BOUND_S, check=False,
            cwd=self.folder, env=self._env, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"{place} ended with {done.returncode}:\n{done.stdout}{done.stderr}{self._background_output()}"
        )
        return done.stdout

    def _start(self, block: Block, code: str) -> None:
        output = self.folder / f".output-{len(self._running)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {code}"], cwd=self.folder, env=self._env, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._running.append((block, process, output))

    def _background_output(self) -> str:
        return "".join(f"\n--- {block.place}:\n{output.read_text()}" for block, _, output in self._running)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failures: list[str] = []
        for block, process, output in reversed(self._running):
            early = process.poll()
            if early is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(BOUND_S)
            except subprocess.TimeoutExpired:
                failures.append(f"{block.place}: did not end at Ctrl-C")
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if early is not None or process.returncode not in (0, 130, -signal.SIGINT):
                failures.append(f"{block.place}: ended with {process.returncode}:\n{output.read_text()}")
        assert error is not None or not failures, "\n".join(failures)


def expect(place: str, shown: str, printed: str) -> None:
    """The page shows what is printed; ``...`` on it stands for anything."""
    pattern = re.escape(shown.strip()).replace(r"\.\.\.", ".*?")
    assert re.fullmatch(pattern, printed.strip(), re.DOTALL), (
        f"{place} shows\n{shown}\nbut what is printed is\n{printed}"
    )
