"""Which etcd is reached, and how: addresses, TLS, users; each mistake is one line that names the variable."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from dynamo.adapters.discovery.etcd import open_etcd
from dynamo.core.config import Settings
from dynamo.core.errors import AuthError, ConfigError, DynamoError, LeaseLostError, UnavailableError
from dynamo.core.health import Status
from dynamo.core.model import Scope
from dynamo.core.ports.discovery import Snapshot
from dynamo.runtime import DistributedRuntime
from dynamo.testing.discovery import SCOPE, an_instance, by_key, following, lease_for, live_now
from dynamo.testing.proxy import FaultProxy
from etcd_server import EtcdServer, shared
from integration.refusals import check, free_port

pytestmark = pytest.mark.anyio

ENVIRONMENT = {"ETCD_LEASE_TTL": "2", "DYN_CONNECT_TIMEOUT_S": "2"}
ONE = an_instance(1)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pem")
    ours, theirs = trustme.CA(), trustme.CA()
    past: dict[str, Any] = {
        "not_before": datetime.datetime(2020, 1, 1),
        "not_after": datetime.datetime(2021, 1, 1),
    }
    for name, authority, hosts, dates in (
        ("server", ours, ("localhost", "127.0.0.1"), {}),
        ("expired", ours, ("localhost", "127.0.0.1"), past),
        ("client", ours, ("client.example",), {}),
        ("stranger", theirs, ("client.example",), {}),
    ):
        issued = authority.issue_cert(*hosts, **dates)
        (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    ours.cert_pem.write_to_path(folder / "ours.pem")
    theirs.cert_pem.write_to_path(folder / "theirs.pem")
    (folder / "nonsense.pem").write_text("no certificate")
    return folder


@pytest.fixture(scope="module")
def servers(pem: Path) -> Iterator[dict[str, EtcdServer]]:
    """Without TLS, with it, with an expired certificate, and with one that wants to see the client's."""

    def secure(name: str, *options: str) -> EtcdServer:
        files = ("--cert-file", str(pem / f"{name}.pem"), "--key-file", str(pem / f"{name}.key"))
        return EtcdServer(*files, *options, tls=True)

    made = {
        "secure": secure("server"),
        "expired": secure("expired"),
        "mutual": secure("server", "--client-cert-auth", "--trusted-ca-file", str(pem / "ours.pem")),
    }
    with ExitStack() as stack:
        for server in made.values():
            stack.enter_context(server)
        yield {"plain": shared(), **made}


def variables(pem: Path, ca: str | None = None, client: str | None = None) -> dict[str, str]:
    found = {} if ca is None else {"ETCD_AUTH_CA": str(pem / f"{ca}.pem")}
    if client is not None:
        found["ETCD_AUTH_CLIENT_CERT"] = str(pem / f"{client}.pem")
        found["ETCD_AUTH_CLIENT_KEY"] = str(pem / f"{client}.key")
    return found


def client_of(environment: dict[str, str], url: str = "etcd://") -> Any:
    return open_etcd(url, Settings.from_env({**ENVIRONMENT, **environment}))


async def works(environment: dict[str, str], url: str = "etcd://") -> None:
    """Registers, and sees it."""
    async with client_of(environment, url) as client, following(client) as follower:
        async with lease_for(client, ONE) as lease:
            await lease.put(ONE)
            await follower.until(lambda live: live == by_key(ONE))
        assert (await client.check()).status is Status.UP


async def refused(
    monkeypatch: pytest.MonkeyPatch, error: type[DynamoError], words: tuple[str, ...], **variables: str
) -> str:
    """What a runtime with these variables says: in one line, at once or at the end of its wait."""
    backend = {"DYN_DISCOVERY_BACKEND": "kv_store", "DYN_TCP_RPC_HOST": "127.0.0.1"}
    bound_s = "0.8" if error is UnavailableError else "20"  # others are told at once; etcd's bcrypt is slow
    for name, value in {**ENVIRONMENT, "DYN_STARTUP_TIMEOUT_S": bound_s, **backend, **variables}.items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with pytest.raises(error) as caught:
        async with DistributedRuntime.from_env() as runtime:
            await runtime.endpoint("a.b.c").client()
    assert time.monotonic() - began < 10
    check(caught.value, error, words)
    return str(caught.value)


# What works


async def test_names_addresses_and_urls_without_a_scheme(servers: dict[str, EtcdServer]) -> None:
    port = servers["plain"].port
    for endpoints in (f"http://localhost:{port}", f"127.0.0.1:{port}", f"http://localhost:{port}/"):
        await works({"ETCD_ENDPOINTS": endpoints})
    await works({"ETCD_ENDPOINTS": "http://127.0.0.1:1"}, f"etcd://localhost:{port}?ttl_s=3")


