"""What ``dynamo doctor`` finds, where the environment of the tests has no such trouble itself."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from importlib import metadata

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

from dynamo.cli.checks import adapters, configured, installation, misspelt, neighbours
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


def test_a_missing_extra_is_wrong_only_where_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: registry.Factories[object], scheme: str) -> object:
        raise MissingExtraError(f"{scheme!r} needs the package 'x': pip install 'y[{scheme}]'")

    monkeypatch.setattr(registry.Factories, "factory", missing)
    settings = Settings.from_env({"DYN_DISCOVERY_BACKEND": "file"})
    levels = {one.text.partition(":")[0]: (one.level, one.remedy) for one in adapters(settings)}
    assert levels["discovery file"] == ("wrong", "pip install 'y[file]'")
    assert levels["discovery mem"] == ("note", "pip install 'y[mem]'")
