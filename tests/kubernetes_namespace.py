"""A fresh namespace of a control plane, and who acts in it: a user, and a kubelet whose pods come and go."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from types import MappingProxyType
from typing import Any

import httpx
from attrs import field, frozen

from control_plane import ControlPlane

CALL_S = 10.0
NODE = "node-1"
DISCOVERABLE = MappingProxyType(
    {
        "nvidia.com/dynamo-discovery-backend": "kubernetes",
        "nvidia.com/dynamo-discovery-enabled": "true",
    }
)
WORKERS = MappingProxyType({"app.kubernetes.io/name": "dynamo"})
MERGE = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
_addresses = count(2)


@frozen(kw_only=True)
class Pod:
    """A pod as it was made; ``template`` is what another of the same name is made from."""

    name: str
    namespace: str
    uid: str
    ip: str
    template: dict[str, Any] = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        """What the downward API tells its containers."""
        return {
            "POD_NAME": self.name,
            "POD_UID": self.uid,
            "POD_NAMESPACE": self.namespace,
            "POD_IP": self.ip,
        }


class Namespace:
    """What a user does in one namespace, as admin; paths are below it."""

    def __init__(self, plane: ControlPlane, client: httpx.AsyncClient, name: str) -> None:
        self.plane, self.name = plane, name
        self._client = client
        self.kubelet = Kubelet(self)

    async def call(
        self, method: str, path: str, body: object = None, *, token: str | None = None, **options: Any
    ) -> Any:
        """One request to the API server; an answer that is no success is an ``httpx.HTTPStatusError``.

        ``path`` as in ``v1/pods/name/status`` or ``nvidia.com/v1alpha1/dynamoworkermetadatas``.
        """
        root = "api" if path.startswith("v1/") else "apis"
        group, version, rest = ("", *path.split("/", 1)) if root == "api" else path.split("/", 2)
        parts = [root, *([group] if group else []), version, "namespaces", self.name, rest]
        return await self.request(method, "/" + "/".join(parts), body, token=token, **options)

    async def request(
        self, method: str, path: str, body: object = None, *, token: str | None = None, **options: Any
    ) -> Any:
        """As ``call``, for the whole path, such as ``/api/v1/nodes``."""
        headers = self.plane.headers(token) | options.pop("headers", {})
        answer = await self._client.request(method, path, json=body, headers=headers, **options)
        if not answer.is_success:
            message = f"{method} {path}: {answer.status_code} {answer.text}"
            raise httpx.HTTPStatusError(message, request=answer.request, response=answer)
        return answer.json()

    async def patch(self, path: str, body: object) -> Any:
        """A strategic merge, or a plain merge for what the API server was not built with."""
        content_type = MERGE if path.startswith("v1/") else "application/merge-patch+json"
        return await self.call("PATCH", path, body, headers={"Content-Type": content_type})

    async def service(self, name: str = "workers", *, selector: Mapping[str, str] = WORKERS) -> None:
        """A headless Service for the pods with these labels; its EndpointSlices bear ``DISCOVERABLE``."""
        body = {
            "metadata": {"name": name, "labels": dict(DISCOVERABLE)},
            "spec": {
                "clusterIP": "None",
                "selector": dict(selector),
                "ports": [{"name": "calls", "port": 9000}],
            },
        }
        await self.call("POST", "v1/services", body)

    async def ready_pods(self) -> set[str]:
        """The names that EndpointSlices say are ready."""
        slices = await self.call("GET", "discovery.k8s.io/v1/endpointslices")
        return {
            endpoint["targetRef"]["name"]
            for part in slices["items"]
            for endpoint in part["endpoints"] or ()
            if endpoint["conditions"]["ready"]
        }

    async def grant(self, account: str, rules: Sequence[Mapping[str, Any]]) -> None:
        """The ServiceAccount exists, and may do in this namespace what these rules of a Role say."""
        subject = {"kind": "ServiceAccount", "name": account, "namespace": self.name}
        rbac = "rbac.authorization.k8s.io"
        for path, body in (
            ("v1/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount"}),
            (f"{rbac}/v1/roles", {"apiVersion": f"{rbac}/v1", "kind": "Role", "rules": list(rules)}),
            (
                f"{rbac}/v1/rolebindings",
                {
                    "apiVersion": f"{rbac}/v1",
                    "kind": "RoleBinding",
                    "roleRef": {"apiGroup": rbac, "kind": "Role", "name": account},
                    "subjects": [subject],
                },
            ),
        ):
            await self.call(
                "PATCH", f"{path}/{account}", body | {"metadata": {"name": account}},
                headers={"Content-Type": APPLY}, params={"fieldManager": "tests", "force": "true"},
            )  # fmt: skip

    async def token(self, account: str, *, expires_s: int = 3600) -> str:
        """A token of an existing ServiceAccount; Kubernetes gives none that lives less than 10 minutes."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": expires_s},
        }
        made = await self.call("POST", f"v1/serviceaccounts/{account}/token", body)
        return str(made["status"]["token"])


