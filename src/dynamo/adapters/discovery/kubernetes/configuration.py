"""Where the API server is, in which namespace we look, and who we are there; a bad value is one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from attrs import frozen

from dynamo.core import converters
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.registry import url_options

PODINFO = Path("/etc/podinfo")  # where Dynamo's operator mounts the downward API
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
USER_CONFIG = Path("~/.kube/config")
TAKEOVER_S = 10.0
DOWNWARD = {"pod_name": "metadata.name", "pod_uid": "metadata.uid"}


@frozen(kw_only=True)
class Pod:
    """The pod that this process runs in."""

    name: str
    uid: str
    container: str | None  # where records are named after containers


@frozen(kw_only=True)
class KubernetesConfig:
    """``kubeconfig`` is None inside a cluster; ``source`` is what a message names as the way there.

    ``takeover_s`` is how long a start waits for the end of an earlier process of the same name.
    """

    namespace: str | None
    kubeconfig: str | None
    source: str
    answer_s: float
    takeover_s: float


def read(url: str, settings: Settings) -> KubernetesConfig:
    """``kubernetes://`` or ``kubernetes://namespace?takeover_s=10``. Raises ConfigError."""
    options = url_options(url, ("takeover_s",))
    parts = urlsplit(url)
    if parts.path.strip("/") or parts.fragment or "@" in parts.netloc or ":" in parts.netloc:
        raise ConfigError(f"{url}: expected kubernetes:// or kubernetes://namespace")
    takeover_s = TAKEOVER_S
    if (text := options.get("takeover_s")) is not None:
        try:
            takeover_s = converters.positive_seconds(text)
        except ValueError as error:
            raise ConfigError(f"{url}: takeover_s={text}: {error}") from error
    kubeconfig, source = _way(settings)
    return KubernetesConfig(
        namespace=parts.netloc or _namespace(settings, inside=kubeconfig is None),
        kubeconfig=kubeconfig,
        source=source,
        answer_s=settings.connect_timeout_s,
        takeover_s=takeover_s,
    )


def _way(settings: Settings) -> tuple[str | None, str]:
    """A kubeconfig, or None for the service account; and what said so."""
    if settings.kubeconfig is not None:
        return settings.kubeconfig, settings.source("kubeconfig")
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return None, "KUBERNETES_SERVICE_HOST"
    user = USER_CONFIG.expanduser()
    if user.is_file():
        return str(user), "~/.kube/config"
    raise ConfigError(
        "no way to a Kubernetes API server: this is no pod (KUBERNETES_SERVICE_HOST is not set), KUBECONFIG "
        "is not set, and there is no ~/.kube/config; set KUBECONFIG to the path of a kubeconfig file"
    )


def _home(settings: Settings) -> str | None:
    """Our pod's own namespace, as far as the downward API says it."""
    return settings.pod_namespace or _text(PODINFO / "pod_namespace")


def check_home(settings: Settings, namespace: str) -> None:
    """Raise ConfigError where nobody could serve: an object cannot belong to a pod of another namespace."""
    if (home := _home(settings)) not in (None, namespace):
        raise ConfigError(
            f"a worker's record lies beside its pod, in namespace {home!r} "
            f"({settings.source('pod_namespace')}), and the URL names {namespace!r}: leave that out; only "
            "who calls looks into other namespaces"
        )


def _namespace(settings: Settings, *, inside: bool) -> str | None:
    """None: the kubeconfig says."""
    found = _home(settings)
    if found is None and inside:
        return _text(SERVICE_ACCOUNT / "namespace") or "default"
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except (OSError, ValueError):
        return None


def pod(settings: Settings, read_file: Callable[[Path], str | None] = _text) -> Pod:
    """Who we are, by the environment or the files of the downward API. Raises one ConfigError that names
    everything that is missing.
    """
    found = {name: getattr(settings, name) or read_file(PODINFO / name) for name in DOWNWARD}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        variables = ", ".join(settings.source(name) for name in missing)
        fields = ", ".join(
            f"{{name: {settings.source(name)}, valueFrom: {{fieldRef: {{fieldPath: {DOWNWARD[name]}}}}}}}"
            for name in missing
        )
        raise ConfigError(
            f"who serves on Kubernetes must know its pod: {variables} not set, and no file of that name in "
            f"lower case in {PODINFO}; let the downward API say it, in the container's spec: env: [{fields}]"
        )
    container = settings.container_name if settings.kube_discovery_mode == "container" else None
    if container is None and settings.kube_discovery_mode == "container":
        raise ConfigError(
            f"{settings.source('kube_discovery_mode')}=container needs "
            f"{settings.source('container_name')}: the name of this container"
        )
    return Pod(name=str(found["pod_name"]), uid=str(found["pod_uid"]), container=container)
