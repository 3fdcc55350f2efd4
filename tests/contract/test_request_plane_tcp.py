"""The tcp request plane keeps the contract: plain, with a token, over TLS and mutual TLS, over a Unix socket.

Each on asyncio's own loop and, where it is installed, on uvloop.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from contract.socket_harness import SocketHarness, each_loop, issued_certificates
from dynamo.adapters.request_plane.tcp import open_tcp
from dynamo.core.errors import Retry, UnavailableError, UnsupportedError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.frames import HELLO, MAGIC, map_frame
from dynamo.core.wire.opening import Options, encode_hello
from dynamo.testing.request_plane import RequestPlaneContract

anyio_backend = each_loop
certificates = issued_certificates


def harness_of(scheme: str, **settings: Any) -> SocketHarness:
    return SocketHarness(open_tcp, scheme, **settings)


class TestTcp(RequestPlaneContract):
    faults = ("cut", "reset", "silence", "abort")

    @pytest.fixture
    def harness(self) -> SocketHarness:
        return harness_of("tcp")


class TestTcpWithToken(RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture
    def harness(self) -> SocketHarness:
        return harness_of("tcp", auth_token="a shared secret")


class TestTls(RequestPlaneContract):
    faults = ("cut", "reset", "silence", "abort")

    @pytest.fixture
    def harness(self, certificates: dict[str, str]) -> SocketHarness:
        one_way = {name: path for name, path in certificates.items() if "client" not in name}
        return harness_of("tcps", **one_way)


class TestMutualTls(RequestPlaneContract):
    faults = ("cut", "abort")

    @pytest.fixture
    def harness(self, certificates: dict[str, str]) -> SocketHarness:
        return harness_of("tcps", **certificates)


class TestUnixSocket(RequestPlaneContract):
    faults = ("abort",)

    @pytest.fixture
    def harness(self) -> SocketHarness:
        return harness_of("unix")

    async def test_a_socket_left_by_a_killed_process_is_told_as_unavailable(
        self, harness: SocketHarness
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

    async def test_another_boot_s_socket_is_passed_over(self, harness: SocketHarness) -> None:
        async with harness.open_plane() as caller:
            with pytest.raises(UnsupportedError, match="other-boot"):
                caller.call("unix://other-boot/tmp/x.sock", Request(endpoint="a.b.c", request_id="r"))


@pytest.mark.anyio
async def test_a_burst_of_calls_leaves_before_its_tick_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        harness = harness_of("tcp")
        async with harness.open_plane() as plane, asyncio.timeout(5):
            address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

            def call() -> None:
                plane.call(address, Request(endpoint="a.b.c", request_id="r", payload=b"\xc0"))

            call()
            loop = asyncio.get_running_loop()
            peer, _ = await loop.sock_accept(listener)
            with peer:
                greeting = MAGIC + map_frame(HELLO, 0, encode_hello(Options(), None, None))
                await loop.sock_sendall(peer, greeting)
                while b"a.b.c" not in await loop.sock_recv(peer, 65536):
                    pass
                for _ in range(64):
                    call()
                assert peer.recv(65536).count(b"a.b.c") >= 8  # nobody has awaited anything since