async def test_ipv6() -> None:
    with EtcdServer(host="::1") as server:
        await works({"ETCD_ENDPOINTS": server.url})
        await works({}, f"etcd://{server.hostport}")


async def test_tls_and_mutual_tls(servers: dict[str, EtcdServer], pem: Path) -> None:
    for endpoints in (servers["secure"].url, f"https://localhost:{servers['secure'].port}"):
        await works({"ETCD_ENDPOINTS": endpoints, **variables(pem, "ours")})
    await works({"ETCD_ENDPOINTS": servers["mutual"].url, **variables(pem, "ours", "client")})
    await works(variables(pem, "ours"), f"etcd://{servers['secure'].hostport}")


# What does not


@pytest.mark.parametrize(
    "server,scheme,ca,client,words",
    [
        ("plain", "https", None, None, ("ETCD_ENDPOINTS", "does not speak TLS", "http://")),
        ("secure", "http", None, None, ("ETCD_ENDPOINTS", "speaks TLS", "https://")),
        ("secure", "https", None, None, ("ETCD_AUTH_CA", "not set", "unable to get local issuer")),
        ("secure", "https", "theirs", None, ("ETCD_AUTH_CA", "theirs.pem", "local issuer")),
        ("secure", "https", "missing", None, ("ETCD_AUTH_CA", "missing.pem", "no such file")),
        ("secure", "https", "nonsense", None, ("ETCD_AUTH_CA", "not a PEM file")),
        ("secure", "http", "ours", None, ("ETCD_AUTH_CA is set", "ETCD_ENDPOINTS", "https://")),
        ("expired", "https", "ours", None, ("ETCD_ENDPOINTS", "certificate has expired")),
        ("mutual", "https", "ours", None, ("ETCD_AUTH_CLIENT_CERT", "refused our client certificate")),
        ("mutual", "https", "ours", "stranger", ("ETCD_AUTH_CLIENT_CERT", "stranger.pem")),
        ("mutual", "https", "ours", "missing", ("ETCD_AUTH_CLIENT_CERT", "missing.pem", "no such file")),
    ],
)
async def test_a_mistake_with_tls(
    server: str,
    scheme: str,
    ca: str | None,
    client: str | None,
    words: tuple[str, ...],
    servers: dict[str, EtcdServer],
    pem: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoints = f"{scheme}://127.0.0.1:{servers[server].port}"
    given = {"ETCD_ENDPOINTS": endpoints, **variables(pem, ca, client)}
    await refused(monkeypatch, ConfigError, words, **given)


@pytest.mark.parametrize(
    "variable,value,words",
    [
        ("ETCD_ENDPOINTS", "ftp://h:1", ("'ftp://h:1'", "http://host:port or https://host:port")),
        ("ETCD_ENDPOINTS", "http://h:1,http://h:port", ("'http://h:port'", "separated by commas")),
        ("ETCD_ENDPOINTS", "http://h:1/v3", ("'http://h:1/v3'", "http://host:port")),
        ("ETCD_ENDPOINTS", "http://10.0..1:2379", ("'http://10.0..1:2379'", "http://host:port")),
        ("ETCD_ENDPOINTS", " , ", ("http://host:port",)),
        ("ETCD_ENDPOINTS", "http://me:hush@h:1", ("ETCD_AUTH_USERNAME", "ETCD_AUTH_PASSWORD")),
        ("ETCD_LEASE_TTL", "0", ("'0'", "whole seconds, 1 to 86400")),
        ("ETCD_LEASE_TTL", "10s", ("'10s'", "whole seconds")),
        ("ETCD_AUTH_PASSWORD", "secret", ("without ETCD_AUTH_USERNAME",)),
        ("ETCD_AUTH_CLIENT_KEY", "/k.pem", ("ETCD_AUTH_CLIENT_CERT", "set both")),
    ],
)
async def test_a_bad_value(
    variable: str, value: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = await refused(monkeypatch, ConfigError, (variable, *words), **{variable: value})
    assert "hush" not in said


async def test_nobody_listens_or_the_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    instead = ("ETCD_ENDPOINTS", "DYN_DISCOVERY_BACKEND", "mem (one process), file (one host) or static")
    url = f"http://127.0.0.1:{free_port()}"
    words: tuple[str, ...] = (url, "Connection refused", "0.8 s", *instead)
    await refused(monkeypatch, UnavailableError, words, ETCD_ENDPOINTS=url)
    url = "http://no-such-host.invalid:2379"
    words = (url, "'no-such-host.invalid' is unknown", *instead)
    await refused(monkeypatch, UnavailableError, words, ETCD_ENDPOINTS=url)


async def test_an_unreachable_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultProxy("127.0.0.1", shared().port) as proxy:
        proxy.black_hole()
        url = f"http://{proxy.address}"
        await refused(
            monkeypatch,
            UnavailableError,
            ("ETCD_ENDPOINTS",),
            ETCD_ENDPOINTS=url,
            DYN_CONNECT_TIMEOUT_S="0.3",
        )
        proxy.heal()
        while proxy.open_connections:  # nobody goes on trying once the runtime is closed
            await asyncio.sleep(0.01)


async def test_what_answers_is_no_etcd(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await refused(monkeypatch, UnavailableError, (url, "ETCD_ENDPOINTS", "no etcd"), ETCD_ENDPOINTS=url)


async def test_a_start_without_etcd_says_soon_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    server = EtcdServer()
    options: dict[str, Any] = {"discovery": "etcd", "etcd_endpoints": server.url, "tcp_host": "127.0.0.1"}
    try:
        async with DistributedRuntime(startup_timeout_s=20, **options) as runtime:
            opening = asyncio.create_task(runtime.endpoint("a.b.c").client())
            began = time.monotonic()
            while not caplog.messages:
                await asyncio.sleep(0.01)
            assert time.monotonic() - began < 1
            (said,) = caplog.messages
            for words in (server.url, "etcd_endpoints", "Connection refused", "mem (one process), file"):
                assert words in said
            server.start()
            await opening
    finally:
        server.close()


# Users


@pytest.fixture
def guarded() -> Iterator[EtcdServer]:
    """An etcd where ``me`` may use /services/ and ``poor`` nothing; their passwords are ``secret``."""
    with EtcdServer("--auth-token-ttl", "2") as server:
        for command in (
            "user add root:rootpw", "user grant-role root root", "user add me:secret", "user add poor:secret",
            "role add dyn", "role grant-permission dyn --prefix=true readwrite /services/",
            "user grant-role me dyn", "auth enable",
        ):  # fmt: skip
            server.ctl(*command.split())
        yield server


async def test_users_and_their_mistakes(guarded: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = guarded.url
    right = {"ETCD_ENDPOINTS": url, "ETCD_AUTH_USERNAME": "me", "ETCD_AUTH_PASSWORD": "secret"}
    await works(right)
    await works({}, f"etcd://me:secret@{guarded.hostport}")
    await works({**right, "ETCD_ENDPOINTS": shared().url})  # where no user is needed it does no harm
    wrong: list[tuple[dict[str, str], tuple[str, ...]]] = [
        ({"ETCD_AUTH_PASSWORD": "wrong"}, ("'me'", "ETCD_AUTH_PASSWORD", "authentication failed")),
        ({"ETCD_AUTH_USERNAME": "poor"}, ("'poor'", "ETCD_AUTH_USERNAME", "permission denied", "role")),
        ({"ETCD_AUTH_USERNAME": "", "ETCD_AUTH_PASSWORD": ""}, ("wants a user", "ETCD_AUTH_USERNAME")),
    ]
    for changed, words in wrong:
        await refused(monkeypatch, AuthError, (url, *words), **{**right, **changed})


async def test_a_lost_token_is_replaced(guarded: EtcdServer) -> None:
    environment = {
        "ETCD_ENDPOINTS": guarded.url, "ETCD_AUTH_USERNAME": "me", "ETCD_AUTH_PASSWORD": "secret",
    }  # fmt: skip
    two = an_instance(2)
    async with client_of(environment) as client, following(client) as follower:
        async with lease_for(client, ONE) as lease:
            await lease.put(ONE)
            await follower.until(lambda live: live == by_key(ONE))
            guarded.kill()
            guarded.launch()  # it knows no token any more
            async with lease_for(client, two) as second:
                await second.put(two)
                await follower.until(lambda live: live == by_key(ONE, two))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(2.1):
                        raise LeaseLostError(await lease.lost())
                assert await live_now(client) == by_key(ONE, two)
        await follower.until(lambda live: not live)


async def test_a_token_that_expired_is_replaced(guarded: EtcdServer) -> None:
    environment = {
        "ETCD_ENDPOINTS": guarded.url, "ETCD_AUTH_USERNAME": "me", "ETCD_AUTH_PASSWORD": "secret",
    }  # fmt: skip
    async with client_of(environment) as client:
        await asyncio.sleep(
            3.5
        )  # an unused token lives for 2 s, and expired ones are looked for every second
        async with client.watch(Scope()) as watch:
            assert isinstance(await watch.receive(), Snapshot)
        async with lease_for(client, ONE) as lease, following(client, SCOPE) as follower:
            await lease.put(ONE)
            await follower.until(lambda live: live == by_key(ONE))
