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

from dynamo.core.errors import ConfigError
from dynamo.core.model import check_name, shown

T = TypeVar("T")

DISCOVERY_ALIASES = {"kv_store": "etcd", "memory": "mem"}
REQUEST_PLANE_ALIASES = {"http": "http2", "memory": "mem"}
EVENT_PLANE_ALIASES = {"memory": "mem"}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text in UTF-8") from None
    return value


def _path(value: Any) -> str:
    """Any bytes but NUL may be in a path; Python's ``Path`` is fine too."""
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError("expected a path")
    if "\0" in (path := os.fsdecode(value)):
        raise ValueError("expected a path, without NUL bytes")
    return path


def _seconds(value: Any) -> float:
    """Seconds, 0 to one year; a unit is not part of the value."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("expected seconds, such as 2.5")
    try:
        seconds = float(value)
    except (ValueError, OverflowError):
        raise ValueError("expected seconds, such as 2.5") from None
    if not 0 <= seconds <= 31_536_000:
        raise ValueError("expected 0 to 31536000 seconds")
    return seconds


def _positive_seconds(value: Any) -> float:
    if (seconds := _seconds(value)) <= 0:
        raise ValueError("expected more than 0 seconds")
    return seconds


def _bytes(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("expected a number of bytes, such as 33554432")
    try:
        number = int(value)
    except ValueError:
        raise ValueError("expected a number of bytes, such as 33554432") from None
    if not 1024 <= number <= 2**40:
        raise ValueError("expected 1024 to 2^40 bytes")
    return number


def _port(value: Any) -> int:
    try:
        port = -1 if isinstance(value, bool) or not isinstance(value, (str, int)) else int(value)
    except ValueError:
        port = -1
    if not 0 <= port <= 65535:
        raise ValueError("expected a port, 0 to 65535")
    return port


def _port_or_off(value: Any) -> int | None:
    """-1 is Dynamo's way to say that there is none."""
    return None if str(value).strip() == "-1" else _port(value)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    match str(value).strip().lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off" | "":
            return False
    raise ValueError("expected 1, true, yes, on or 0, false, no, off")


