"""What ``dynamo doctor`` looks at on Kubernetes: who this process is, what it may do, what is missing."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from dynamo.cli.findings import Finding
from dynamo.cli.kubernetes.rendering import rules
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError

if TYPE_CHECKING:
    from dynamo.adapters.discovery.kubernetes.errors import Resource
    from dynamo.adapters.discovery.kubernetes.way import Way

TOPIC = "kubernetes"
ACCOUNT = "system:serviceaccount:"
FIELDS = {"pod_name": "metadata.name", "pod_uid": "metadata.uid", "pod_ip": "status.podIP"}
Rule: TypeAlias = tuple[str, str, str]
Object: TypeAlias = dict[str, Any]


async def cluster(settings: Settings, timeout_s: float) -> list[Finding]:
    """Who we are, and what the API server says of that; whether it answers at all is discovery's finding."""
    import aiohttp

    from dynamo.adapters.discovery.kubernetes import configuration
    from dynamo.adapters.discovery.kubernetes.way import find

    findings = list(pod(settings))
    scheme, separator, _ = settings.discovery_backend.partition("://")
    try:
        uid = configuration.pod(settings).uid
    except ConfigError:
        uid = None  # and the findings say so
    try:
        config = configuration.read(settings.discovery_backend if separator else f"{scheme}://", settings)
        async with asyncio.timeout(timeout_s):
            way = await find(config)
            try:
                findings += await _asked(way, uid)
            finally:
                await way.close()  # noqa: ASYNC102 - shielded and bounded inside
    except (ConfigError, TimeoutError, OSError, aiohttp.ClientError):
        pass
    return findings


def pod(settings: Settings) -> Iterator[Finding]:
    """What is not known of our pod: a worker needs it, and a program that only calls does not."""
    from dynamo.adapters.discovery.kubernetes import configuration

    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    token = configuration.SERVICE_ACCOUNT / "token"
    if inside and settings.kubeconfig is None and not token.is_file():
        yield Finding(
            topic=TOPIC,
            level="wrong",
            text=f"this pod has no token of a ServiceAccount: no {token}",
            remedy="in the pod's spec: serviceAccountName, and no automountServiceAccountToken: false",
        )
    if settings.kube_discovery_mode == "container" and settings.container_name is None:
        mode, variable = settings.source("kube_discovery_mode"), settings.source("container_name")
        yield Finding(
            topic=TOPIC,
            level="wrong" if inside else "note",
            text=f"{variable} is not set, and {mode}=container needs it",
            remedy=f"in the container's spec: env: [{{name: {variable}, value: the container's own name}}]",
        )
    for field, path in FIELDS.items():
        variable = settings.source(field)
        if getattr(settings, field) is not None or (configuration.PODINFO / field).is_file():
            continue
        needed = "the address of a worker is guessed" if field == "pod_ip" else "a worker cannot register"
        yield Finding(
            topic=TOPIC,
            level="wrong" if inside and field != "pod_ip" else "note",
            text=f"{variable} is not set: {needed}",
            remedy="in the container's spec, as `dynamo manifests kubernetes` prints it: env: "
            f"[{{name: {variable}, valueFrom: {{fieldRef: {{fieldPath: {path}}}}}}}]",
        )


async def _asked(way: Way, uid: str | None) -> list[Finding]:
    from dynamo.adapters.discovery.kubernetes.errors import RECORDS, SLICES
    from dynamo.adapters.discovery.kubernetes.records import READINESS

    allowed, account, versions, resources, slices = await asyncio.gather(
        asyncio.gather(*(_allows(way, rule) for rule in rules())),
        _ask(way, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {}),
        _ask(way, "GET", f"/apis/{RECORDS.group}"),
        _ask(way, "GET", f"/apis/{RECORDS.group}/{RECORDS.version}"),
        _ask(way, "GET", SLICES.path(way.namespace), labelSelector=READINESS),
    )
    if None in allowed:
        return []  # it takes no question of ours: discovery's finding says why
    user = account["status"]["userInfo"]["username"] if account else "this account"
    denied = [rule for rule, yes in zip(rules(), allowed, strict=True) if not yes]
    findings = [*_permissions(user, way.namespace, denied), _kind(RECORDS, versions, resources)]
    if slices is not None:
        findings.append(_visible(slices, READINESS, user, way.namespace, uid))
    return findings


