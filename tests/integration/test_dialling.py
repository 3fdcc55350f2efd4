"""What can be wrong before there is a connection: names, descriptors, strangers. Callers are told in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dynamo.adapters.request_plane.http2 import open_http2
from dynamo.adapters.request_plane.tcp import open_tcp, unix
from dynamo.adapters.request_plane.tcp.addresses import own_address
from dynamo.adapters.request_plane.tcp.arrivals import PAUSE_S
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, Retry, UnavailableError
from dynamo.core.health import Status
from dynamo.core.ports.request_plane import RequestPlane
from integration import certificates
from integration.planes import BOUND_S, ask, calling, working
from integration.test_hostile_listeners import GREETING, answering, says

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("scheme", ["tcp", "tcps", "http"])
@pytest.mark.parametrize("host", ["a" * 64 + ".test", "two..dots"])
async def test_what_is_no_host_name_is_told_at_once(scheme: str, host: str) -> None:
    escaped: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
    address, settings = f"{scheme}://{host}:8000", Settings.from_env({})
    opened = open_http2("http://", settings) if scheme == "http" else open_tcp("tcp://", settings)
    async with asyncio.timeout(2), opened as plane:
        with pytest.raises(UnavailableError, match=f"cannot connect to {address}") as caught:
            await ask(plane, address)
        assert caught.value.retry is Retry.SAFE
        assert (await plane.check(address)).status is Status.DOWN
    assert not escaped


async def test_what_is_no_host_name_is_told_to_who_would_serve_there() -> None:
    with pytest.raises(ConfigError, match=r"tcp_host does not resolve"):
        async with working(tcp_host="two..dots"):
            pass


@pytest.mark.blocks_loop  # it asks the routing table, which answers at once
@pytest.mark.parametrize("host", ["0.0.0.0", "*"])
async def test_who_listens_everywhere_is_dialled_at_an_address_of_this_host(host: str) -> None:
    for options in ({"tcp_host": host}, {"tcp_bind": host}):
        async with working(**options) as worker, calling() as caller:
            assert worker.host == (own_address() if "tcp_host" in options else "127.0.0.1")
            assert await ask(caller, worker.address) == "hello"


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process may open nothing more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


async def told_the_limit_and_answered_later(caller: RequestPlane, address: str) -> None:
    with (
        no_descriptors(),
        pytest.raises(UnavailableError, match=r"Too many open files.*ulimit -n") as told,
    ):
        await ask(caller, address)
    assert told.value.retry is Retry.SAFE
    assert await ask(caller, address) == "hello"


async def test_a_caller_without_descriptors_is_told_the_limit_and_calls_once_it_has_some() -> None:
    async with working() as worker, calling() as caller:
        await told_the_limit_and_answered_later(caller, worker.address)


@pytest.mark.parametrize("whose", ["ours", "the system's"])
async def test_certificates_that_cannot_be_read_without_descriptors_are_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    certificates.issue(tmp_path)
    has, trusts = (certificates.options(tmp_path, short) for short in ("cert=worker", "ca=ours"))
    if whose == "the system's":
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours.pem"))
        trusts = {}
    async with working("tcps", **has) as worker, calling(**trusts) as caller:
        await told_the_limit_and_answered_later(caller, worker.address)


async def test_a_worker_without_descriptors_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(BOUND_S), working() as worker:
        peer = socket.socket()
        peer.setblocking(False)
        with no_descriptors():
            await asyncio.get_running_loop().sock_connect(peer, (worker.host, worker.port))
            await asyncio.sleep(3 * PAUSE_S)  # some tries
        reader, writer = await asyncio.open_connection(sock=peer)
        writer.write(GREETING)
        assert await reader.readexactly(8) == GREETING[:8]
        writer.close()
    (told,) = caplog.messages
    for part in (f"{worker.host}:{worker.port}", "Too many open files", "ulimit -n"):
        assert part in told


async def test_a_plane_that_closes_leaves_no_connection_of_its_checks() -> None:
    process = psutil.Process()

    def ours(port: int) -> int:
        return sum(bool(c.raddr) and c.raddr.port == port for c in process.net_connections("tcp"))

    async with answering(says(GREETING)) as address:
        async with calling() as caller:
            checking = asyncio.ensure_future(caller.check(address))
            assert (await checking).ok
        await asyncio.sleep(0)  # a transport that was aborted closes its socket in the next turn
        await asyncio.sleep(0)
        assert ours(int(address.rpartition(":")[2])) == 0


async def test_a_process_of_another_user_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(connection: socket.socket) -> bool:
        return False

    monkeypatch.setattr(unix, "same_user", differs)
    path = os.path.relpath(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        async with asyncio.timeout(BOUND_S), calling() as caller:
            address = f"unix://{unix.boot_id()}{tmp_path}/s"
            with pytest.raises(UnavailableError, match="another user") as caught:
                await ask(caller, address)
            assert caught.value.retry is Retry.SAFE
            theirs, _ = await asyncio.get_running_loop().sock_accept(listener)
            with theirs:
                assert await asyncio.get_running_loop().sock_recv(theirs, 100) == b""
