"""Ways into NATS that need more than a word: credentials, certificates, permissions, several servers."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys
import pytest
import trustme
from nats.aio.transport import TcpTransport

import nats_server
from dynamo.adapters.request_plane.nats import open_nats
from dynamo.core.config import Settings
from dynamo.core.errors import AuthError, ConfigError, StreamBrokenError, UnavailableError
from dynamo.core.health import Status
from dynamo.core.ports.request_plane import Request
from integration.nats_calls import ITEM, answer, both, configured, nats, outcome, start, works
from nats_server import NatsServer

pytestmark = pytest.mark.anyio

UNLIMITED = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Key:
    """An nkey that signs claims, as NATS's own tools write them."""

    def __init__(self, prefix: int) -> None:
        self.seed = bytes(nkeys.encode_seed(os.urandom(32), prefix))
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public = self._pair.public_key.decode()

    def claims(self, subject: Key, name: str, **nats: Any) -> str:
        """The JWT in which this key says something of another, or of itself."""
        body = {
            "jti": os.urandom(8).hex(),
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject.public,
            "nats": {**nats, "version": 2},
        }
        parts = [_text(json.dumps(part)) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
        signed = ".".join(parts)
        return f"{signed}.{_text(self._pair.sign(signed.encode()))}"


def _text(data: str | bytes) -> str:
    raw = data.encode() if isinstance(data, str) else bytes(data)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def credentials(path: Path, jwt: str, user: Key) -> str:
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return str(path)


async def refusal(settings: Settings) -> AuthError:
    """What a start ends with, soon."""
    with pytest.raises(AuthError) as refused:
        async with asyncio.timeout(5), open_nats("nats://", settings):
            pass
    return refused.value


async def test_a_credentials_file_of_the_account_gets_in(tmp_path: Path) -> None:
    operator, account = Key(nkeys.PREFIX_BYTE_OPERATOR), Key(nkeys.PREFIX_BYTE_ACCOUNT)
    user, stranger = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_ACCOUNT)
    said = {"type": "user", "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
    account_jwt = operator.claims(account, "team", type="account", limits={**UNLIMITED, "wildcards": True})
    text = (
        f"operator: {operator.claims(operator, 'us', type='operator')}\n"
        f"resolver: MEMORY\nresolver_preload: {{ {account.public}: {account_jwt} }}"
    )
    ours = credentials(tmp_path / "ours.creds", account.claims(user, "me", **said), user)
    theirs = credentials(tmp_path / "theirs.creds", stranger.claims(user, "me", **said), user)
    with configured(tmp_path, text) as server:
        assert await works(nats(server, nats_auth_credentials_file=ours))
        refused = await refusal(nats(server, nats_auth_credentials_file=theirs))
        assert "NATS_AUTH_CREDENTIALS_FILE" in str(refused)
        with pytest.raises(ConfigError, match=r"nats_auth_credentials_file=.*none\.creds.*no such file"):
            async with open_nats(
                "nats://", nats(server, nats_auth_credentials_file=str(tmp_path / "none.creds"))
            ):
                pass


@pytest.mark.blocks_loop
async def test_a_certificate_is_asked_for_even_where_the_server_is_gone_before_we_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = {name: str(tmp_path / name) for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(files["ca"])
    certificate.cert_chain_pems[0].write_to_path(files["cert"])
    certificate.private_key_pem.write_to_path(files["key"])
    secure = TcpTransport.connect_tls

    async def secure_late(*args: Any) -> None:
        await secure(*args)
        time.sleep(0.02)  # as where another task of this loop computes

    monkeypatch.setattr(TcpTransport, "connect_tls", secure_late)
    tls = f'cert_file: "{files["cert"]}", key_file: "{files["key"]}", ca_file: "{files["ca"]}", verify: true'
    with configured(tmp_path, f"tls {{ {tls} }}") as server:
        settings = Settings.from_env(
            {}, nats_server=f"tls://127.0.0.1:{server.port}", nats_tls_ca=files["ca"], startup_timeout_s=2.0
        )
        for _ in range(5):  # whether we write first is chance
            assert "wants a certificate of ours that it trusts" in str(await refusal(settings))


async def test_a_server_that_wants_a_certificate_gets_ours(tmp_path: Path) -> None:
    authority, others = trustme.CA(), trustme.CA()
    files: dict[str, str] = {}
    for name, blob in (
        ("ca", authority.cert_pem),
        ("server.cert", (server_cert := authority.issue_cert("127.0.0.1")).cert_chain_pems[0]),
        ("server.key", server_cert.private_key_pem),
        ("ours.cert", (our_cert := authority.issue_cert("worker.test")).cert_chain_pems[0]),
        ("ours.key", our_cert.private_key_pem),
        ("other.cert", (other_cert := others.issue_cert("worker.test")).cert_chain_pems[0]),
        ("other.key", other_cert.private_key_pem),
    ):
        blob.write_to_path(path := str(tmp_path / name))
        files[name] = path
    text = (
        f'tls {{ cert_file: "{files["server.cert"]}", key_file: "{files["server.key"]}", '
        f'ca_file: "{files["ca"]}", verify: true }}'
    )
    with configured(tmp_path, text) as server:

        def settings(whose: str | None) -> Settings:
            more: dict[str, Any] = {} if whose is None else {
                "nats_tls_client_cert": files[f"{whose}.cert"],
                "nats_tls_client_key": files[f"{whose}.key"],
            }  # fmt: skip
            url = f"tls://127.0.0.1:{server.port}"
            return Settings.from_env(
                {}, nats_server=url, nats_tls_ca=files["ca"], startup_timeout_s=2.0, **more
            )

        assert await works(settings("ours"))
        for whose in (None, "other"):
            refused = await refusal(settings(whose))
            assert "wants a certificate of ours that it trusts" in str(refused)
            assert "NATS_TLS_CLIENT_CERT_PATH" in str(refused)


async def test_who_may_not_listen_is_told_at_the_start(tmp_path: Path) -> None:
    text = (
        'authorization { users: [{ user: caller, password: p, permissions: { subscribe: "_INBOX.dyn.>" } }, '
        '{ user: nobody, password: p, permissions: { subscribe: "x" } }] }'
    )
    with configured(tmp_path, text) as server:
        may_call = nats(server, nats_auth_username="caller", nats_auth_password="p")
        async with asyncio.timeout(5), open_nats("nats://", may_call) as plane:
            with pytest.raises(AuthError, match=r"permissions violation for subscription to.*dyn"):
                async with plane.serve(answer, instance_id=1, incarnation=1):
                    pass
        refused = await refusal(nats(server, nats_auth_username="nobody", nats_auth_password="p"))
        assert "_inbox" in str(refused).lower()


def permitted(permissions: str) -> str:
    """A server with two users: one may do all, the other what ``permissions`` say."""
    return (
        "authorization { users: [{ user: free, password: p }, "
        f"{{ user: bound, password: p, permissions: {permissions} }}] }}"
    )


def user(server: NatsServer, name: str, connect_timeout_s: float = 30.0) -> Settings:
    return nats(server, nats_auth_username=name, nats_auth_password="p", connect_timeout_s=connect_timeout_s)


@asynccontextmanager
async def free_worker(server: NatsServer, caller: Settings, **served: Any) -> AsyncIterator[Any]:
    async with (
        open_nats("nats://", user(server, "free")) as worker,
        open_nats("nats://", caller) as plane,
        worker.serve(answer, instance_id=1, incarnation=1, **served),
    ):
        yield plane


async def test_the_permissions_on_the_page_are_enough(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "nats.md").read_text()
    text = page[page.index("authorization {") :].partition("```")[0]
    with configured(tmp_path, text) as server:

        def settings(name: str) -> Settings:
            return nats(server, nats_auth_username=name, nats_auth_password=name[0].upper())

        async with (
            asyncio.timeout(5),
            open_nats("nats://", settings("worker")) as worker,
            open_nats("nats://", settings("caller")) as caller,
        ):
            for given in (None, "nats:///demo.worker.*"):
                async with worker.serve(answer, instance_id=1, incarnation=1, address=given) as served:
                    (address,) = served.addresses
                    request = Request(endpoint="demo.worker.generate", request_id="r", payload=ITEM)
                    assert await outcome(caller.call(address, request)) is None
                    assert (await caller.check(address)).status is Status.UP
            assert isinstance(await outcome(start(caller, "nats:///0000000000000001")), AuthError)


async def test_a_call_that_the_user_may_not_make_is_told_at_once(tmp_path: Path) -> None:
    with configured(tmp_path, permitted('{ publish: { deny: "dyn.a.>" } }')) as server:
        async with asyncio.timeout(5), free_worker(server, user(server, "bound")) as caller:
            for _ in range(2):
                error = await outcome(start(caller, "nats:///0000000000000001"))
                assert type(error) is AuthError
                assert str(error) == (
                    f"the NATS server {server.url} (nats_server) does not let user 'bound' "
                    "(nats_auth_username) publish to dyn.a.b.c.0000000000000001: add that, or dyn.>, to the "
                    "permissions there"
                )


async def test_a_call_is_not_failed_for_one_whose_subject_differs_in_case(tmp_path: Path) -> None:
    with configured(tmp_path, permitted('{ publish: { deny: "dyn.A.>" } }')) as server:
        async with asyncio.timeout(5), free_worker(server, user(server, "bound")) as caller:
            address = "nats:///0000000000000001"
            waiting = start(caller, address, "waits")
            forbidden = caller.call(address, Request(endpoint="A.b.c", request_id="r", payload=ITEM))
            assert isinstance(await outcome(forbidden), AuthError)
            assert await outcome(start(caller, address)) is None
            assert not waiting.ended
            waiting.kill()


async def test_a_call_that_may_begin_and_not_go_on_is_told_why(tmp_path: Path) -> None:
    with configured(tmp_path, permitted('{ publish: "dyn.a.b.c" }')) as server:
        settings = user(server, "bound")
        async with (
            asyncio.timeout(5),
            free_worker(server, settings, address="nats:///a.b.*") as caller,
        ):
            error = await outcome(start(caller, "nats:///a.b.*", "waits"))
            assert isinstance(error, StreamBrokenError)
            assert "does not let user 'bound' (nats_auth_username) publish to dyn.a.b.c.00000000" in str(
                error
            )


async def test_a_worker_that_may_not_answer_logs_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with configured(tmp_path, permitted('{ publish: "dyn.>" }')) as server:
        async with (
            asyncio.timeout(5),
            open_nats("nats://", user(server, "bound")) as worker,
            open_nats("nats://", user(server, "free", connect_timeout_s=0.2)) as caller,
            worker.serve(answer, instance_id=1, incarnation=1) as served,
        ):
            for _ in range(2):
                assert isinstance(await outcome(start(caller, served.addresses[0])), UnavailableError)
            (said,) = caplog.messages
            assert said.startswith(
                f"callers do not hear us: the NATS server {server.url} (nats_server) does "
            )
            assert "publish to _INBOX.dyn." in said
            assert said.endswith(": add that, or _INBOX.dyn.>, to the permissions there")


async def test_a_worker_that_may_not_ask_for_its_name_is_told(tmp_path: Path) -> None:
    with configured(tmp_path, permitted('{ publish: "_INBOX.dyn.>" }')) as server:
        async with asyncio.timeout(5), open_nats("nats://", user(server, "bound")) as worker:
            with pytest.raises(
                AuthError, match=r"does not let .* publish to dyn\._\._\._\.0000000000000001: add"
            ):
                async with worker.serve(answer, instance_id=1, incarnation=1):
                    pass


async def test_calls_go_on_over_the_server_that_is_left() -> None:
    with NatsServer.cluster(2) as (first, second):
        url = f"{first.url},{second.url}"
        settings = Settings.from_env({}, nats_server=url, keepalive_s=1.0)
        async with both(settings) as (caller, address):
            assert await outcome(start(caller, address)) is None
            assert first.shows("connz")["num_connections"] == 2
            first.kill()
            while (error := await outcome(start(caller, address))) is not None:
                assert isinstance(error, StreamBrokenError | UnavailableError)
                await asyncio.sleep(0.01)
            assert second.shows("connz")["num_connections"] == 2


async def test_monitoring_shows_who_serves_and_who_calls() -> None:
    with NatsServer() as server:
        async with both(nats(server)) as (caller, address):
            assert await outcome(start(caller, address)) is None
            found = {one["subject"] for one in server.shows("subsz?subs=1")["subscriptions_list"]}
            name = address.removeprefix("nats:///")
            assert f"dyn.*.*.*.{name}" in found
            assert len([subject for subject in found if subject.startswith("_INBOX.dyn.")]) >= 2
            names = {one.get("name") for one in server.shows("connz")["connections"]}
            assert names == {f"dynamo {os.getpid()}"}


@pytest.mark.optional_tool
@pytest.mark.skipif(shutil.which("nats-server") is None, reason="nats-server is not installed")
async def test_the_server_that_is_installed_here_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_server, "PROGRAM", shutil.which("nats-server"))
    with NatsServer() as server:
        settings = nats(server, keepalive_s=1.0)
        async with both(settings) as (caller, address):
            assert await outcome(start(caller, address)) is None
            server.kill()
            server.start()
            while (error := await outcome(start(caller, address))) is not None:
                assert isinstance(error, StreamBrokenError | UnavailableError)
                await asyncio.sleep(0.01)
            error = await outcome(start(caller, "nats:///nobody"))
            assert isinstance(error, UnavailableError)
