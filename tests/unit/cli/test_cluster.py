"""What ``dynamo doctor`` says of a pod, before it asks a cluster."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from dynamo.adapters.discovery.kubernetes import configuration
from dynamo.cli.cluster import cluster, pod
from dynamo.core.config import Settings

TOLD = {"POD_NAME": "worker-0", "POD_UID": "1-2", "POD_IP": "10.0.0.1"}


def test_each_lack_is_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(configuration, "PODINFO", tmp_path)
    monkeypatch.setattr(configuration, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    (one,) = pod(Settings.from_env(TOLD))
    assert (one.level, "no token" in one.text) == ("wrong", True)
    (tmp_path / "token").touch()
    found = [(one.level, one.text.partition(" ")[0], one.remedy) for one in pod(Settings.from_env({}))]
    assert [one[:2] for one in found] == [("wrong", "POD_NAME"), ("wrong", "POD_UID"), ("note", "POD_IP")]
    assert "{name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}" in found[1][2]
    (one,) = pod(Settings.from_env({**TOLD, "DYN_KUBE_DISCOVERY_MODE": "container"}))
    assert (one.level, one.text) == (
        "wrong",
        "CONTAINER_NAME is not set, and DYN_KUBE_DISCOVERY_MODE=container needs it",
    )
    assert list(pod(Settings.from_env(TOLD))) == []


def test_files_of_the_downward_api_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(configuration, "PODINFO", tmp_path)
    for name in ("pod_name", "pod_uid"):
        (tmp_path / name).write_text("something")
    assert [one.text.partition(" ")[0] for one in pod(Settings.from_env({}))] == ["POD_IP"]


def test_outside_of_a_cluster_a_worker_is_not_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert {one.level for one in pod(Settings.from_env({}))} == {"note"}


@pytest.mark.anyio
async def test_without_a_way_there_only_the_pod_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    settings = Settings.from_env(
        {**TOLD, "KUBECONFIG": str(tmp_path / "none")}, discovery_backend="kubernetes"
    )
    assert await cluster(settings, 1) == []


@pytest.mark.anyio
async def test_a_program_for_credentials_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    version, code = "client.authentication.k8s.io/v1", "import time; time.sleep(600)"
    program = {"apiVersion": version, "command": sys.executable, "args": ["-c", code]}
    content = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"exec": program}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(json.dumps(content))
    settings = Settings.from_env(
        {**TOLD, "KUBECONFIG": str(tmp_path / "config")}, discovery_backend="kubernetes"
    )
    async with asyncio.timeout(30):
        assert await cluster(settings, 0.3) == []
