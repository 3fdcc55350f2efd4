"""Who we are on the API server, and where that is, as ``kubernetes`` reads kubeconfigs and service accounts.

What of it is trusted: reading those, with client certificates and proxies; not running a program that makes
credentials: see ``program``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from attrs import frozen
from kubernetes.aio.client import Configuration
from kubernetes.aio.config.incluster_config import InClusterConfigLoader
from kubernetes.aio.config.kube_config import KubeConfigLoader, KubeConfigMerger

from dynamo.adapters.discovery.kubernetes.configuration import SERVICE_ACCOUNT, KubernetesConfig
from dynamo.adapters.discovery.kubernetes.program import Programs
from dynamo.core.errors import ConfigError
from dynamo.core.files import check_file

TOKEN = "BearerToken"


@frozen(kw_only=True)
class Found:
    """``namespace`` and ``context`` are those of a kubeconfig."""

    configuration: Configuration
    namespace: str = "default"
    context: str | None = None


async def load(config: KubernetesConfig, programs: Programs, context: str | None = None) -> Found:
    """What is kept now; of a kubeconfig that of ``context``, or of the current one. Raises ConfigError.

    A program that a kubeconfig names may take any time; it ends when nobody waits for it any more.
    """
    with told(config):
        if config.kubeconfig is None:
            found = Found(configuration=_service_account())
        else:
            found = await _kubeconfig(config.kubeconfig, programs, context)
        _complete(found.configuration)
    return found


def _complete(configuration: Configuration) -> None:
    """Raises ValueError for what would be taken for a server that is away."""
    configuration.disable_strict_ssl_verification = True  # as kubectl: authorities of clusters are plain
    server = _checked(configuration.host or "", "server")
    if (proxy := configuration.proxy or _proxy(server)) is not None:
        configuration.proxy = _checked(proxy, "proxy")
    if token := configuration.api_key.get(TOKEN):
        kind, _, secret = token.partition(" ")
        if len((secret := secret.strip()).splitlines()) > 1:  # files end in newlines
            raise ValueError("its token has several lines")
        configuration.api_key[TOKEN] = f"{kind} {secret}"


def _checked(url: str, what: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good:
        shown = re.sub("//[^/]*@", "//", url)  # without a password
        raise ValueError(f"its {what} {shown!r} is no http:// or https:// address")
    return url


@contextmanager
def told(config: KubernetesConfig) -> Iterator[None]:
    """What is wrong with it, as a ConfigError."""
    try:
        yield
    except Exception as error:  # a kubeconfig of another shape raises whatever comes of that
        what = f"the kubeconfig {config.kubeconfig}" if config.kubeconfig else "the pod's service account"
        said = " ".join(str(error).split()) or type(error).__name__
        if config.kubeconfig and isinstance(error, TypeError | AttributeError | LookupError):
            said = f"it has not the shape of one: {said}"
        raise ConfigError(f"{what} ({config.source}) cannot be used: {said}") from error


def _service_account() -> Configuration:
    configuration = Configuration()
    InClusterConfigLoader(
        token_filename=str(SERVICE_ACCOUNT / "token"),
        cert_filename=str(SERVICE_ACCOUNT / "ca.crt"),
        try_refresh_token=False,
    ).load_and_set(configuration)
    return configuration


async def _kubeconfig(paths: str, programs: Programs, name: str | None) -> Found:
    _check_files(paths)
    each_its_own: Any = None  # folder, for paths in it
    loader = KubeConfigLoader(config_dict=KubeConfigMerger(paths).config, config_base_path=each_its_own)
    contexts: list[Any] = loader.list_contexts()
    current: Any = loader.current_context
    context = current if name is None else next((one for one in contexts if one["name"] == name), None)
    if context is None:
        raise ValueError(f"its context {name} is gone")
    name, configuration = str(context["name"]), Configuration()
    loader.set_active_context(name)
    await _run_program(loader, programs)
    await loader.load_and_set(configuration)
    namespace = context["context"].get("namespace") or "default"
    return Found(configuration=configuration, namespace=str(namespace), context=name)


async def _run_program(loader: Any, programs: Programs) -> None:
    """Have what a program gives stand in the section of the user, in place of the program."""
    user = loader._user
    if user is not None and "exec" in user:
        spec, cluster = user.value.pop("exec"), loader._cluster.value
        user.value.update((await programs.credential(spec, cluster, Path(user.path).parent)).of_user())


def _check_files(paths: str) -> None:
    """Raises ConfigError where one is something else, FileNotFoundError where none is there."""
    files = [os.path.expanduser(path) for path in paths.split(os.pathsep)]
    for file in files:
        check_file(file, file)
    if not any(map(os.path.isfile, files)):
        raise FileNotFoundError("no such file")


def _proxy(server: str) -> str | None:
    """What ``https_proxy`` and ``no_proxy`` say of it, or the system where those are unknown."""
    parts, proxies = urlsplit(server), getproxies()
    if proxy_bypass(parts.netloc) or _is_within(parts.hostname or "", proxies.get("no", "")):
        return None
    proxy = proxies.get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _is_within(host: str, listed: str) -> bool:
    """Whether it is an address in one of these networks, as 10.96.0.0/12, which urllib does not know; Go's
    programs do, so that is how clusters with a proxy name their services.
    """
    try:
        address = ip_address(host)
    except ValueError:
        return False
    for text in listed.split(","):
        with suppress(ValueError):  # another name
            if address in ip_network(text.strip(), strict=False):
                return True
    return False
