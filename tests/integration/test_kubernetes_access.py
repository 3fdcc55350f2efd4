"""The way to a real API server: service accounts, tokens that are replaced, what is refused, and outages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import control_plane
from dynamo.adapters.discovery.kubernetes import configuration, credentials, open_kubernetes, way
from dynamo.adapters.discovery.kubernetes.records import data_of
from dynamo.core.config import Settings
from dynamo.core.errors import AuthError, ConfigError, UnavailableError
from dynamo.core.health import Status
from dynamo.core.model import Phase
from dynamo.runtime import DistributedRuntime
from dynamo.testing.discovery import ENDPOINT, SCOPE, an_instance, by_key, following, lease_for
from integration.kubernetes_workers import caller, records, settings, worker
from kubernetes_namespace import Namespace, fresh_namespace
from matrix.deployment import reserved

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]
READ: list[dict[str, Any]] = [
    {"apiGroups": ["nvidia.com"], "resources": ["dynamoworkermetadatas"], "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
]


@pytest.fixture
async def namespace() -> AsyncIterator[Namespace]:
    async with fresh_namespace(control_plane.shared()) as namespace:
        await namespace.service()
        yield namespace


@pytest.fixture
async def account(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a pod of this namespace finds; its account may read."""
    await namespace.grant("reader", READ)
    folder = namespace.plane.service_account_folder(await namespace.token("reader"), namespace.name)
    for module in (configuration, credentials):
        monkeypatch.setattr(module, "SERVICE_ACCOUNT", folder)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(namespace.plane.apiserver.port))
    return folder


async def test_in_a_pod_the_service_account_is_the_way(namespace: Namespace, account: Path) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with open_kubernetes("kubernetes://", Settings.from_env({})) as client:
        assert (await client.check()).detail.startswith(f"Kubernetes, namespace {namespace.name} of https://")
        async with following(client) as follower, worker(namespace, pod) as one:
            await follower.until(lambda live: live == by_key(one.instance))


async def test_a_closed_client_has_closed_its_sockets(namespace: Namespace) -> None:
    """A program may end its loop right after."""
    pod = await namespace.kubelet.start("worker-0")
    for turns in range(10):
        async with open_kubernetes("kubernetes://", settings(namespace, pod)) as client:
            made = client._access._way._connections.sockets
            async with lease_for(client, an_instance(1)) as lease, client.watch(SCOPE):
                await lease.put(an_instance(1))
                for _ in range(turns):
                    await asyncio.sleep(0)
        assert made
        assert [one for one in made if one.fileno() >= 0] == []


async def test_a_token_that_was_replaced_is_read_again(
    namespace: Namespace, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way, "REREAD_S", 0.0)
    async with open_kubernetes("kubernetes://", Settings.from_env({})) as client:
        await namespace.grant("stranger", [])
        (account / "token").write_text(await namespace.token("stranger"))
        health = await client.check()
        assert health.status is Status.DOWN
        assert "stranger" in health.detail
        (account / "token").write_text(await namespace.token("reader") + "\n")
        assert (await client.check()).status is Status.UP


async def test_a_token_that_is_refused_is_read_again_at_once(namespace: Namespace, account: Path) -> None:
    token = (account / "token").read_text()
    (account / "token").write_text("expired")
    with pytest.raises(AuthError, match="refused our credentials"):
        async with open_kubernetes("kubernetes://", Settings.from_env({})):
            pass
    (account / "token").write_text(token)
    async with open_kubernetes("kubernetes://", Settings.from_env({})) as client:
        client._access._way._connections.configuration.api_key[credentials.TOKEN] = "Bearer expired"
        assert (await client.check()).status is Status.UP


async def test_a_kubeconfigs_token_file_is_read_again(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way, "REREAD_USER_S", 0.0)
    await namespace.grant("reader", READ)
    await namespace.grant("stranger", [])
    file = tmp_path / "token"
    file.write_text(await namespace.token("reader") + "\n")
    kubeconfig = namespace.plane.kubeconfig(file, namespace=namespace.name)
    async with open_kubernetes("kubernetes://", Settings.from_env({}, kubeconfig=str(kubeconfig))) as client:
        file.write_text(await namespace.token("stranger"))
        assert "stranger" in (await client.check()).detail
        file.unlink()  # while it is being replaced, say
        assert "stranger" in (await client.check()).detail
        file.write_text(await namespace.token("reader"))
        assert (await client.check()).status is Status.UP


async def test_a_worker_that_may_only_read_is_told_which_rule_is_missing(namespace: Namespace) -> None:
    await namespace.grant("reader", READ)
    kubeconfig = namespace.plane.kubeconfig(await namespace.token("reader"), namespace=namespace.name)
    pod = await namespace.kubelet.start("worker-0")
    options = {**pod.environment, "KUBECONFIG": str(kubeconfig)}
    one = an_instance(1)
    async with open_kubernetes("kubernetes://", Settings.from_env(options)) as client:
        async with lease_for(client, one) as lease:
            with pytest.raises(AuthError, match=r'"dynamoworkermetadatas"\], verbs: \["patch"\]'):
                await lease.put(one)


