"""Workers and a caller on one pair of adapters, in processes of their own where both adapters allow it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import uuid
from abc import abstractmethod
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
from attrs import frozen

import etcd_server
import nats_server
from dynamo.adapters.discovery.kubernetes import CAPABILITY as KUBERNETES
from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.ports import discovery, request_plane
from dynamo.runtime import Client, DistributedRuntime
from matrix import worker
from matrix.cluster import Cluster, cluster
from matrix.worker import COMPONENT, ENDPOINTS

BOUND_S = 20.0  # for whatever must come at all
QUICK = {"drain_grace_s": 0.05, "graceful_shutdown_timeout_s": 5.0}
COMPLAINTS = ("never retrieved", "never awaited", "was destroyed but it is pending", "ResourceWarning")


@frozen
class Pair:
    """A discovery and a request plane that work together."""

    discovery: str
    request_plane: str
    dynamic: bool  # membership changes at run time
    separate: bool  # both reach other processes
    ports: bool  # the plane's addresses are hosts and ports

    @property
    def clustered(self) -> bool:
        """Whether it needs a control plane of Kubernetes."""
        return self.discovery == "kubernetes"

    def __str__(self) -> str:
        return f"{self.discovery}-{self.request_plane}"


def pairs(applies: Callable[[Pair], bool] = lambda pair: True) -> list[Any]:
    """What ``parametrize`` takes: every pair of installed adapters for which ``applies`` holds."""
    return [
        pytest.param(pair, id=str(pair), marks=[pytest.mark.kubernetes] if pair.clustered else [])
        for pair in _pairs()
        if applies(pair)
    ]


@cache
def _pairs() -> tuple[Pair, ...]:
    return asyncio.run(_look())


async def _look() -> tuple[Pair, ...]:
    """Ask each adapter's own capability; aliases of one adapter are one row."""
    backends: dict[str, discovery.Capability] = {"kubernetes": KUBERNETES}
    planes: dict[str, request_plane.Capability] = {}
    for scheme in registry.request_plane.schemes():
        async with registry.request_plane.open(scheme, Settings(**way(scheme))) as plane:
            planes.setdefault(plane.capability.schemes[0], plane.capability)
    with TemporaryDirectory() as folder:
        for scheme in registry.discovery.schemes():
            if scheme == "kubernetes":  # whose control plane takes seconds to start
                continue
            settings = Settings.from_env({}, **backend(scheme, Path(folder), ["tcp://127.0.0.1:9"]))
            async with registry.discovery.open(settings.discovery_backend, settings) as found:
                backends.setdefault(found.capability.scheme, found.capability)
    return tuple(
        Pair(
            name,
            scheme,
            dynamic=having.dynamic,
            separate=having.cross_process and reaching.cross_process,
            ports=reaching.cross_process and scheme != "nats",
        )
        for name, having in backends.items()
        for scheme, reaching in planes.items()
    )


def backend(scheme: str, folder: Path, addresses: Iterable[str]) -> dict[str, Any]:
    """The settings of a discovery backend that is this deployment's alone; one not named here needs none."""
    match scheme:
        case "mem":
            return {"discovery_backend": f"mem://{uuid.uuid4().hex}"}
        case "etcd" | "kv_store":
            server = etcd_server.shared()
            server.empty()
            return {"discovery_backend": "etcd", "etcd_endpoints": server.url, "etcd_lease_ttl": 2}
        case "file":
            return {"discovery_backend": "file", "file_kv": str(folder / "store")}
        case "static":
            declared = (f"{COMPONENT}.{endpoint}={','.join(addresses)}" for endpoint in ENDPOINTS)
            return {"discovery_backend": "static", "static_instances": ";".join(declared)}
    return {"discovery_backend": scheme}


def way(scheme: str) -> dict[str, Any]:
    """The settings of a request plane that needs a server."""
    return {"nats_server": nats_server.shared().url} if scheme == "nats" else {}


def environment(settings: dict[str, Any]) -> dict[str, str]:
    """Settings as the variables that a process of its own reads; none of ours is inherited."""
    variables = {
        attrs.fields_dict(Settings)[name].metadata["variables"][0]: str(value)
        for name, value in settings.items()
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("DYN_")} | variables


class Worker:
    """One of the workers, wherever it runs."""

    name: str

    @abstractmethod
    def drain(self) -> None:
        """Tell it to leave, as SIGTERM does; returns at once."""

    @abstractmethod
    async def ready(self) -> None:
        """Wait until it serves and is registered."""

    @abstractmethod
    async def gone(self) -> None:
        """Wait until it has left in good order."""

    @abstractmethod
    async def clear(self) -> None:
        """Leave nothing of it, however the test ended."""


