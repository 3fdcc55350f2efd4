"""What ``dynamo doctor`` finds, where the environment of the tests has no such trouble itself."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
from importlib import metadata
from pathlib import Path

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

from dynamo.cli.checks import adapters, certificates, configured, installation, misspelt, neighbours
from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, MissingExtraError


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_watchfiles(name: str) -> str:
        if name == "watchfiles":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_watchfiles)
    found = [one for one in installation() if "watchfiles" in one.text]
    assert [(one.level, "[file]'" in one.remedy) for one in found] == [("note", True)]


def test_nvidias_wheel_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.level for one in neighbours([])] == ["ok"]
    (found,) = neighbours(["ai-dynamo-runtime 1.0"])
    assert found.level == "wrong"
    assert "uninstall ai-dynamo-runtime" in found.remedy
    native = importlib.machinery.ModuleSpec("dynamo._core", None, origin="/x/_core.so")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: native)
    (found,) = neighbours([])
    assert "/x/_core.so" in found.text


def test_only_a_variable_that_looks_like_a_known_one_is_a_typo() -> None:
    environ = {"DYN_DISCOVERY_BACKEN": "", "DYN_SOMETHING_ELSE": "", "PATH": "", "DYN_NAMESPACE": ""}
    (found,) = misspelt(environ)
    assert (found.level, found.remedy) == ("note", "did you mean DYN_DISCOVERY_BACKEND?")


def test_a_password_in_a_url_is_not_shown() -> None:
    settings = Settings.from_env({"DYN_DISCOVERY_BACKEND": "etcd://me:pw@host"})
    assert not any("pw" in one.text for one in configured(settings))
    with pytest.raises(ConfigError, match=r"DYN_DISCOVERY_BACKEND.*host") as refused:
        Settings.from_env({"DYN_DISCOVERY_BACKEND": "etcd://me:pw@[host"})
    assert "pw" not in str(refused.value)


def test_a_path_of_a_page_is_no_file() -> None:
    settings = Settings.from_env({"DYN_SYSTEM_HEALTH_PATH": "/healthz", "DYN_SYSTEM_LIVE_PATH": "/livez"})
    assert {one.level for one in configured(settings)} == {"ok"}


def test_what_is_named_as_a_file_and_is_none_is_wrong(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    for path, text in (
        (pipe, f"tls_cert_path = {pipe}, which is a pipe, not a file (DYN_TCP_TLS_CERT_PATH)"),
        (tmp_path, f"tls_cert_path = {tmp_path}, which is a directory, not a file (DYN_TCP_TLS_CERT_PATH)"),
    ):
        settings = Settings.from_env({"DYN_TCP_TLS_CERT_PATH": str(path)})
        (wrong,) = (one for one in configured(settings) if one.level != "ok")
        assert (wrong.text, wrong.remedy) == (text, "change DYN_TCP_TLS_CERT_PATH")


def test_a_certificate_that_is_none_is_wrong(tmp_path: Path) -> None:
    (garbage := tmp_path / "garbage.pem").write_text("garbage")
    assert list(certificates(Settings.from_env({}))) == []
    for variable, text in (
        ("DYN_TCP_TLS_CERT_PATH", "not a PEM certificate with its key"),
        ("DYN_TCP_TLS_CA_CERT_PATH", "not a PEM file of certificates"),
        ("DYN_TCP_TLS_KEY_PATH", "is set without DYN_TCP_TLS_CERT_PATH"),
    ):
        (wrong,) = certificates(Settings.from_env({variable: str(garbage)}))
        assert wrong.level == "wrong"
        assert wrong.text.startswith(variable)
        assert text in wrong.text


def test_a_missing_extra_is_wrong_only_where_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: registry.Factories[object], scheme: str) -> object:
        raise MissingExtraError(f"{scheme!r} needs the package 'x': pip install 'y[{scheme}]'")

    monkeypatch.setattr(registry.Factories, "factory", missing)
    settings = Settings.from_env({"DYN_DISCOVERY_BACKEND": "file"})
    levels = {one.text.partition(":")[0]: (one.level, one.remedy) for one in adapters(settings)}
    assert levels["discovery file"] == ("wrong", "pip install 'y[file]'")
    assert levels["discovery mem"] == ("note", "pip install 'y[mem]'")