async def test_a_namespace_that_is_not_there_is_told(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    one = an_instance(1)
    lost = settings(namespace, pod, pod_namespace="nowhere")
    async with open_kubernetes("kubernetes://", lost) as client, lease_for(client, one) as lease:
        with pytest.raises(ConfigError, match="no namespace 'nowhere'"):
            await lease.put(one)


async def test_a_record_is_not_put_where_its_pod_is_not(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with open_kubernetes("kubernetes://default", settings(namespace, pod)) as client:
        async with following(client) as follower:
            assert follower.live == {}  # who only calls may look there
        with pytest.raises(ConfigError, match=rf"namespace '{namespace.name}' \(POD_NAMESPACE\)"):
            async with lease_for(client, an_instance(1)):
                pass


async def test_each_change_is_one_request(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with worker(namespace, pod) as one:
        sent: list[str] = []
        send = way.Way.send

        async def counted(to: way.Way, method: str, *rest: Any) -> Any:
            sent.append(method)
            return await send(to, method, *rest)

        monkeypatch.setattr(way.Way, "send", counted)
        others = [attrs.evolve(ENDPOINT, name=f"endpoint-{number}") for number in range(10)]
        async with caller(namespace) as follower:
            await one.lease.put(attrs.evolve(one.instance, endpoint_id=others[0]))
            await follower.until(lambda live: len(live) == 2)  # so that its watch has begun
            await one.lease.remove(others[0])
            sent.clear()
            for other in others:
                await one.lease.put(attrs.evolve(one.instance, endpoint_id=other))
            for other in others:
                await one.lease.remove(other)
            draining = attrs.evolve(one.instance, phase=Phase.DRAINING)
            await one.lease.put(draining)
            await follower.until(lambda live: live == by_key(draining))
        assert sent == ["PATCH"] * 21


async def test_a_record_is_kept_as_it_was_sent(namespace: Namespace) -> None:
    """Else its worker would take it for changed by hand, and put it right for ever."""
    values: list[Any] = [None, True, "", "\0\u2028<&>", [], {}, [None, {}, []], [1, 1], {"": 0, "a/b": None}]
    values += [2**63 - 1, -(2**63), 0.1, 1.0, -0.0, 5e-324, 1e300]
    values += [1e16, 1.2345678901234568e20, -1.2345678901234568e18, 1e21, 1.2345678901234568e21]
    pod = await namespace.kubelet.start("worker-0")
    async with worker(namespace, pod) as one:
        sent = attrs.evolve(one.instance, metadata={"values": values})
        await one.lease.put(sent)
        (record,) = (await records(namespace)).values()
        assert record["spec"]["data"] == data_of(sent.incarnation, [sent])


async def test_a_record_that_kubernetes_would_change_or_refuse_is_no_outage(namespace: Namespace) -> None:
    pod = await namespace.kubelet.start("worker-0")
    async with worker(namespace, pod) as one, caller(namespace) as follower:
        for metadata, said in (
            ({"big": 2**63}, "integers of 64 bits"),
            ({"big": "x" * 10**6}, "keeps 1000000"),
        ):
            with pytest.raises(ConfigError, match=said):
                await one.lease.put(an_instance(one.instance.instance_id, incarnation=1, metadata=metadata))
        await follower.until(lambda live: live == by_key(one.instance))
        assert len(follower.changes) <= 2


@pytest.mark.parametrize("mistake", ["nobody there", "unknown authority", "no TLS", "no JSON"])
async def test_a_server_that_cannot_be_used_is_named(
    namespace: Namespace, tmp_path: Path, mistake: str
) -> None:
    plane = namespace.plane
    content = json.loads(plane.kubeconfig().read_text())
    cluster = content["clusters"][0]["cluster"]
    expected: tuple[type[Exception], str]
    with reserved(1) as (port,):
        match mistake:
            case "nobody there":
                cluster["server"] = f"https://127.0.0.1:{port}"
                expected = UnavailableError, rf"no Kubernetes API server at https://127.0.0.1:{port} "
            case "unknown authority":
                del cluster["certificate-authority"]
                expected = ConfigError, "certificate of the .* is refused"
            case "no TLS":
                cluster["server"] = f"http://127.0.0.1:{plane.apiserver.port}"
                expected = ConfigError, "HTTP request to an HTTPS server"
            case _:
                cluster["server"] = plane.etcd.url
                expected = ConfigError, "refuses to list"
        (tmp_path / "config").write_text(json.dumps(content))
        environ = {"KUBECONFIG": str(tmp_path / "config")}
        kind, said = expected
        with pytest.raises(kind, match=said) as told:
            async with open_kubernetes("kubernetes://", Settings.from_env(environ)):
                pass
        assert "KUBECONFIG" in str(told.value)
        assert "\n" not in str(told.value)


async def test_a_start_without_a_server_ends_in_one_error(namespace: Namespace, tmp_path: Path) -> None:
    with reserved(1) as (port,):
        kubeconfig = namespace.plane.kubeconfig(server=f"https://127.0.0.1:{port}")
        runtime = DistributedRuntime(
            discovery="kubernetes", kubeconfig=str(kubeconfig), startup_timeout_s=0.3
        )
        async with runtime:
            with pytest.raises(UnavailableError, match=rf"127.0.0.1:{port} .*kubeconfig.* after 0.3 s"):
                await runtime.endpoint(str(ENDPOINT)).client()
