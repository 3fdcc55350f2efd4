"""Credentials that are replaced while a process runs: it goes on with the new ones, and nobody is told."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import textwrap
from pathlib import Path

import pytest
import trustme
from aiohttp import web

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from dynamo.adapters.discovery.kubernetes import credentials, way
from dynamo.adapters.discovery.kubernetes.configuration import KubernetesConfig
from dynamo.adapters.discovery.kubernetes.program import Programs
from dynamo.core.errors import ConfigError
from dynamo.testing.discovery import Follower
from integration.fake_kubernetes import RECORDS, SLICES, FakeKubernetes
from integration.fake_kubernetes_answers import status
from integration.kubernetes_faults import follows, stales, watched

pytestmark = [pytest.mark.anyio]


class Program:
    """A credential plugin as kubeconfigs name them: it answers with the token in a file, or otherwise.

    Its token has expired when it is given, so that it is asked again each time, unless ``holds``.
    """

    def __init__(self, fake: FakeKubernetes, folder: Path, *, holds: bool = False) -> None:
        self.token, self.runs, script = fake.token_file, folder / "runs", folder / "plugin.py"
        said = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
        expires = {} if holds else {"expirationTimestamp": "2001-09-09T01:46:40Z"}
        script.write_text(
            textwrap.dedent(f"""
                import json, pathlib, sys, time
                with open({str(self.runs)!r}, "a") as runs:
                    runs.write("x")
                while (token := pathlib.Path({str(self.token)!r}).read_text()) == "hang":
                    time.sleep(0.01)
                if token == "fail":
                    sys.exit("no network")
                print(json.dumps({{**{said!r}, "status": {{"token": token, **{expires!r}}}}}))
            """)
        )
        command = {"apiVersion": said["apiVersion"], "command": sys.executable, "args": [str(script)]}
        fake.user = {"exec": command}

    async def until_run(self, count: int) -> None:
        while len(self.runs.read_text()) < count:
            await asyncio.sleep(0.01)


async def begun_again(fake: FakeKubernetes, follower: Follower) -> None:
    """Both watches ended and began again, and nobody was told."""
    fake.asked.clear()
    fake.end(RECORDS)
    fake.end(SLICES)
    for plural in (RECORDS, SLICES):
        await fake.until_asked(f"watch {plural}", 1)
    await follows(fake, follower)
    assert not stales(follower)
    assert not fake.times(f"list {RECORDS}") + fake.times(f"list {SLICES}"), "as after an outage"


async def test_a_token_that_was_replaced_serves_all_who_were_refused_with_the_old_one(
    fake: FakeKubernetes,
) -> None:
    async def refused(request: web.Request) -> web.StreamResponse:
        """Both at once, so that one of them is the first to read the token again."""
        for plural in (RECORDS, SLICES):
            await fake.until_asked(f"watch {plural}", 1)
        return await status(401, "Unauthorized")(request)

    async with watched(fake) as follower:
        fake.token_file.write_text("second")
        for plural in (RECORDS, SLICES):
            fake.answer(f"watch {plural}", refused)
        await begun_again(fake, follower)
        for plural in (RECORDS, SLICES):
            assert [one.token for one in fake.times(f"watch {plural}")] == ["first", "second"]


class Certificates:
    """Of a server and of its clients, whose files the kubeconfig names."""

    def __init__(self, fake: FakeKubernetes, folder: Path) -> None:
        self._authority = trustme.CA()
        self._certificate, self._key = folder / "client.pem", folder / "client.key"
        self._authority.cert_pem.write_to_path(folder / "ca.pem")
        self.issue("first")
        fake.cluster = {"certificate-authority": str(folder / "ca.pem")}
        fake.user = {"client-certificate": str(self._certificate), "client-key": str(self._key)}

    def issue(self, name: str) -> None:
        """Replace that of the client."""
        issued = self._authority.issue_cert("client.test", common_name=name)
        issued.cert_chain_pems[0].write_to_path(self._certificate)
        issued.private_key_pem.write_to_path(self._key)

    def tls(self) -> ssl.SSLContext:
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.configure_trust(made)
        self._authority.issue_cert("127.0.0.1").configure_cert(made)
        made.verify_mode = ssl.CERT_OPTIONAL
        return made

    def break_key(self) -> None:
        """As it is found while both are being replaced."""
        trustme.CA().issue_cert("other.test").private_key_pem.write_to_path(self._key)


async def test_a_client_certificate_that_was_replaced_is_read_again(
    fake: FakeKubernetes, tmp_path: Path
) -> None:
    certificates = Certificates(fake, tmp_path)
    async with watched(fake, tls=certificates.tls()) as follower:
        certificates.issue("second")
        fake.subject = "second"
        await begun_again(fake, follower)
        assert {one.subject for one in fake.asked} == {"first", "second"}


async def test_a_client_certificate_is_read_again_in_time(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(fake, tmp_path)
    async with watched(fake, tls=certificates.tls()) as follower:
        monkeypatch.setattr(way, "REREAD_USER_S", 0.0)
        certificates.issue("second")
        fake.end(SLICES)
        await fake.until_asked(f"watch {SLICES}", 1)
        assert fake.times(f"watch {SLICES}")[0].subject == "second"
        assert not fake.times(f"watch {RECORDS}"), "watches that are open go on"
        await follows(fake, follower)


async def test_a_key_that_does_not_belong_to_its_certificate_is_not_taken_on(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(fake, tmp_path)
    async with watched(fake, tls=certificates.tls()) as follower:
        monkeypatch.setattr(way, "REREAD_USER_S", 0.0)
        certificates.break_key()
        await begun_again(fake, follower)
        assert {one.subject for one in fake.times(f"watch {SLICES}")} == {"first"}


async def test_connections_with_credentials_of_before_are_closed_when_nobody_uses_them(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way, "IDLE_S", 0.1)
    certificates = Certificates(fake, tmp_path)
    async with watched(fake, tls=certificates.tls()) as follower:
        certificates.issue("second")
        fake.subject = "second"
        await begun_again(fake, follower)
        while fake.connected() != {"second"}:
            await asyncio.sleep(0.01)


async def test_another_current_context_is_for_others(
    fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody works with another cluster: that one's token is not told to ours."""
    async with watched(fake) as follower:
        monkeypatch.setattr(way, "REREAD_USER_S", 0.0)
        content = json.loads(fake.kubeconfig.read_text())
        content["contexts"].append({"name": "other", "context": {"cluster": "fake", "user": "other"}})
        content["users"].append({"name": "other", "user": {"token": "of another cluster"}})
        fake.kubeconfig.write_text(json.dumps({**content, "current-context": "other"}))
        await begun_again(fake, follower)
        assert {one.token for one in fake.times(f"watch {SLICES}")} == {"first"}


