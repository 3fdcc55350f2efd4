"""The HTTP/2 request plane keeps the contract: prior knowledge, with a token, over TLS and mutual TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import trustme

from dynamo.adapters.request_plane.http2 import Http2RequestPlane, open_http2
from dynamo.adapters.request_plane.tcp.server import TcpServer
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.ports.request_plane import Server
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


class Http2Harness(RequestPlaneHarness):
    """Dials the address of one scheme, with these settings on both sides."""

    def __init__(self, scheme: str, **settings: Any) -> None:
        self._scheme, self._settings = scheme, settings

    def open_plane(self, **settings: Any) -> AbstractAsyncContextManager[Http2RequestPlane]:
        return open_http2("http2://", Settings(tcp_host="127.0.0.1", **self._settings, **settings))

    def address(self, server: Server) -> str:
        (address,) = (one for one in server.addresses if urlsplit(one).scheme == self._scheme)
        return address

    @asynccontextmanager
    async def link(self, server: Server) -> AsyncIterator[Link]:
        address = self.address(server)
        parts = urlsplit(address)
        async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
            yield ProxyLink(server, f"{parts.scheme}://{proxy.address}", proxy)


class TestH2c(RequestPlaneContract):
    faults = ("cut", "reset", "silence", "abort")

    @pytest.fixture
    def harness(self) -> Http2Harness:
        return Http2Harness("http")


class TestH2cWithToken(RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture(scope="module")
    @classmethod
    def anyio_backend(cls) -> tuple[str, dict[str, Any]]:
        return "asyncio", {"use_uvloop": False}

    @pytest.fixture
    def harness(self) -> Http2Harness:
        return Http2Harness("http", auth_token="a shared secret")


class TestTls(RequestPlaneContract):
    faults = ("cut", "reset", "silence", "abort")

    @pytest.fixture
    def harness(self, certificates: dict[str, str]) -> Http2Harness:
        one_way = {name: path for name, path in certificates.items() if "client" not in name}
        return Http2Harness("https", **one_way)


class TestMutualTls(RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture(scope="module")
    @classmethod
    def anyio_backend(cls) -> tuple[str, dict[str, Any]]:
        return "asyncio", {"use_uvloop": False}

    @pytest.fixture
    def harness(self, certificates: dict[str, str]) -> Http2Harness:
        return Http2Harness("https", **certificates)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "where", [{"tcp_host": "192.0.2.1", "tcp_bind": "127.0.0.1"}, {"tcp_bind": "0.0.0.0"}], ids=str
)
async def test_a_worker_does_not_let_its_token_come_in_the_clear(where: dict[str, str]) -> None:
    settings = Settings(auth_token="secret", **{"tcp_host": "127.0.0.1", **where})
    async with open_http2("http://", settings) as plane:
        with pytest.raises(ConfigError, match=r"AUTH_TOKEN.* in the clear; .*TLS_CERT") as told:
            async with plane.serve(lambda call: None, instance_id=1, incarnation=1):
                pytest.fail("it serves")
        assert "secret" not in str(told.value)
