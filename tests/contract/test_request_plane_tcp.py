"""The tcp request plane keeps the contract: plain, with a token, over TLS and mutual TLS, over a Unix socket.

Each on asyncio's own loop and, where it is installed, on uvloop.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import trustme

from dynamo.adapters.request_plane.tcp import TcpRequestPlane, open_tcp
from dynamo.adapters.request_plane.tcp.server import TcpServer
from dynamo.core.config import Settings
from dynamo.core.errors import Retry, UnavailableError, UnsupportedError
from dynamo.core.ports.request_plane import Request, Server
from dynamo.testing.proxy import FaultProxy
from dynamo.testing.request_plane import Link, RequestPlaneContract, RequestPlaneHarness

LOOPS = ["asyncio", *(["uvloop"] if find_spec("uvloop") else [])]


@pytest.fixture(scope="module", params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of an authority, a worker's and a caller's certificate, by the setting that takes them."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()

    def written(name: str, *blobs: trustme.Blob) -> str:
        path = Path(folder, name)
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return str(path)

    worker, caller = authority.issue_cert("127.0.0.1", "localhost"), authority.issue_cert("caller.test")
    authority_path = written("authority.pem", authority.cert_pem)
    return {
        "tls_ca_cert_path": authority_path,
        "tls_cert_path": written("worker.pem", *worker.cert_chain_pems),
        "tls_key_path": written("worker.key", worker.private_key_pem),
        "tls_client_ca_cert_path": authority_path,
        "tls_client_cert_path": written("caller.pem", *caller.cert_chain_pems),
        "tls_client_key_path": written("caller.key", caller.private_key_pem),
    }


class ServerLink(Link):
    """The server's own connections, which a killed process would leave like this."""

    def __init__(self, server: Server, address: str) -> None:
        self._server, self.address = server, address

    def fault(self, kind: str) -> None:
        assert kind == "abort"
        cast(TcpServer, self._server).abort()


class ProxyLink(ServerLink):
    """Through a proxy that stands for the network."""

    def __init__(self, server: Server, address: str, proxy: FaultProxy) -> None:
        super().__init__(server, address)
        self._proxy = proxy

    def fault(self, kind: str) -> None:
        match kind:
            case "cut":
                self._proxy.cut()
            case "reset":
                self._proxy.reset()
            case "silence":
                self._proxy.black_hole()
            case _:
                super().fault(kind)


class TcpHarness(RequestPlaneHarness):
    """Dials the address of one scheme, with these settings on both sides."""

    def __init__(self, scheme: str, **settings: Any) -> None:
        self._scheme, self._settings = scheme, settings

    def open_plane(self, **settings: Any) -> AbstractAsyncContextManager[TcpRequestPlane]:
        return open_tcp("tcp://", Settings(tcp_host="127.0.0.1", **self._settings, **settings))

    def address(self, server: Server) -> str:
        (address,) = (one for one in server.addresses if urlsplit(one).scheme == self._scheme)
        return address

    @asynccontextmanager
    async def link(self, server: Server) -> AsyncIterator[Link]:
        address = self.address(server)
        if self._scheme == "unix":
            yield ServerLink(server, address)
            return
        parts = urlsplit(address)
        async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
            yield ProxyLink(server, f"{parts.scheme}://{proxy.address}", proxy)


class TestTcp(RequestPlaneContract):
    faults = ("cut", "reset", "silence", "abort")

    @pytest.fixture
    def harness(self) -> TcpHarness:
        return TcpHarness("tcp")


class TestTcpWithToken(RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture
    def harness(self) -> TcpHarness:
        return TcpHarness("tcp", auth_token="a shared secret")


class TestTls(RequestPlaneContract):
    faults = ("cut", "reset", "silence", "abort")

    @pytest.fixture
    def harness(self, certificates: dict[str, str]) -> TcpHarness:
        one_way = {name: path for name, path in certificates.items() if "client" not in name}
        return TcpHarness("tcps", **one_way)


class TestMutualTls(RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture
    def harness(self, certificates: dict[str, str]) -> TcpHarness:
        return TcpHarness("tcps", **certificates)


class TestUnixSocket(RequestPlaneContract):
    faults = ("abort",)

    @pytest.fixture
    def harness(self) -> TcpHarness:
        return TcpHarness("unix")

    async def test_a_socket_left_by_a_killed_process_is_told_as_unavailable(
        self, harness: TcpHarness
    ) -> None:
        async with (
            harness.open_plane() as worker,
            harness.open_plane() as caller,
            worker.serve(lambda call: None, instance_id=1, incarnation=secrets.randbits(64)) as server,
        ):
            address = harness.address(server)
            path = urlsplit(address).path
            Path(path).unlink()
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(path)
            call = caller.call(address, Request(endpoint="a.b.c", request_id="r"))
            await call.wait()
            assert isinstance(call.error, UnavailableError)
            assert call.error.retry is Retry.SAFE

    async def test_another_boot_s_socket_is_passed_over(self, harness: TcpHarness) -> None:
        async with harness.open_plane() as caller:
            with pytest.raises(UnsupportedError, match="other-boot"):
                caller.call("unix://other-boot/tmp/x.sock", Request(endpoint="a.b.c", request_id="r"))


@pytest.mark.anyio
async def test_a_burst_of_calls_leaves_before_its_tick_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        harness = TcpHarness("tcp")
        async with harness.open_plane() as plane, asyncio.timeout(5):
            address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

            def call() -> None:
                plane.call(address, Request(endpoint="a.b.c", request_id="r", payload=b"\xc0"))

            call()
            loop = asyncio.get_running_loop()
            peer, _ = await loop.sock_accept(listener)
            with peer:
                while b"a.b.c" not in await loop.sock_recv(peer, 65536):
                    pass
                for _ in range(64):
                    call()
                assert peer.recv(65536).count(b"a.b.c") >= 8  # nobody has awaited anything since
