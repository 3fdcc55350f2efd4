"""One server of a Kubernetes control plane, as a process that can be killed and frozen."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

import control_plane_program
from control_plane_program import START

START_S = 40.0
STOP_S = 10.0
HOST = "127.0.0.1"


def program() -> Path:
    """The program with all parts; where it cannot be built the test is skipped, or fails where CI is set."""
    try:
        return control_plane_program.program()
    except control_plane_program.MissingGoError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


class Part:
    """A server of the control plane. Its port stays reserved for it, so that it can come back there."""

    def __init__(self, name: str, folder: Path, stack: ExitStack) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        held = stack.enter_context(socket.socket())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((HOST, 0))
        self.port: int = held.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    @property
    def runs(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self, *options: str) -> None:
        """Start it, and return at once."""
        assert self._process is None, f"{self.name} runs"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-ISc", START, program(), self.name, *options], stdout=log, stderr=log
            )

    def wait(self, client: httpx.Client, path: str) -> None:
        """Until it says that it is ready."""
        deadline = time.monotonic() + START_S
        while not self._answers(client, path):
            assert self._process is not None
            assert self._process.poll() is None, f"{self.name} ended:\n{self.log.read_text()[-5000:]}"
            assert time.monotonic() < deadline, f"{self.url} is not ready:\n{self.log.read_text()[-5000:]}"
            time.sleep(0.02)

    def _answers(self, client: httpx.Client, path: str) -> bool:
        try:
            return client.get(f"{self.url}{path}").is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """SIGTERM, as a rolling update of the control plane sends."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_S)
            self._process = None

    def kill(self) -> None:
        """kill -9; a second time is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Freeze it: its sockets stay open and say nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # a thread of it may answer until it stops

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
