"""Power over a request plane on sockets, for the contract on tcp and http2: loops, TLS, the network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import trustme

from dynamo.adapters.request_plane.tcp.plane import TcpRequestPlane
from dynamo.adapters.request_plane.tcp.server import TcpServer
from dynamo.core.config import Settings
from dynamo.core.ports.request_plane import Server
from dynamo.testing.proxy import FaultProxy
from dynamo.testing.request_plane import Link, RequestPlaneHarness

Loop = tuple[str, dict[str, Any]]
LOOPS = ["asyncio", *(["uvloop"] if find_spec("uvloop") else [])]


@pytest.fixture(scope="module", params=LOOPS)
def each_loop(request: pytest.FixtureRequest) -> Loop:
    """To be a module's ``anyio_backend``."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class OneLoop:
    """A suite in such a module for which one loop is enough."""

    @pytest.fixture(scope="module")
    @classmethod
    def anyio_backend(cls) -> Loop:
        return "asyncio", {"use_uvloop": False}


@pytest.fixture(scope="session")
def issued_certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
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


class SocketHarness(RequestPlaneHarness):
    """Dials the address of one scheme, with these settings on both sides."""

    def __init__(
        self,
        open_plane: Callable[[str, Settings], AbstractAsyncContextManager[TcpRequestPlane]],
        scheme: str,
        **settings: Any,
    ) -> None:
        self._open_plane, self._scheme, self._settings = open_plane, scheme, settings

    def open_plane(self, **settings: Any) -> AbstractAsyncContextManager[TcpRequestPlane]:
        url = f"{self._scheme}://"
        return self._open_plane(url, Settings(tcp_host="127.0.0.1", **self._settings, **settings))

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