async def _ask(way: Way, method: str, path: str, body: Object | None = None, **query: str) -> Object | None:
    """The answer; None where there is nothing, or nothing for us."""
    response = await way.send(method, path, list(query.items()), body, "application/json")
    try:
        text = await response.read()
    finally:
        response.close()
    if response.status >= 400:
        return None
    answer = json.loads(text)
    assert isinstance(answer, dict)
    return answer


async def _allows(way: Way, rule: Rule) -> bool | None:
    """Whether the API server would let us; None where it does not say."""
    group, resource, verb = rule
    wanted = {"namespace": way.namespace, "group": group, "resource": resource, "verb": verb}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answer = await _ask(way, "POST", path, {"spec": {"resourceAttributes": wanted}})
    return None if answer is None else bool(answer["status"]["allowed"])


def _permissions(user: str, namespace: str, denied: list[Rule]) -> Iterator[Finding]:
    who = user.removeprefix(ACCOUNT).replace(":", "/") if user.startswith(ACCOUNT) else user
    if not denied:
        text = f"{who} may do all that a worker does, in namespace {namespace}"
        yield Finding(topic=TOPIC, level="ok", text=text)
    for group, resource in dict.fromkeys(rule[:2] for rule in denied):
        verbs = ", ".join(verb for *kind, verb in denied if kind == [group, resource])
        yield Finding(
            topic=TOPIC,
            level="wrong",
            text=f"{who} may not {verbs} {resource}.{group} in namespace {namespace}",
            remedy=_applied("rbac", user, namespace),
        )


def _applied(part: str, user: str, namespace: str) -> str:
    name = f" --name {user.rpartition(':')[2]}" if user.startswith(ACCOUNT) else ""
    return f"dynamo manifests kubernetes --only {part} --namespace {namespace}{name} | kubectl apply -f -"


def _kind(records: Resource, versions: Object | None, resources: Object | None) -> Finding:
    wanted = f"{records.plural}.{records.group}/{records.version}"
    if resources is not None and any(one["name"] == records.plural for one in resources["resources"]):
        return Finding(topic=TOPIC, level="ok", text=f"the cluster has {wanted}")
    there = ", ".join(one["version"] for one in versions["versions"]) if versions else "nothing"
    return Finding(
        topic=TOPIC,
        level="wrong",
        text=f"the cluster has no {wanted}; of {records.group} it has {there}",
        remedy="by an administrator: dynamo manifests kubernetes --only crd | kubectl apply -f -",
    )


def _visible(slices: Object, labels: str, user: str, namespace: str, uid: str | None) -> Finding:
    """Whether EndpointSlices name our pod, and as ready: else nobody sees what it serves."""
    pods = {
        endpoint["targetRef"]["uid"]: endpoint.get("conditions", {}).get("ready") is not False
        for one in slices["items"]
        for endpoint in one.get("endpoints") or ()
        if "uid" in endpoint.get("targetRef", {})
    }
    if pods.get(uid or "", uid is None and bool(pods)):
        said = f"call {sum(pods.values())} of {len(pods)} pods ready{', this one too' if uid else ''}"
        return Finding(topic=TOPIC, level="ok", text=f"EndpointSlices in namespace {namespace} {said}")
    if uid in pods:
        return Finding(
            topic=TOPIC,
            level="note",
            text=f"EndpointSlices in namespace {namespace} call this pod not ready: what it serves is hidden",
            remedy="its readiness probe has to succeed: /health of the status server has reasons",
        )
    return Finding(
        topic=TOPIC,
        level="note" if uid is None else "wrong",
        text=f"no EndpointSlice in namespace {namespace} labelled {labels} names "
        f"{'any pod: nobody is seen' if uid is None else 'this pod: nobody sees what it serves'}",
        remedy=f"{_applied('discovery', user, namespace)}; the pods need the labels of its selector",
    )