class Kubelet:
    """Stands in for the kubelet of one node: pods run, have addresses, and are ready or not."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def start(
        self,
        name: str,
        *,
        labels: Mapping[str, str] = MappingProxyType({}),
        containers: Sequence[str] = ("main",),
        ip: str | None = None,
        ready: bool = True,
    ) -> Pod:
        """A pod that runs, with the labels ``WORKERS`` and ``DISCOVERABLE`` besides its own.

        ``ip`` cannot be 127.0.0.1: EndpointSlices hold no such addresses.
        """
        template = {
            "metadata": {"name": name, "labels": {**WORKERS, **DISCOVERABLE, **labels}},
            "spec": {
                "nodeName": NODE,
                "containers": [{"name": container, "image": "none"} for container in containers],
            },
        }
        return await self.run(template, ip=ip, ready=ready)

    async def run(self, template: dict[str, Any], *, ip: str | None = None, ready: bool = True) -> Pod:
        """A pod that runs, from what a Deployment would make it from, a name and the name of a node."""
        made = await self._namespace.call("POST", "v1/pods", template)
        if ip is None:
            number = next(_addresses)
            ip = f"10.244.{number // 250 % 250}.{number % 250 + 1}"
        pod = Pod(
            name=made["metadata"]["name"],
            namespace=self._namespace.name,
            uid=made["metadata"]["uid"],
            ip=ip,
            template=template,
        )
        status = {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "hostIP": "10.0.0.1",
            "startTime": _now(),
            "conditions": _conditions(ready),
        }
        await self._namespace.patch(f"v1/pods/{pod.name}/status", {"status": status})
        return pod

    async def set_ready(self, pod: Pod, ready: bool) -> None:
        """Its readiness probe succeeds, or fails."""
        await self._namespace.patch(
            f"v1/pods/{pod.name}/status", {"status": {"conditions": _conditions(ready)}}
        )

    async def delete(self, pod: Pod, *, grace_s: int = 0) -> None:
        """Gone at once; with ``grace_s`` it terminates, and stays so until it is deleted without."""
        await self._namespace.call("DELETE", f"v1/pods/{pod.name}", params={"gracePeriodSeconds": grace_s})

    async def replace(self, pod: Pod, *, ip: str | None = None, ready: bool = True) -> Pod:
        """Another pod in its place: the same name, a new uid."""
        await self.delete(pod)
        return await self.run(pod.template, ip=ip, ready=ready)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _conditions(ready: bool) -> list[dict[str, str]]:
    names = ("ContainersReady", "Ready")
    return [{"type": name, "status": str(ready), "lastTransitionTime": _now()} for name in names]


@asynccontextmanager
async def fresh_namespace(plane: ControlPlane) -> AsyncIterator[Namespace]:
    """A namespace that no other test has; it ends with its control plane, as deleting one costs more."""
    async with httpx.AsyncClient(
        base_url=plane.url, verify=plane.tls, timeout=CALL_S, trust_env=False
    ) as client:
        namespace = Namespace(plane, client, f"test-{uuid.uuid4().hex[:8]}")
        await namespace.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace.name}})
        node = await client.post("/api/v1/nodes", json={"metadata": {"name": NODE}}, headers=plane.headers())
        assert node.status_code in (httpx.codes.CREATED, httpx.codes.CONFLICT), node.text
        yield namespace
