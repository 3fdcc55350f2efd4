"""All settings in one place: each environment variable, its type, unit and default.

``Settings.from_env()`` reads the variables; the same names work as keyword arguments, and win over them.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
from attrs import frozen

from dynamo.core import converters
from dynamo.core.errors import ConfigError
from dynamo.core.model import shown

T = TypeVar("T")

DISCOVERY_ALIASES = {"kv_store": "etcd", "memory": "mem"}
REQUEST_PLANE_ALIASES = {"http": "http2", "memory": "mem"}
EVENT_PLANE_ALIASES = {"memory": "mem"}


def _default_file_root() -> str:
    return str(Path(tempfile.gettempdir()) / "dynamo_store_kv")


def _setting(default: T, convert: Callable[[Any], T], *variables: str, secret: bool = False) -> T:
    """A field read from the first of ``variables`` that is set; only the first one is ours to recommend."""

    def converter(value: Any, owner: Any, attribute: attrs.Attribute[Any]) -> Any:
        if value is None and default is None:
            return None
        try:
            return convert(value)
        except ValueError as error:
            given = "(hidden)" if secret else shown(value)
            name = owner._sources.get(attribute.name, attribute.name)
            if isinstance(error, ConfigError):
                raise ConfigError(f"{name}: {error}") from error
            raise ConfigError(f"{name}={given}: {error}") from error

    return attrs.field(
        default=default,
        converter=attrs.Converter(converter, takes_self=True, takes_field=True),
        metadata={"variables": variables, "convert": convert, "secret": secret},
        repr=not secret,
    )


@frozen(kw_only=True)
class Settings:
    """Everything that the environment can say. Durations in seconds, sizes in bytes.

    A bad value is a ConfigError that names the variable, shows the value and says what is expected.
    """

    _sources: Mapping[str, str] = attrs.field(factory=dict, alias="sources", repr=False, eq=False)

    discovery_backend: str = _setting("etcd", converters.adapter(DISCOVERY_ALIASES), "DYN_DISCOVERY_BACKEND")
    """Where instances are found: ``etcd``, ``kubernetes``, ``file``, ``static`` or ``mem``, or a URL such
    as ``file:///path?ttl_s=5``. ``kv_store`` is another name of ``etcd``. As keyword argument also
    ``discovery``.
    """
    request_plane: str = _setting("tcp", converters.adapter(REQUEST_PLANE_ALIASES), "DYN_REQUEST_PLANE")
    """How instances are called: ``tcp``, ``http2``, ``nats`` or ``mem``, or a URL."""
    event_plane: str = _setting("zmq", converters.adapter(EVENT_PLANE_ALIASES), "DYN_EVENT_PLANE")
    """How events travel. No adapter comes with the library yet, so that nothing reads it."""
    namespace: str = _setting("dynamo", converters.namespace, "DYN_NAMESPACE")
    """The namespace of what names none."""

    file_kv: str | None = _setting(None, converters.path, "DYN_FILE_KV")
    """The folder of the file backend. Default: ``dynamo_store_kv`` in the system's folder for temporary
    files.
    """
    static_instances: str | None = _setting(None, converters.text, "DYN_STATIC_INSTANCES")
    """The addresses of a deployment without discovery:
    ``ns.component.endpoint=tcp://host:port,tcp://host:port;...``
    """
    static_file: str | None = _setting(None, converters.path, "DYN_STATIC_FILE")
    """The same, as the path of a YAML file."""

    etcd_endpoints: str = _setting("http://localhost:2379", converters.text, "ETCD_ENDPOINTS")
    """The members of the etcd cluster, separated by commas. ``https://`` turns TLS on."""
    etcd_lease_ttl: int = _setting(10, converters.whole_seconds, "ETCD_LEASE_TTL")
    """How long a dead worker stays listed in etcd at most, and how long an owner waits before it takes its
    lease for lost.
    """
    etcd_auth_username: str | None = _setting(None, converters.text, "ETCD_AUTH_USERNAME")
    """etcd's user, where it wants one."""
    etcd_auth_password: str | None = _setting(None, converters.text, "ETCD_AUTH_PASSWORD", secret=True)
    """That user's password."""
    etcd_auth_ca: str | None = _setting(None, converters.path, "ETCD_AUTH_CA")
    """The authorities (PEM) that etcd's certificate is checked by. Default: the system's."""
    etcd_auth_client_cert: str | None = _setting(None, converters.path, "ETCD_AUTH_CLIENT_CERT")
    """Our certificate (PEM) for an etcd that wants one."""
    etcd_auth_client_key: str | None = _setting(None, converters.path, "ETCD_AUTH_CLIENT_KEY")
    """Its key (PEM)."""

    nats_server: str = _setting("nats://localhost:4222", converters.text, "NATS_SERVER")
    """The NATS servers, separated by commas: each is a way in, the first that answers is taken. ``tls://``
    turns TLS on.
    """
    nats_auth_username: str | None = _setting(None, converters.text, "NATS_AUTH_USERNAME")
    """The user at NATS, where it wants one."""
    nats_auth_password: str | None = _setting(None, converters.text, "NATS_AUTH_PASSWORD", secret=True)
    """That user's password."""
    nats_auth_token: str | None = _setting(None, converters.text, "NATS_AUTH_TOKEN", secret=True)
    """A token, in place of a user."""
    nats_auth_nkey: str | None = _setting(None, converters.text, "NATS_AUTH_NKEY", secret=True)
    """The seed of an nkey, in place of a user."""
    nats_auth_credentials_file: str | None = _setting(None, converters.path, "NATS_AUTH_CREDENTIALS_FILE")
    """A credentials file (JWT and seed), in place of a user."""
    nats_tls_ca: str | None = _setting(None, converters.path, "NATS_TLS_CA_CERT_PATH")
    """The authorities (PEM) that the NATS servers' certificates are checked by. Default: the system's."""
    nats_tls_client_cert: str | None = _setting(None, converters.path, "NATS_TLS_CLIENT_CERT_PATH")
    """Our certificate (PEM) for NATS servers that want one."""
    nats_tls_client_key: str | None = _setting(None, converters.path, "NATS_TLS_CLIENT_KEY_PATH")
    """Its key (PEM), where it is not in the same file."""

    kubeconfig: str | None = _setting(None, converters.text, "KUBECONFIG")
    """How the Kubernetes API server is reached from outside its cluster: the path of a kubeconfig file.
    Default: the pod's service account, else ``~/.kube/config``.
    """
    pod_name: str | None = _setting(None, converters.text, "POD_NAME")
    """The name of the pod that a worker runs in, from the downward API. Default:
    ``/etc/podinfo/pod_name``.
    """
    pod_uid: str | None = _setting(None, converters.text, "POD_UID")
    """That pod's uid. Default: ``/etc/podinfo/pod_uid``."""
    pod_namespace: str | None = _setting(None, converters.text, "POD_NAMESPACE")
    """The Kubernetes namespace that workers register in and are looked for. Default:
    ``/etc/podinfo/pod_namespace``, else the service account's, else the kubeconfig's.
    """
    pod_ip: str | None = _setting(None, converters.text, "POD_IP")
    """The pod's address, which others dial where ``DYN_TCP_RPC_HOST`` says nothing else."""
    kube_discovery_mode: str = _setting(
        "pod", converters.choice("pod", "container"), "DYN_KUBE_DISCOVERY_MODE"
    )
    """What a worker's record on Kubernetes is named after: its ``pod``, or, where several containers of a
    pod serve, its ``container``.
    """
    container_name: str | None = _setting(None, converters.text, "CONTAINER_NAME")
    """The container that a worker runs in, for ``DYN_KUBE_DISCOVERY_MODE=container``."""
    worker_index: int | None = _setting(None, converters.index, "DYN_WORKER_INDEX")
    """Which of the workers of its container this is, from 0; ``dynamo serve`` sets it. Default: the first
    that is free.
    """

    tcp_host: str | None = _setting(None, converters.text, "DYN_TCP_RPC_HOST")
    """The host under which others dial this worker. Default: loopback where discovery stays on one host,
    else the host's own address.
    """
    tcp_port: int = _setting(0, converters.port, "DYN_TCP_RPC_PORT")
    """The port to listen on; 0 takes a free one."""
    tcp_bind: str | None = _setting(None, converters.text, "DYN_TCP_RPC_BIND")
    """The address to listen on, where it is not ``DYN_TCP_RPC_HOST``."""
    tls_cert_path: str | None = _setting(None, converters.path, "DYN_TCP_TLS_CERT_PATH")
    """The worker's certificate (PEM): turns TLS on."""
    tls_key_path: str | None = _setting(None, converters.path, "DYN_TCP_TLS_KEY_PATH")
    """Its key (PEM), where it is not in the same file."""
    tls_ca_cert_path: str | None = _setting(None, converters.path, "DYN_TCP_TLS_CA_CERT_PATH")
    """The authorities (PEM) that a caller trusts. Default: the system's."""
    tls_client_cert_path: str | None = _setting(None, converters.path, "DYN_TCP_TLS_CLIENT_CERT_PATH")
    """The caller's certificate (PEM), for mutual TLS."""
    tls_client_key_path: str | None = _setting(None, converters.path, "DYN_TCP_TLS_CLIENT_KEY_PATH")
    """Its key (PEM), where it is not in the same file."""
    tls_client_ca_cert_path: str | None = _setting(None, converters.path, "DYN_TCP_TLS_CLIENT_CA_CERT_PATH")
    """The authorities (PEM) of callers: a worker takes no caller without a certificate of theirs."""
    tls_server_name: str | None = _setting(None, converters.text, "DYN_TCP_TLS_SERVER_NAME")
    """The name that a caller expects in the worker's certificate, if not the host that it dials."""
    auth_token: str | None = _setting(None, converters.text, "DYN_AUTH_TOKEN", secret=True)
    """A shared secret. Both sides prove that they know it and never send it; over HTTP/2 callers send it, and
    only with TLS or on loopback."""

    startup_timeout_s: float = _setting(120.0, converters.seconds, "DYN_STARTUP_TIMEOUT_S")
    """How long a start waits for a backend that is away."""
    connect_timeout_s: float = _setting(5.0, converters.positive_seconds, "DYN_CONNECT_TIMEOUT_S")
    """How long a connection may take to open."""
    instance_wait_s: float = _setting(10.0, converters.seconds, "DYN_INSTANCE_WAIT_S")
    """How long a call without a deadline waits for an instance."""
    keepalive_s: float = _setting(10.0, converters.positive_seconds, "DYN_KEEPALIVE_S")
    """A link that is silent for so long is probed."""
    loop_stall_s: float = _setting(60.0, converters.positive_seconds, "DYN_LOOP_STALL_S")
    """A lease is kept through a blocked event loop for so long."""
    graceful_shutdown_timeout_s: float = _setting(
        30.0,
        converters.seconds,
        "DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS",
        "DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT",
    )
    """How long calls may take to finish once their worker shuts down."""
    drain_grace_s: float = _setting(
        1.0, converters.seconds, "DYN_DRAIN_GRACE_S", "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS"
    )
    """How long a worker that drains still takes calls, while callers learn of it."""
    lease_loss: str = _setting("reregister", converters.choice("reregister", "shutdown"), "DYN_LEASE_LOSS")
    """What follows when the lease is lost: ``reregister`` as soon as the backend is back, or ``shutdown``."""

    max_message_bytes: int = _setting(32 * 2**20, converters.size_bytes, "DYN_TCP_MAX_MESSAGE_SIZE")
    """The longest item that is sent or taken."""
    window_bytes: int = _setting(256 * 2**10, converters.size_bytes, "DYN_WINDOW_BYTES")
    """How much may be under way, unread, in one direction of one call."""
    receive_budget_bytes: int = _setting(256 * 2**20, converters.size_bytes, "DYN_RECEIVE_BUDGET_BYTES")
    """How much a process holds of what it received and nobody read yet."""

    system_port: int | None = _setting(None, converters.port_or_off, "DYN_SYSTEM_PORT")
    """The port of the status server (``/live``, ``/health``, ``/metrics``); 0 takes a free one, -1 is off."""
    system_host: str | None = _setting(None, converters.text, "DYN_SYSTEM_HOST")
    """The address that the status server listens on. Default: loopback where discovery stays on one host,
    else all.
    """
    system_health_path: str = _setting("/health", converters.url_path, "DYN_SYSTEM_HEALTH_PATH")
    """Where the status server answers readiness probes."""
    system_live_path: str = _setting("/live", converters.url_path, "DYN_SYSTEM_LIVE_PATH")
    """Where the status server answers liveness probes."""
    starting_health_status: str = _setting(
        "notready", converters.choice("notready", "ready"), "DYN_SYSTEM_STARTING_HEALTH_STATUS"
    )
    """What a runtime is that serves nothing: ``ready`` suits a program that only calls."""
    health_endpoints: tuple[str, ...] = _setting(
        (), converters.names("endpoint"), "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS"
    )
    """The endpoints, by name, that must be served before the runtime is ready: ``["generate"]``."""
    telemetry: str | None = _setting(None, converters.adapter({}), "DYN_TELEMETRY")
    """The adapter that observes calls. Default: ``prometheus`` where the status server is on."""
    health_check_enabled: bool = _setting(False, converters.flag, "DYN_HEALTH_CHECK_ENABLED")
    """Send each quiet endpoint the ``health_check_payload`` that it was served with."""
    canary_wait_s: float = _setting(10.0, converters.positive_seconds, "DYN_CANARY_WAIT_TIME")
    """How long an endpoint is quiet before it is sent one."""
    health_check_timeout_s: float = _setting(
        3.0, converters.positive_seconds, "DYN_HEALTH_CHECK_REQUEST_TIMEOUT"
    )
    """How long its answer may take."""

    log: str = _setting("info", converters.text, "DYN_LOG")
    """The level at which the workers of ``dynamo serve`` log."""
    log_jsonl: bool = _setting(False, converters.flag, "DYN_LOGGING_JSONL")
    """``dynamo serve`` prints JSON lines, those of its workers and its own."""

    @property
    def file_root(self) -> Path:
        """Where the file backend keeps its records."""
        return Path(self.file_kv or _default_file_root())

    def source(self, field: str) -> str:
        """What a message should name for ``field``: what it came from, or the variable that would set it."""
        known: tuple[str, ...] = attrs.fields_dict(Settings)[field].metadata["variables"]
        return self._sources.get(field, known[0])

    def source_of(self, variable: str) -> str:
        """``source`` of the field that ``variable`` would set; ``variable`` itself where it sets none."""
        named = (one.name for one in self.fields() if variable in one.metadata["variables"])
        return next(map(self.source, named), variable)

    def replaced(self, source: str, **values: Any) -> Settings:
        """With these values by field, which ``source`` set. Raises ConfigError."""
        return attrs.evolve(self, sources={**self._sources, **dict.fromkeys(values, source)}, **values)

    def is_set(self, field: str) -> bool:
        """Whether ``field`` was given, as an option or by a variable, or is the default."""
        return field in self._sources

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        option_names: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Settings:
        """Read the variables; ``options`` are fields by name and win. An empty variable counts as unset.

        ``option_names`` are what messages call the options, where that is not the field's name.
        Raises ConfigError.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for field in attrs.fields(cls):
            for variable in field.metadata.get("variables", ()):
                if environ.get(variable, "").strip():
                    values[field.name], sources[field.name] = environ[variable].strip(), variable
                    break
        for name, value in options.items():
            if name.startswith("_") or name not in attrs.fields_dict(cls):
                close = difflib.get_close_matches(name, cls.options(), n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(cls.options())}"
                raise ConfigError(f"unknown option {name!r}; {hint}")
            values[name] = value
            sources[name] = (option_names or {}).get(name, name)
        return cls(sources=sources, **values)

    @classmethod
    def fields(cls) -> tuple[attrs.Attribute[Any], ...]:
        """What can be set; the metadata of each have its variables, ours to recommend first."""
        return tuple(field for field in attrs.fields(cls) if not field.name.startswith("_"))

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """The names that ``from_env`` takes."""
        return tuple(field.name for field in cls.fields())
