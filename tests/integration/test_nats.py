"""The nats request plane and its server: who gets in, and what an outage does to calls."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import nkeys
import pytest
import trustme

from dynamo.adapters.request_plane.nats import open_nats
from dynamo.adapters.request_plane.nats.carrier import Carrier
from dynamo.cli.reaching import backends
from dynamo.core.config import Settings
from dynamo.core.distributed import DistributedRuntime
from dynamo.core.errors import (
    AuthError,
    ConfigError,
    DrainingError,
    DynamoError,
    Retry,
    StreamBrokenError,
    UnavailableError,
)
from dynamo.core.ports.request_plane import IncomingCall
from integration.nats_calls import answer, both, configured, nats, outcome, start, works
from nats_server import NatsServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.mark.parametrize("way", ["password", "password in the URL", "token", "nkey"])
async def test_who_is_known_gets_in_and_others_are_told_what_to_set(tmp_path: Path, way: str) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    text, options = {
        "password": ("user: me, password: secret", {"username": "me", "password": "secret"}),
        "password in the URL": ("user: me, password: secret", {}),
        "token": ("token: secret", {"token": "secret"}),
        "nkey": (f"users: [{{nkey: {public}}}]", {"nkey": bytes(seed).decode()}),
    }[way]
    with configured(tmp_path, f"authorization {{ {text} }}") as server:
        right = nats(server, **{f"nats_auth_{name}": value for name, value in options.items()})
        if way == "password in the URL":
            right = Settings.from_env({}, nats_server=f"nats://me:secret@127.0.0.1:{server.port}")
        assert await works(right)
        with pytest.raises(AuthError, match=r"refused us.*NATS_AUTH_USERNAME") as refused:
            async with open_nats(
                "nats://", nats(server, nats_auth_username="me", nats_auth_password="wrong")
            ):
                pass
        assert "wrong" not in str(refused.value)
        assert "nats_server" in str(refused.value)


async def test_tls_is_checked_by_the_authority_that_is_set(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    certificate.cert_chain_pems[0].write_to_path(str(files["cert"]))
    certificate.private_key_pem.write_to_path(str(files["key"]))
    text = f'tls {{ cert_file: "{files["cert"]}", key_file: "{files["key"]}" }}'
    with configured(tmp_path, text) as server:
        url = f"tls://127.0.0.1:{server.port}"
        assert await works(Settings.from_env({}, nats_server=url, nats_tls_ca=str(files["ca"])))
        untrusted = Settings.from_env({"NATS_SERVER": url})
        with pytest.raises(
            AuthError, match=r"certificate that we do not trust.*NATS_TLS_CA_CERT_PATH"
        ) as refused:
            async with asyncio.timeout(untrusted.connect_timeout_s), open_nats("nats://", untrusted):
                pass
        for part in (f"127.0.0.1:{server.port}", "NATS_SERVER", "local issuer"):
            assert part in str(refused.value)


async def test_a_start_without_a_server_says_once_where_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NATS_SERVER", "nats://me:secret@127.0.0.1:1")
    away = "no NATS server at nats://***@127.0.0.1:1 (NATS_SERVER): Connection refused"
    what_to_do = "start it, or set request_plane=tcp, which needs no server"
    async with DistributedRuntime(discovery="mem", request_plane="nats", startup_timeout_s=0.8) as runtime:
        with pytest.raises(UnavailableError) as refused:
            await runtime.endpoint("demo.backend.generate").client()
    assert str(refused.value) == f"{away}, after 0.8 s (startup_timeout_s); {what_to_do}"
    (waiting,) = (record.message for record in caplog.records if "waiting for" in record.message)
    assert waiting.endswith(f": {away}; {what_to_do}")


async def test_the_doctor_says_what_to_do_without_a_server() -> None:
    environ = {
        "NATS_SERVER": "nats://127.0.0.1:1",
        "DYN_REQUEST_PLANE": "nats",
        "DYN_DISCOVERY_BACKEND": "mem",
    }
    findings = {one.topic: one for one in await backends(Settings.from_env(environ), 5.0)}
    found = findings["request plane"]
    assert found.level == "wrong"
    assert "no NATS server at nats://127.0.0.1:1 (NATS_SERVER): Connection refused" in found.text
    assert found.remedy == "start it, or set DYN_REQUEST_PLANE=tcp, which needs no server"


@pytest.mark.parametrize("value", [",", "http://h", "nats://h:99999", "nats://h/path"])
async def test_what_is_no_server_names_the_variable(value: str) -> None:
    with pytest.raises(ConfigError, match="NATS_SERVER"):
        async with open_nats("nats://", Settings.from_env({"NATS_SERVER": value})):
            pass


async def test_a_server_that_is_down_is_passed_over_and_the_next_takes_over(server: NatsServer) -> None:
    url = f"nats://127.0.0.1:1,{server.url}"
    assert await works(Settings.from_env({}, nats_server=url))


async def test_calls_go_on_after_the_server_was_restarted(server: NatsServer) -> None:
    async with both(nats(server, keepalive_s=1.0)) as (caller, address):
        assert await outcome(start(caller, address)) is None
        server.kill()
        early = start(caller, address)  # before the client could notice
        server.start()
        assert isinstance(await outcome(early), StreamBrokenError | UnavailableError | None)
        while (error := await outcome(start(caller, address))) is not None:
            assert isinstance(error, StreamBrokenError | UnavailableError)
            await asyncio.sleep(0.01)


async def test_a_frozen_server_is_noticed_and_calls_go_on_when_it_thaws(server: NatsServer) -> None:
    async with both(nats(server, keepalive_s=0.6, connect_timeout_s=0.6)) as (caller, address):
        waiting = start(caller, address, "waits")
        assert await outcome(start(caller, address)) is None
        server.signal(signal.SIGSTOP)
        try:
            assert isinstance(await outcome(waiting), StreamBrokenError)
            assert not (await caller.check(address)).ok
            held = await outcome(start(caller, address))
            assert isinstance(held, UnavailableError)
            assert held.retry is Retry.SAFE  # it was never sent
        finally:
            server.signal(signal.SIGCONT)
        while (error := await outcome(start(caller, address))) is not None:
            assert isinstance(error, StreamBrokenError | UnavailableError)
            await asyncio.sleep(0.01)


async def test_a_worker_is_known_to_the_server_when_its_serving_begins(server: NatsServer) -> None:
    said = bytearray()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ours, theirs = await asyncio.open_connection(server.host, server.port)

        async def back() -> None:
            while data := await ours.read(65536):
                writer.write(data)
            writer.close()

        async def forth() -> None:
            while data := await reader.read(65536):
                said.extend(data)
                theirs.write(data)
            theirs.close()

        await asyncio.gather(back(), forth())

    async with asyncio.timeout(10), await asyncio.start_server(relay, "127.0.0.1", 0) as between:
        port = between.sockets[0].getsockname()[1]
        async with (
            open_nats("nats://", Settings.from_env({}, nats_server=f"nats://127.0.0.1:{port}")) as worker,
            worker.serve(answer, instance_id=1, incarnation=1),
        ):
            # The server answers a ping after all that came before it; one that went first tells nothing.
            assert said.index(b"SUB dyn.") < said.rindex(b"PING")


async def test_a_lost_message_breaks_the_stream_and_skips_nothing(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[IncomingCall] = []
    lost = asyncio.Event()
    settings = nats(server)
    async with (
        asyncio.timeout(10),
        open_nats("nats://", settings) as worker,
        open_nats("nats://", settings) as caller,
        worker.serve(arrived.append, instance_id=1, incarnation=1) as served,
    ):
        call = start(caller, served.addresses[0])
        while not arrived:
            await asyncio.sleep(0.01)
        arrived[0].send(b"\x01")
        while (first := call.receive_nowait()) is None:
            await call.wait()
        send = worker._broker.send

        def drop(parts: object) -> None:
            monkeypatch.setattr(worker._broker, "send", send)
            lost.set()

        monkeypatch.setattr(worker._broker, "send", drop)
        arrived[0].send(b"\x02")
        await lost.wait()
        arrived[0].send(b"\x03", end=True)
        rest = []
        while not call.ended:
            if (item := call.receive_nowait()) is not None:
                rest.append(item)
            else:
                await call.wait()
    assert bytes(first) == b"\x01"
    assert rest == []
    assert isinstance(call.error, StreamBrokenError)
    assert "were lost" in str(call.error)


async def test_nobody_there_is_told_at_once(server: NatsServer) -> None:
    async with asyncio.timeout(2), open_nats("nats://", nats(server)) as caller:
        error = await outcome(start(caller, "nats:///nobody"))
    assert isinstance(error, UnavailableError)
    assert "no responders" in str(error)


async def test_a_caller_that_comes_while_a_worker_leaves_is_sent_elsewhere_at_once(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[DynamoError | None] = []
    settings = nats(server)
    async with (
        asyncio.timeout(4),  # less than the bound of an opening
        open_nats("nats://", settings) as worker,
        open_nats("nats://", settings) as caller,
    ):
        drop = worker._broker.drop

        async def late_call(one: object) -> None:
            late.append(await outcome(start(caller, address)))
            await drop(one)  # type: ignore[arg-type]

        async with worker.serve(answer, instance_id=1, incarnation=1) as served:
            address = served.addresses[0]
            monkeypatch.setattr(worker._broker, "drop", late_call)
        assert [type(error) for error in late] == [DrainingError]
        assert late[0] is not None
        assert late[0].retry is Retry.SAFE
        error = await outcome(start(caller, address))
        assert isinstance(error, UnavailableError)
        assert error.retry is Retry.SAFE


async def test_what_strangers_publish_harms_nobody(server: NatsServer) -> None:
    def hostile(subject: str, reply: str, data: bytes, headers: bytes = b"") -> bytes:
        sizes = f"{len(headers)} {len(headers) + len(data)}" if headers else f"{len(data)}"
        command = f"{'HPUB' if headers else 'PUB'} {subject} {reply} {sizes}\r\n".encode()
        return command + headers + data + b"\r\n"

    nobody = b"NATS/1.0 503\r\n\r\n"
    settings = nats(server)
    stranger = await Carrier.open(server.url, settings, {})
    try:
        async with both(settings) as (caller, address):
            waiting = start(caller, address, "waits")
            assert await outcome(start(caller, address)) is None
            worker = f"dyn.a.b.c.{address.removeprefix('nats:///')}"
            inbox = caller._sessions._inbox
            (session,) = (number for _, number in caller._sessions._links)
            for subject in (worker, f"{inbox}.a.zz.b", f"{inbox}.caller.{session + 1:016x}.1"):
                for reply in ("", "nobody.there", f"{inbox}.y"):
                    for data in (b"", b"x" * 8, b"x" * 11, b"x" * 12, bytes(12), bytes(8) + b"x" * 500):
                        stranger.send([hostile(subject, reply, data)])
                        stranger.send([hostile(subject, reply, data, nobody)])
            await stranger.heard(settings)
            for _ in range(20):
                assert await outcome(start(caller, address)) is None
            assert not waiting.ended
    finally:
        await stranger.leave()
