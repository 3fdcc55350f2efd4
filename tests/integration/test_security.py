"""Who may talk to a worker: token, certificates, identity. Who may not is told why; nobody else notices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from attrs import Factory, frozen
from cryptography.hazmat.primitives import serialization

from dynamo.core.errors import (
    AuthError,
    ConfigError,
    DynamoError,
    Retry,
    UnavailableError,
    WrongInstanceError,
)
from dynamo.core.health import Status
from integration import certificates
from integration.planes import INCARNATION, INSTANCE, Neighbour, ask, calling, working

pytestmark = pytest.mark.anyio

NEVER, SAFE = Retry.NEVER, Retry.SAFE
TOKEN_HELP = ("set DYN_AUTH_TOKEN to the same on both",)
CLIENT_CERTIFICATE_HELP = (
    "set DYN_TCP_TLS_CLIENT_CERT_PATH and DYN_TCP_TLS_CLIENT_KEY_PATH",
    "TLS handshake",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    certificates.issue(folder)
    return folder


@pytest.mark.parametrize(
    "scheme,worker_has,caller_has",
    [
        ("tcp", "", ""),
        ("tcp", "token=t", "token=t"),
        ("unix", "token=t", "token=t"),
        ("tcps", "cert=worker", "ca=ours"),
        ("tcps", "cert=worker token=t", "ca=ours token=t"),
        ("tcps", "cert=elsewhere", "ca=ours name=worker.example"),
        ("tcps", "cert=worker client_ca=ours", "ca=ours client=caller"),
        ("tcps", "cert=worker", "ca=ours client=stranger"),  # nobody asks for it
    ],
)
async def test_who_has_what_is_asked_for_is_served(
    folder: Path, scheme: str, worker_has: str, caller_has: str
) -> None:
    async with working(scheme, **certificates.options(folder, worker_has)) as worker:
        async with calling(**certificates.options(folder, caller_has)) as caller:
            assert await ask(caller, worker.address) == "hello"
            known = {"instance_id": INSTANCE, "incarnation": INCARNATION}
            assert await ask(caller, worker.address, **known) == "hello"
            assert (await caller.check(worker.address)).status is Status.UP


@frozen
class Mismatch:
    """What the worker, a good caller and a bad one have, and what the bad one is told."""

    name: str
    scheme: str
    worker: str
    good: str
    bad: str
    error: type[DynamoError]
    retry: Retry
    words: tuple[str, ...]
    dialled: str = ""  # instead of the worker's scheme
    expected: dict[str, int] = Factory(dict)


MISMATCHES = [
    *(
        mismatch
        for scheme in ("tcp", "unix")
        for mismatch in (
            Mismatch("wrong token", scheme, "token=t", "token=t", "token=u", AuthError, NEVER, TOKEN_HELP),
            Mismatch("token not given", scheme, "token=t", "token=t", "", AuthError, NEVER, TOKEN_HELP),
            Mismatch("token not asked for", scheme, "", "", "token=t", AuthError, NEVER, TOKEN_HELP),
            Mismatch(
                "another instance", scheme, "", "", "", WrongInstanceError, SAFE,
                (f"{INSTANCE + 1}", f"{INSTANCE}", "the address was reused"),
                expected={"instance_id": INSTANCE + 1},
            ),
            Mismatch(
                "another incarnation", scheme, "token=t", "token=t", "token=t", WrongInstanceError, SAFE,
                (f"{INCARNATION + 1:x}", "the address was reused"),
                expected={"instance_id": INSTANCE, "incarnation": INCARNATION + 1},
            ),
        )
    ),
    Mismatch(
        "plain caller on a TLS port", "tcps", "cert=worker", "ca=ours", "", UnavailableError, SAFE,
        ("before it said anything", "TLS (DYN_TCP_TLS_CERT_PATH)", "its address is tcps://"), dialled="tcp",
    ),
    Mismatch(
        "TLS caller on a plain port", "tcp", "", "", "ca=ours", UnavailableError, SAFE,
        ("during the handshake", "is it a plain tcp:// port"), dialled="tcps",
    ),
    Mismatch(
        "no authority", "tcps", "cert=worker", "ca=ours", "", AuthError, NEVER,
        ("unable to get local issuer", "set DYN_TCP_TLS_CA_CERT_PATH to its authority"),
    ),
    Mismatch(
        "wrong authority", "tcps", "cert=worker", "ca=ours", "ca=theirs", AuthError, NEVER,
        ("unable to get local issuer", "set tls_ca_cert_path to its authority"),
    ),
    Mismatch(
        "wrong name", "tcps", "cert=elsewhere", "ca=ours name=worker.example", "ca=ours", AuthError, NEVER,
        ("not valid for '127.0.0.1'", "set DYN_TCP_TLS_SERVER_NAME"),
    ),
    Mismatch(
        "no client certificate", "tcps", "cert=worker client_ca=ours", "ca=ours client=caller", "ca=ours",
        UnavailableError, SAFE, CLIENT_CERTIFICATE_HELP,
    ),
    Mismatch(
        "wrong client certificate", "tcps", "cert=worker client_ca=ours", "ca=ours client=caller",
        "ca=ours client=stranger", UnavailableError, SAFE, CLIENT_CERTIFICATE_HELP,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHES, ids=lambda case: f"{case.scheme}-{case.name.replace(' ', '_')}")
async def test_who_has_not_is_told_why_and_what_to_set(folder: Path, case: Mismatch) -> None:
    served = 0
    async with working(case.scheme, **certificates.options(folder, case.worker)) as worker:
        scheme, _, rest = worker.address.partition("://")
        address = f"{case.dialled or scheme}://{rest}"
        good = certificates.options(folder, case.good)
        async with Neighbour.of(worker, **good) as neighbour:
            served = worker.server.calls
            async with calling(**certificates.options(folder, case.bad)) as caller:
                for _ in range(3):
                    with pytest.raises(case.error) as caught:
                        await ask(caller, address, **case.expected)
                    assert type(caught.value) is case.error
                    assert caught.value.retry is case.retry
                    for words in (address, *case.words):
                        assert words in str(caught.value)
                    assert "\n" not in str(caught.value)
                    await neighbour.is_unharmed()
                if not case.expected:  # a check asks for nobody in particular
                    health = await caller.check(address)
                    assert health.status is Status.DOWN
                    for words in (address, *case.words):
                        assert words in health.detail
            assert worker.server.calls == served


# Files


BAD_FILES = [
    ("cert=missing", "tls_cert_path='.*missing.pem', tls_key_path='.*missing.key': no such file"),
    ("cert=nonsense", "tls_cert_path='.*nonsense.pem'.*: not a PEM certificate with its key"),
    ("client_ca=ours", "tls_client_ca_cert_path is set without DYN_TCP_TLS_CERT_PATH"),
    ("cert=worker client_ca=missing", "tls_client_ca_cert_path='.*missing.pem': no such file"),
    ("cert=worker client_ca=nonsense", "tls_client_ca_cert_path='.*nonsense.pem': not a PEM file"),
]


@pytest.mark.parametrize("short,words", BAD_FILES)
async def test_a_worker_does_not_start_on_a_bad_file(folder: Path, short: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        async with working(**certificates.options(folder, short)):
            pass


async def test_a_certificate_needs_its_own_key(folder: Path) -> None:
    mixed: dict[str, Any] = {"tls_cert_path": folder / "worker.pem", "tls_key_path": folder / "caller.key"}
    with pytest.raises(
        ConfigError, match=r"tls_cert_path='.*worker.pem', tls_key_path='.*caller.key': .*key"
    ):
        async with working(**mixed):
            pass
    with pytest.raises(ConfigError, match=r"its key: .*; set DYN_TCP_TLS_KEY_PATH to the file of its key$"):
        async with working(tls_cert_path=folder / "worker.pem"):
            pass
    with pytest.raises(ConfigError, match="tls_key_path is set without DYN_TCP_TLS_CERT_PATH"):
        async with working(tls_key_path=folder / "worker.key"):
            pass


async def test_an_encrypted_key_is_refused_rather_than_a_passphrase_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    key = serialization.load_pem_private_key((folder / "worker.key").read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(ConfigError, match=r"tls_key_path='.*locked.key': the key is encrypted"):
        async with working(tls_cert_path=folder / "worker.pem", tls_key_path=locked):
            pass


@pytest.mark.parametrize(
    "short,words",
    [
        ("ca=missing", "tls_ca_cert_path='.*missing.pem': no such file"),
        ("ca=nonsense", "tls_ca_cert_path='.*nonsense.pem': not a PEM file"),
        ("ca=ours client=missing", "tls_client_cert_path='.*missing.pem'.*: no such file"),
    ],
)
async def test_a_caller_with_a_bad_file_is_told_which(folder: Path, short: str, words: str) -> None:
    async with working("tcps", **certificates.options(folder, "cert=worker")) as worker:
        async with calling(**certificates.options(folder, short)) as caller:
            with pytest.raises(ConfigError, match=words):
                await ask(caller, worker.address)
            health = await caller.check(worker.address)
            assert health.status is Status.DOWN
            assert re.search(words, health.detail)


# Secrets


@pytest.mark.parametrize("caller_token", ["hush-hush", "other-word", ""])
async def test_a_token_shows_up_in_no_message(
    folder: Path, caller_token: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []
    with caplog.at_level(0):
        async with working(auth_token="hush-hush") as worker:
            async with calling(**({"auth_token": caller_token} if caller_token else {})) as caller:
                try:
                    await ask(caller, worker.address)
                except DynamoError as error:
                    seen.append(str(error))
                seen += [(await caller.check(worker.address)).detail, repr(caller), repr(worker.plane)]
    for text in (*seen, caplog.text):
        assert "hush-hush" not in text
        assert "other-word" not in text
