"""The HTTP/2 request plane keeps the contract: prior knowledge, with a token, over TLS and mutual TLS."""

from __future__ import annotations

from typing import Any

import pytest

from contract.socket_harness import OneLoop, SocketHarness, each_loop, issued_certificates
from dynamo.adapters.request_plane.http2 import open_http2
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.testing.request_plane import RequestPlaneContract

anyio_backend = each_loop
certificates = issued_certificates


def harness_of(scheme: str, **settings: Any) -> SocketHarness:
    return SocketHarness(open_http2, scheme, **settings)


class TestH2c(RequestPlaneContract):
    faults = ("cut", "reset", "silence", "abort")

    @pytest.fixture
    def harness(self) -> SocketHarness:
        return harness_of("http")


class TestH2cWithToken(OneLoop, RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture
    def harness(self) -> SocketHarness:
        return harness_of("http", auth_token="a shared secret")


class TestTls(RequestPlaneContract):
    faults = ("cut", "reset", "silence", "abort")

    @pytest.fixture
    def harness(self, certificates: dict[str, str]) -> SocketHarness:
        one_way = {name: path for name, path in certificates.items() if "client" not in name}
        return harness_of("https", **one_way)


class TestMutualTls(OneLoop, RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture
    def harness(self, certificates: dict[str, str]) -> SocketHarness:
        return harness_of("https", **certificates)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "where", [{"tcp_host": "192.0.2.1", "tcp_bind": "127.0.0.1"}, {"tcp_bind": "0.0.0.0"}], ids=str
)
async def test_a_worker_does_not_let_its_token_come_in_the_clear(where: dict[str, Any]) -> None:
    settings = Settings(auth_token="secret", **{"tcp_host": "127.0.0.1", **where})
    async with open_http2("http://", settings) as plane:
        with pytest.raises(ConfigError, match=r"AUTH_TOKEN.* in the clear; .*TLS_CERT") as told:
            async with plane.serve(lambda call: None, instance_id=1, incarnation=1):
                pytest.fail("it serves")
        assert "secret" not in str(told.value)


@pytest.mark.anyio
async def test_a_token_may_come_in_the_clear_over_loopback() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        settings = Settings(auth_token="secret", tcp_host=host, tcp_bind=host)
        async with open_http2("http://", settings) as plane:
            async with plane.serve(lambda call: None, instance_id=1, incarnation=1) as server:
                assert server.addresses


@pytest.mark.anyio
async def test_what_is_no_host_is_told_before_a_token_could_come_there() -> None:
    settings = Settings(auth_token="secret", tcp_host="127.0.0.1", tcp_bind="[")
    async with open_http2("http://", settings) as plane:
        with pytest.raises(ConfigError, match=r"DYN_AUTH_TOKEN would come to \["):
            async with plane.serve(lambda call: None, instance_id=1, incarnation=1):
                pytest.fail("it serves")