class HostedWorker(Worker):
    """A runtime of its own in the test's process."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self._ready = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self._task = asyncio.create_task(self._run(settings))

    async def _run(self, settings: dict[str, Any]) -> None:
        try:
            async with DistributedRuntime(**settings) as runtime, worker.serving(runtime, self.name):
                self._ready.set_result(None)
                await self._leave.wait()
                await runtime.shutdown()
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def ready(self) -> None:
        await self._ready

    def drain(self) -> None:
        self._leave.set()

    async def gone(self) -> None:
        async with asyncio.timeout(BOUND_S):
            await self._task

    async def clear(self) -> None:
        self._task.cancel()
        await asyncio.wait((self._task,), timeout=BOUND_S)


class ProcessWorker(Worker):
    """A process of its own; what it writes to stderr is read when it ends, and must hold no complaint."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name, self._process, self._log = name, process, log
        self._expected = 0

    @classmethod
    async def start(cls, name: str, settings: dict[str, Any], folder: Path) -> ProcessWorker:
        log = folder / f"{name}-{uuid.uuid4().hex[:4]}.log"
        with log.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "always", worker.__file__, name,
                env=environment(settings), stdout=PIPE, stderr=stderr,
            )  # fmt: skip
        return cls(name, process, log)

    async def ready(self) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(BOUND_S):
            line = await self._process.stdout.readline()
        assert line == b"ready\n", f"{self.name} did not start:\n{self._log.read_text()}"

    def drain(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """kill -9."""
        self._expected = -signal.SIGKILL
        self._process.kill()

    def suspend(self) -> None:
        """Stop its clock, as a paused virtual machine does: its sockets stay open and say nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    async def gone(self) -> None:
        async with asyncio.timeout(BOUND_S):
            code = await self._process.wait()
        said = self._log.read_text()
        assert code == self._expected, f"{self.name} ended with {code}:\n{said}"
        assert not any(complaint in said for complaint in COMPLAINTS), said

    async def clear(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Deployment:
    """The workers, and the runtime that calls them; ``seen`` is what its settings have of their own."""

    def __init__(
        self,
        pair: Pair,
        folder: Path,
        settings: dict[str, Any],
        seen: dict[str, Any],
        cluster: Cluster | None,
    ) -> None:
        self.pair, self._folder, self._settings, self._cluster = pair, folder, settings, cluster
        self.runtime = DistributedRuntime(**{**settings, **seen})
        self.workers: list[Worker] = []
        self._clients: dict[str, Client] = {}

    async def start(self, *names: str) -> list[Any]:
        """Start workers side by side; they serve and are registered on return."""
        for name in names:
            seat = {} if self._cluster is None else await self._cluster.seat()
            settings = {**self._settings, **seat}
            if self.pair.separate:
                self.workers.append(await ProcessWorker.start(name, settings, self._folder))
            else:
                self.workers.append(HostedWorker(name, settings))
        started = self.workers[-len(names) :]
        for newcomer in started:
            await newcomer.ready()
        return started

    async def client(self, endpoint: str) -> Client:
        """The deployment's one client of an endpoint of the workers, by its last name."""
        if endpoint not in self._clients:
            client = await self.runtime.endpoint(f"{COMPONENT}.{endpoint}").client()
            await client.wait_for_instances(timeout_s=BOUND_S)
            self._clients[endpoint] = client
        return self._clients[endpoint]

    async def close(self) -> None:
        """End in good order; who does not is a failure."""
        await self.runtime.shutdown()
        for left in self.workers:
            left.drain()
        for left in self.workers:
            await left.gone()

    async def clear(self) -> None:
        """Leave nothing, however the test ended."""
        for left in self.workers:
            await left.clear()


@asynccontextmanager
async def deployed(
    pair: Pair,
    folder: Path,
    *names: str,
    seats: int = 3,
    addresses: Sequence[str] | None = None,
    seen_at: Sequence[str] | None = None,
    **settings: Any,
) -> AsyncIterator[Deployment]:
    """Start ``names`` on ``pair``, with ``settings`` on both sides; afterwards all leave in good order.

    Where workers must be declared there are ``seats`` for them, at ``addresses`` where given, and the caller
    finds them at ``seen_at``, which may lead there by another way.
    """
    async with AsyncExitStack() as stack:
        ports = stack.enter_context(reserved(seats))
        home = await stack.enter_async_context(cluster()) if pair.clustered else None
        hosts = [f"127.0.0.1:{port}" if pair.ports else f"seat-{port}" for port in ports]
        root = "nats:///" if pair.request_plane == "nats" else f"{pair.request_plane}://"
        free = [f"{root}{host}" for host in hosts]
        own = home.settings if home else backend(pair.discovery, folder, addresses or free)
        seen = backend(pair.discovery, folder, seen_at) if seen_at else own
        deployment = Deployment(
            pair,
            folder,
            {**own, **way(pair.request_plane), "request_plane": pair.request_plane, **QUICK, **settings},
            seen,
            home,
        )
        try:
            async with deployment.runtime:
                await deployment.start(*names)
                yield deployment
                await deployment.close()
        finally:
            await deployment.clear()


@contextmanager
def reserved(count: int) -> Iterator[list[int]]:
    """Free ports that the kernel gives to nobody else, and that whoever names one can still listen on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
        yield [held.getsockname()[1] for held in sockets]