async def test_a_program_that_fails_once_costs_no_credentials(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "first"
    program = Program(fake, tmp_path)
    async with watched(fake) as follower:
        monkeypatch.setattr(way, "REREAD_USER_S", 0.0)
        program.token.write_text("fail")
        await begun_again(fake, follower)
        assert {one.token for one in fake.times(f"watch {SLICES}")} == {"first"}


async def test_a_program_that_hangs_keeps_nobody_waiting_and_is_not_started_again(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "first"
    program = Program(fake, tmp_path)
    async with watched(fake) as follower:
        monkeypatch.setattr(way, "REREAD_USER_S", 0.0)
        monkeypatch.setattr(way, "PATIENCE_S", 0.05)
        before = len(program.runs.read_text())
        program.token.write_text("hang")
        fake.end(SLICES)
        await program.until_run(before + 1)
        for _ in range(2):
            await begun_again(fake, follower)
        assert len(program.runs.read_text()) == before + 1
        program.token.write_text("second")
        fake.token = "second"
        await begun_again(fake, follower)


async def test_a_token_that_holds_is_asked_for_again_when_it_was_refused(
    fake: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = "first"
    program = Program(fake, tmp_path, holds=True)
    async with watched(fake) as follower:
        monkeypatch.setattr(way, "REREAD_USER_S", 0.0)
        await begun_again(fake, follower)
        assert program.runs.read_text() == "x"
        program.token.write_text("second")
        fake.token = "second"
        await begun_again(fake, follower)
        assert program.runs.read_text() == "xx"


async def test_a_program_that_gives_no_credentials_is_told_at_the_start(
    fake: FakeKubernetes, tmp_path: Path
) -> None:
    Program(fake, tmp_path).token.write_text("fail")
    fake.write_kubeconfig("http://127.0.0.1:1")
    config = KubernetesConfig(
        namespace=None, kubeconfig=str(fake.kubeconfig), source="KUBECONFIG", answer_s=1.0, takeover_s=1.0
    )
    with pytest.raises(
        ConfigError, match=r"KUBECONFIG.*cannot be used: .* gave no credentials: .*: no network"
    ):
        await credentials.load(config, Programs())
