"""What is read of a kubeconfig and of the environment, besides what the vendor's client reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dynamo.adapters.discovery.kubernetes import configuration, credentials, way
from dynamo.adapters.discovery.kubernetes.program import Programs
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def config(tmp_path: Path, *, cluster: Any = None, user: Any = None, **context: str) -> Any:
    content = {
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443", **(cluster or {})}}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", **context}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(json.dumps(content))
    return configuration.read("kubernetes://", Settings.from_env({"KUBECONFIG": str(tmp_path / "config")}))


async def load(config: Any) -> credentials.Found:
    return await credentials.load(config, Programs())


async def test_the_context_names_the_namespace_and_the_server(tmp_path: Path) -> None:
    found = await load(config(tmp_path))
    assert (found.configuration.host, found.configuration.proxy) == ("https://10.0.0.1:6443", None)
    assert (found.namespace, found.context) == ("default", "x")
    assert (await load(config(tmp_path, namespace="prod"))).namespace == "prod"


async def test_a_token_is_read_without_the_newline_that_files_end_in(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    found = await load(config(tmp_path, user={"tokenFile": str(tmp_path / "token")}))
    assert found.configuration.api_key == {credentials.TOKEN: "Bearer secret"}


async def test_a_proxy_of_the_environment_is_taken_unless_the_kubeconfig_or_no_proxy_says_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    found = await load(config(tmp_path))
    assert found.configuration.proxy == "http://proxy:3128"
    found = await load(config(tmp_path, cluster={"proxy-url": "http://other:1"}))
    assert found.configuration.proxy == "http://other:1"
    monkeypatch.setenv("no_proxy", "10.0.0.1")
    found = await load(config(tmp_path))
    assert found.configuration.proxy is None


@pytest.mark.parametrize(
    "host, listed, expected",
    [
        ("10.0.0.1", "localhost, 10.0.0.0/8,.svc", None),
        ("10.0.0.1", "10.0.0.5/8", None),
        ("10.0.0.1", "10.96.0.0/12,fd00::/8,10.0.0.1/99", "http://proxy:3128"),
        ("[fd00::1]", "fd00::/8", None),
        ("[fd00::1]", "fd00::1", None),
        ("api.team.svc", "10.0.0.0/8,.svc", None),
        ("api.example.com", "10.0.0.0/8,.svc", "http://proxy:3128"),
    ],
)
async def test_networks_without_a_proxy_are_known_as_in_programs_of_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, listed: str, expected: str | None
) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", listed)
    found = await load(config(tmp_path, cluster={"server": f"https://{host}:6443"}))
    assert found.configuration.proxy == expected


@pytest.mark.parametrize("text", ["a: [", "just text", "{}", "[]", ""])
async def test_what_is_no_kubeconfig_is_one_line(tmp_path: Path, text: str) -> None:
    read = config(tmp_path)
    (tmp_path / "config").write_text(text)
    with pytest.raises(ConfigError, match=r"the kubeconfig .*config \(KUBECONFIG\) cannot be used: ") as told:
        await load(read)
    assert "\n" not in str(told.value)
    if text == "just text":
        assert "cannot be used: it has not the shape of one: " in str(told.value)


@pytest.mark.parametrize(
    "server", ["", "10.0.0.1:6443", "ftp://10.0.0.1", "https://:6443", "https://[::1", "https://a:99999"]
)
async def test_a_server_that_is_no_address_is_not_waited_for(tmp_path: Path, server: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot be used: .*{re.escape(repr(server))}"):
        await load(config(tmp_path, cluster={"server": server}))


async def test_a_proxy_that_we_cannot_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "proxy:3128")  # as curl and Go take it
    assert (await load(config(tmp_path))).configuration.proxy == "http://proxy:3128"
    with pytest.raises(ConfigError, match=r"cannot be used: .*'socks5://proxy:1080'"):
        await load(config(tmp_path, cluster={"proxy-url": "socks5://me:secret@proxy:1080"}))


async def test_a_token_of_two_lines_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used: its token has several lines") as told:
        await load(config(tmp_path, user={"token": "secret\nand more"}))
    assert "secret" not in str(told.value)


async def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="cannot be used"):
        await way.find(config(tmp_path, cluster={"certificate-authority": str(tmp_path / "ca.pem")}))


async def test_a_kubeconfig_that_is_no_file_is_told_as_what_it_is(tmp_path: Path) -> None:
    read = configuration.read(
        "kubernetes://", Settings.from_env({"KUBECONFIG": f"{tmp_path / 'a'}:{tmp_path}"})
    )
    says = (
        rf"the kubeconfig .*:{tmp_path} \(KUBECONFIG\) cannot be used: {tmp_path}: is a directory, not a file"
    )
    with pytest.raises(ConfigError, match=says):
        await load(read)