def _choice(*choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if (name := str(value).strip().lower()) not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return name

    return convert


def _adapter(aliases: Mapping[str, str]) -> Callable[[Any], str]:
    """A name of any case, or a URL; whether the adapter exists is the registry's to say."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError("expected an adapter's name or a URL")
        scheme, separator, rest = value.strip().partition("://")
        scheme = scheme.lower()
        return f"{aliases.get(scheme, scheme)}{separator}{rest}"

    return convert


def _namespace(value: Any) -> str:
    return check_name("namespace", value)


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
        metadata={"variables": variables, "secret": secret},
        repr=not secret,
    )


@frozen(kw_only=True)
class Settings:
    """Everything that the environment can say. Durations in seconds, sizes in bytes.

    A bad value is a ConfigError that names the variable, shows the value and says what is expected.
    """

    _sources: Mapping[str, str] = attrs.field(factory=dict, alias="sources", repr=False, eq=False)

    discovery_backend: str = _setting("etcd", _adapter(DISCOVERY_ALIASES), "DYN_DISCOVERY_BACKEND")
    request_plane: str = _setting("tcp", _adapter(REQUEST_PLANE_ALIASES), "DYN_REQUEST_PLANE")
    event_plane: str = _setting("zmq", _adapter(EVENT_PLANE_ALIASES), "DYN_EVENT_PLANE")
    namespace: str = _setting("dynamo", _namespace, "DYN_NAMESPACE")

    file_kv: str | None = _setting(None, _path, "DYN_FILE_KV")
    static_instances: str | None = _setting(None, _text, "DYN_STATIC_INSTANCES")
    static_file: str | None = _setting(None, _path, "DYN_STATIC_FILE")

    tcp_host: str | None = _setting(None, _text, "DYN_TCP_RPC_HOST")
    tcp_port: int = _setting(0, _port, "DYN_TCP_RPC_PORT")
    tcp_bind: str | None = _setting(None, _text, "DYN_TCP_RPC_BIND")
    tls_cert_path: str | None = _setting(None, _path, "DYN_TCP_TLS_CERT_PATH")
    tls_key_path: str | None = _setting(None, _path, "DYN_TCP_TLS_KEY_PATH")
    tls_ca_cert_path: str | None = _setting(None, _path, "DYN_TCP_TLS_CA_CERT_PATH")
    tls_client_cert_path: str | None = _setting(None, _path, "DYN_TCP_TLS_CLIENT_CERT_PATH")
    tls_client_key_path: str | None = _setting(None, _path, "DYN_TCP_TLS_CLIENT_KEY_PATH")
    tls_client_ca_cert_path: str | None = _setting(None, _path, "DYN_TCP_TLS_CLIENT_CA_CERT_PATH")
    tls_server_name: str | None = _setting(None, _text, "DYN_TCP_TLS_SERVER_NAME")
    auth_token: str | None = _setting(None, _text, "DYN_AUTH_TOKEN", secret=True)

    startup_timeout_s: float = _setting(120.0, _seconds, "DYN_STARTUP_TIMEOUT_S")
    connect_timeout_s: float = _setting(5.0, _positive_seconds, "DYN_CONNECT_TIMEOUT_S")
    instance_wait_s: float = _setting(10.0, _seconds, "DYN_INSTANCE_WAIT_S")
    keepalive_s: float = _setting(10.0, _positive_seconds, "DYN_KEEPALIVE_S")
    loop_stall_s: float = _setting(60.0, _positive_seconds, "DYN_LOOP_STALL_S")
    graceful_shutdown_timeout_s: float = _setting(
        30.0,
        _seconds,
        "DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS",
        "DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT",
    )
    drain_grace_s: float = _setting(
        1.0, _seconds, "DYN_DRAIN_GRACE_S", "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS"
    )
    lease_loss: str = _setting("reregister", _choice("reregister", "shutdown"), "DYN_LEASE_LOSS")

    max_message_bytes: int = _setting(32 * 2**20, _bytes, "DYN_TCP_MAX_MESSAGE_SIZE")
    window_bytes: int = _setting(256 * 2**10, _bytes, "DYN_WINDOW_BYTES")
    receive_budget_bytes: int = _setting(256 * 2**20, _bytes, "DYN_RECEIVE_BUDGET_BYTES")

    system_port: int | None = _setting(None, _port_or_off, "DYN_SYSTEM_PORT")
    system_host: str | None = _setting(None, _text, "DYN_SYSTEM_HOST")
    telemetry: str | None = _setting(None, _adapter({}), "DYN_TELEMETRY")
    health_check_enabled: bool = _setting(False, _flag, "DYN_HEALTH_CHECK_ENABLED")
    canary_wait_s: float = _setting(10.0, _positive_seconds, "DYN_CANARY_WAIT_TIME")
    health_check_timeout_s: float = _setting(3.0, _positive_seconds, "DYN_HEALTH_CHECK_REQUEST_TIMEOUT")

    log: str = _setting("info", _text, "DYN_LOG")
    log_jsonl: bool = _setting(False, _flag, "DYN_LOGGING_JSONL")

    @property
    def file_root(self) -> Path:
        """Where the file backend keeps its records."""
        return Path(self.file_kv or _default_file_root())

    def source(self, field: str) -> str:
        """What a message should name for ``field``: what it came from, or the variable that would set it."""
        known: tuple[str, ...] = attrs.fields_dict(Settings)[field].metadata["variables"]
        return self._sources.get(field, known[0])

    def is_set(self, field: str) -> bool:
        """Whether ``field`` was given, as an option or by a variable, or is the default."""
        return field in self._sources

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **options: Any) -> Settings:
        """Read the variables; ``options`` are fields by name and win. An empty variable counts as unset.

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
            sources[name] = name
        return cls(sources=sources, **values)

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """The names that ``from_env`` takes."""
        return tuple(field.name for field in attrs.fields(cls) if not field.name.startswith("_"))
