"""The processes of a measurement: where they meet, how they are started, asked and ended."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
LOOPS = ("asyncio", "uvloop")
START_S = 60.0  # for a program to answer at all
END_S = 10.0  # for a program to end when told to


def default_loop() -> str:
    return "uvloop" if find_spec("uvloop") else "asyncio"


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop

    return uvloop.new_event_loop


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def where(transport: str, folder: Path, endpoints: Sequence[str]) -> dict[str, str]:
    """The environment of both sides: a static instance has no Unix socket, one that is found has."""
    if transport == "mem":
        return {"DYN_DISCOVERY_BACKEND": "mem", "DYN_REQUEST_PLANE": "mem", "DYN_DRAIN_GRACE_S": "0"}
    plane = transport if transport in ("http2", "nats") else "tcp"
    common = {"DYN_REQUEST_PLANE": plane, "TMPDIR": str(folder), "DYN_DRAIN_GRACE_S": "0"}
    if transport == "unix":
        return {**common, "DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(folder / "store")}
    scheme = {"tls": "tcps", "http2": "http"}.get(transport, "tcp")
    address = f"{scheme}://127.0.0.1:{free_port()}" if plane != "nats" else "nats:///worker"
    declared = ";".join(f"{endpoint}={address}" for endpoint in endpoints)
    return {**common, "DYN_DISCOVERY_BACKEND": "static", "DYN_STATIC_INSTANCES": declared}


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """This process's environment, for what runs in it and for what it starts."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def setting(**more: Any) -> dict[str, Any]:
    """What a reader must know beside the figures."""
    packages = ("uvloop", "msgspec", "msgpack", "grpcio")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages if find_spec(name.replace("grpcio", "grpc"))},
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        **more,
    }


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
    print(f"written to {path}")


@contextmanager
def process(
    command: Sequence[str], env: Mapping[str, str] = {}, log: IO[bytes] | int | None = None, **pipes: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process that is told to end, and does, when the block is left."""
    started = subprocess.Popen(command, env={**os.environ, **env}, stderr=log, text=True, **pipes)
    try:
        yield started
    finally:
        if started.stdin is not None:
            started.stdin.close()  # a thread of it may be reading there, and be waited for
        started.terminate()
        try:
            started.wait(END_S)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


async def until_told() -> None:
    """Wait in a worker until ``process`` tells it to end."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()


class ProgramError(Exception):
    """A program of a measurement ended, or said nothing for too long."""


class Program:
    """A client that runs one load at a time: see ``workload.obey``."""

    def __init__(self, name: str, started: subprocess.Popen[str], log: Path | None) -> None:
        self._name, self._process, self._log = name, started, log

    def ready(self) -> None:
        """Wait until it has been answered by its server."""
        self._answer(START_S)

    def run(self, options: Mapping[str, Any], bound_s: float) -> dict[str, Any]:
        """``{"metrics": ...}`` or ``{"failed": why}``. Raises ProgramError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(options) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone("is gone") from None
        return self._answer(bound_s)

    def _answer(self, bound_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(bound_s, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise self._gone(f"ended, or gave no answer within {bound_s:g} s")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self, what: str) -> ProgramError:
        said = self._log.read_text(errors="replace").strip()[-2000:] if self._log is not None else ""
        return ProgramError(f"the client of {self._name} {what}" + (f"; it said:\n{said}" if said else ""))


def python(name: str) -> list[str]:
    """A program of this folder, run by this interpreter."""
    return [sys.executable, str(HERE / name)]
