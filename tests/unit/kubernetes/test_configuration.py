"""What is wrong with a URL, a pod's identity or the way to the API server is told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamo.adapters.discovery.kubernetes import configuration
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError

POD = {"POD_NAME": "worker-0", "POD_UID": "1-2"}


def settings(environ: dict[str, str] | None = None) -> Settings:
    return Settings.from_env({"KUBECONFIG": "/no/such", **(environ or {})})


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This host may be a pod, and its user have a kubeconfig."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(configuration, "USER_CONFIG", tmp_path / "config")
    monkeypatch.setattr(configuration, "PODINFO", tmp_path / "podinfo")
    monkeypatch.setattr(configuration, "SERVICE_ACCOUNT", tmp_path / "serviceaccount")


def test_the_url_names_a_namespace_and_wins() -> None:
    assert configuration.read("kubernetes://", settings()).namespace is None
    assert configuration.read("kubernetes://", settings({"POD_NAMESPACE": "a"})).namespace == "a"
    read = configuration.read("kubernetes://b?takeover_s=2.5", settings({"POD_NAMESPACE": "a"}))
    assert (read.namespace, read.takeover_s, read.kubeconfig) == ("b", 2.5, "/no/such")


@pytest.mark.parametrize(
    "url, said",
    [
        ("kubernetes://a/b", "expected kubernetes://"),
        ("kubernetes://host:6443", "expected kubernetes://"),
        ("kubernetes://?takeover_s=soon", "takeover_s=soon: expected seconds"),
        ("kubernetes://?takeover_s=0", "more than 0"),
        ("kubernetes://?ttl_s=1", "ttl_s"),
    ],
)
def test_a_bad_url_is_told(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configuration.read(url, settings())


def test_without_a_way_to_a_server_all_ways_are_named() -> None:
    with pytest.raises(ConfigError, match=r"KUBERNETES_SERVICE_HOST .* KUBECONFIG .* ~/.kube/config"):
        configuration.read("kubernetes://", Settings.from_env({}))


def test_a_kubeconfig_that_was_named_wins_over_the_pod_and_that_over_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("{}")
    assert configuration.read("kubernetes://", Settings.from_env({})).source == "~/.kube/config"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    inside = configuration.read("kubernetes://", Settings.from_env({}))
    assert (inside.source, inside.kubeconfig, inside.namespace) == (
        "KUBERNETES_SERVICE_HOST",
        None,
        "default",
    )
    (tmp_path / "serviceaccount").mkdir()
    (tmp_path / "serviceaccount/namespace").write_text("prod\n")
    assert configuration.read("kubernetes://", Settings.from_env({})).namespace == "prod"
    assert configuration.read("kubernetes://", settings()).source == "KUBECONFIG"


def test_who_we_are_is_said_by_variables_or_files(tmp_path: Path) -> None:
    assert configuration.pod(settings(POD)) == configuration.Pod(name="worker-0", uid="1-2", container=None)
    (tmp_path / "podinfo").mkdir()
    (tmp_path / "podinfo/pod_name").write_text("by-file\n")
    (tmp_path / "podinfo/pod_uid").write_text("3-4")
    (tmp_path / "podinfo/pod_namespace").write_text("prod")
    assert configuration.pod(settings()) == configuration.Pod(name="by-file", uid="3-4", container=None)
    assert configuration.pod(settings(POD)).name == "worker-0"
    assert configuration.read("kubernetes://", settings()).namespace == "prod"


def test_all_that_is_missing_is_told_at_once_with_what_to_write() -> None:
    with pytest.raises(ConfigError) as told:
        configuration.pod(settings())
    for part in (
        "POD_NAME, POD_UID not set",
        "fieldPath: metadata.name",
        "fieldPath: metadata.uid",
        "podinfo",
    ):
        assert part in str(told.value)
    with pytest.raises(ConfigError, match="POD_UID not set") as told:
        configuration.pod(settings({"POD_NAME": "worker-0"}))
    assert "metadata.name" not in str(told.value)


def test_container_mode_needs_the_containers_name() -> None:
    mode = {**POD, "DYN_KUBE_DISCOVERY_MODE": "container"}
    with pytest.raises(ConfigError, match="DYN_KUBE_DISCOVERY_MODE=container needs CONTAINER_NAME"):
        configuration.pod(settings(mode))
    assert configuration.pod(settings({**mode, "CONTAINER_NAME": "main"})).container == "main"
    assert configuration.pod(settings({**POD, "CONTAINER_NAME": "main"})).container is None


def test_who_serves_does_so_where_its_pod_is() -> None:
    configuration.check_home(settings(), "anywhere")
    configuration.check_home(settings({"POD_NAMESPACE": "prod"}), "prod")
    with pytest.raises(ConfigError, match=r"namespace 'prod' \(POD_NAMESPACE\), and the URL names 'other'"):
        configuration.check_home(settings({"POD_NAMESPACE": "prod"}), "other")
