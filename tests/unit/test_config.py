"""Every variable is read, in its unit; a bad value is told by the name of what set it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError

READ = [
    ("DYN_DISCOVERY_BACKEND", "file", "discovery_backend", "file"),
    ("DYN_DISCOVERY_BACKEND", "kv_store", "discovery_backend", "etcd"),
    ("DYN_DISCOVERY_BACKEND", "KV_STORE", "discovery_backend", "etcd"),
    ("DYN_DISCOVERY_BACKEND", "memory", "discovery_backend", "mem"),
    ("DYN_DISCOVERY_BACKEND", "File:///Some/Path?ttl_s=3", "discovery_backend", "file:///Some/Path?ttl_s=3"),
    ("DYN_REQUEST_PLANE", "http", "request_plane", "http2"),
    ("DYN_REQUEST_PLANE", "TCP", "request_plane", "tcp"),
    ("DYN_EVENT_PLANE", "nats", "event_plane", "nats"),
    ("NATS_SERVER", "nats://a:4222,nats://b", "nats_server", "nats://a:4222,nats://b"),
    ("NATS_AUTH_USERNAME", "me", "nats_auth_username", "me"),
    ("NATS_AUTH_PASSWORD", "secret", "nats_auth_password", "secret"),
    ("NATS_AUTH_TOKEN", "secret", "nats_auth_token", "secret"),
    ("NATS_AUTH_NKEY", "SUA", "nats_auth_nkey", "SUA"),
    ("NATS_AUTH_CREDENTIALS_FILE", "/me.creds", "nats_auth_credentials_file", "/me.creds"),
    ("NATS_TLS_CA_CERT_PATH", "/ca.pem", "nats_tls_ca", "/ca.pem"),
    ("NATS_TLS_CLIENT_CERT_PATH", "/me.pem", "nats_tls_client_cert", "/me.pem"),
    ("NATS_TLS_CLIENT_KEY_PATH", "/me.key", "nats_tls_client_key", "/me.key"),
    ("DYN_NAMESPACE", "team-a_1", "namespace", "team-a_1"),
    ("DYN_FILE_KV", "/some where/", "file_kv", "/some where/"),
    ("DYN_STATIC_INSTANCES", "a.b.c=tcp://h:1", "static_instances", "a.b.c=tcp://h:1"),
    ("DYN_STATIC_FILE", "x.yaml", "static_file", "x.yaml"),
    ("KUBECONFIG", "~/a:b", "kubeconfig", "~/a:b"),
    ("POD_NAME", "worker-0", "pod_name", "worker-0"),
    ("POD_UID", "1-2-3", "pod_uid", "1-2-3"),
    ("POD_NAMESPACE", "prod", "pod_namespace", "prod"),
    ("POD_IP", "10.0.0.1", "pod_ip", "10.0.0.1"),
    ("CONTAINER_NAME", "main", "container_name", "main"),
    ("DYN_KUBE_DISCOVERY_MODE", "Container", "kube_discovery_mode", "container"),
    ("DYN_WORKER_INDEX", " 7 ", "worker_index", 7),
    ("DYN_TCP_RPC_HOST", "10.0.0.1", "tcp_host", "10.0.0.1"),
    ("DYN_TCP_RPC_PORT", " 65535 ", "tcp_port", 65535),
    ("DYN_TCP_RPC_BIND", "0.0.0.0", "tcp_bind", "0.0.0.0"),
    ("DYN_TCP_TLS_CERT_PATH", "c.pem", "tls_cert_path", "c.pem"),
    ("DYN_TCP_TLS_KEY_PATH", "k.pem", "tls_key_path", "k.pem"),
    ("DYN_TCP_TLS_CA_CERT_PATH", "ca.pem", "tls_ca_cert_path", "ca.pem"),
    ("DYN_TCP_TLS_CLIENT_CERT_PATH", "cc.pem", "tls_client_cert_path", "cc.pem"),
    ("DYN_TCP_TLS_CLIENT_KEY_PATH", "ck.pem", "tls_client_key_path", "ck.pem"),
    ("DYN_TCP_TLS_CLIENT_CA_CERT_PATH", "cca.pem", "tls_client_ca_cert_path", "cca.pem"),
    ("DYN_TCP_TLS_SERVER_NAME", "worker", "tls_server_name", "worker"),
    ("DYN_AUTH_TOKEN", "s3cret", "auth_token", "s3cret"),
    ("DYN_STARTUP_TIMEOUT_S", "0", "startup_timeout_s", 0.0),
    ("DYN_CONNECT_TIMEOUT_S", "2.5", "connect_timeout_s", 2.5),
    ("DYN_INSTANCE_WAIT_S", "1e1", "instance_wait_s", 10.0),
    ("DYN_KEEPALIVE_S", "3", "keepalive_s", 3.0),
    ("DYN_LOOP_STALL_S", "31536000", "loop_stall_s", 31_536_000.0),
    ("DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", "7", "graceful_shutdown_timeout_s", 7.0),
    ("DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT", "8", "graceful_shutdown_timeout_s", 8.0),
    ("DYN_DRAIN_GRACE_S", "0", "drain_grace_s", 0.0),
    ("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "5", "drain_grace_s", 5.0),
    ("DYN_LEASE_LOSS", "Shutdown", "lease_loss", "shutdown"),
    ("DYN_TCP_MAX_MESSAGE_SIZE", "1024", "max_message_bytes", 1024),
    ("DYN_WINDOW_BYTES", "65536", "window_bytes", 65536),
    ("DYN_RECEIVE_BUDGET_BYTES", str(2**40), "receive_budget_bytes", 2**40),
    ("DYN_SYSTEM_PORT", "0", "system_port", 0),
    ("DYN_SYSTEM_HOST", "0.0.0.0", "system_host", "0.0.0.0"),
    ("DYN_SYSTEM_HEALTH_PATH", "/healthz/ready", "system_health_path", "/healthz/ready"),
    ("DYN_SYSTEM_LIVE_PATH", "/livez", "system_live_path", "/livez"),
    ("DYN_SYSTEM_STARTING_HEALTH_STATUS", "Ready", "starting_health_status", "ready"),
    ("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", '["a", "b"]', "health_endpoints", ("a", "b")),
    ("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", "a, b", "health_endpoints", ("a", "b")),
    ("DYN_TELEMETRY", "Prometheus", "telemetry", "prometheus"),
    ("DYN_HEALTH_CHECK_ENABLED", "true", "health_check_enabled", True),
    ("ETCD_ENDPOINTS", "http://a:1,http://b:1", "etcd_endpoints", "http://a:1,http://b:1"),
    ("ETCD_LEASE_TTL", "30", "etcd_lease_ttl", 30),
    ("ETCD_AUTH_USERNAME", "me", "etcd_auth_username", "me"),
    ("ETCD_AUTH_PASSWORD", "secret", "etcd_auth_password", "secret"),
    ("ETCD_AUTH_CA", "/ca.pem", "etcd_auth_ca", "/ca.pem"),
    ("ETCD_AUTH_CLIENT_CERT", "/c.pem", "etcd_auth_client_cert", "/c.pem"),
    ("ETCD_AUTH_CLIENT_KEY", "/c.key", "etcd_auth_client_key", "/c.key"),
    ("DYN_CANARY_WAIT_TIME", "5", "canary_wait_s", 5.0),
    ("DYN_HEALTH_CHECK_REQUEST_TIMEOUT", "300", "health_check_timeout_s", 300.0),
    ("DYN_LOG", "debug", "log", "debug"),
    ("DYN_LOGGING_JSONL", "Yes", "log_jsonl", True),
    ("DYN_LOGGING_JSONL", "off", "log_jsonl", False),
]


@pytest.mark.parametrize("variable,text,field,value", READ)
def test_a_variable_is_read(variable: str, text: str, field: str, value: Any) -> None:
    settings = Settings.from_env({variable: text})
    assert getattr(settings, field) == value
    assert type(getattr(settings, field)) is type(value)
    assert settings.is_set(field)
    assert settings.source(field) == variable
    defaults = Settings.from_env({})
    assert attrs.evolve(settings, **{field: getattr(defaults, field)}) == defaults, "it changes another field"


def test_every_field_has_a_variable_that_is_tested() -> None:
    tested = {variable for variable, *_ in READ}
    for field in attrs.fields(Settings):
        if not field.name.startswith("_"):
            assert field.metadata["variables"]
            assert set(field.metadata["variables"]) <= tested


def test_the_defaults_are_the_documented_ones() -> None:
    settings = Settings.from_env({})
    assert (settings.discovery_backend, settings.request_plane, settings.event_plane) == (
        "etcd",
        "tcp",
        "zmq",
    )
    assert (settings.namespace, settings.tcp_port, settings.lease_loss) == ("dynamo", 0, "reregister")
    assert (settings.startup_timeout_s, settings.connect_timeout_s, settings.instance_wait_s) == (120, 5, 10)
    assert (settings.keepalive_s, settings.loop_stall_s) == (10, 60)
    assert (settings.graceful_shutdown_timeout_s, settings.drain_grace_s) == (30, 1)
    assert settings.max_message_bytes == 32 * 2**20
    assert settings.window_bytes == 256 * 2**10
    assert settings.receive_budget_bytes == 256 * 2**20
    assert settings.file_root.name == "dynamo_store_kv"


@pytest.mark.parametrize("off", ["-1", " -1 "])
def test_the_status_server_is_off_unless_a_port_is_given(off: str) -> None:
    assert Settings.from_env({}).system_port is None
    assert Settings.from_env({"DYN_SYSTEM_PORT": off}).system_port is None
    with pytest.raises(ConfigError, match=r"^DYN_SYSTEM_PORT='-2': expected a port"):
        Settings.from_env({"DYN_SYSTEM_PORT": "-2"})


@pytest.mark.parametrize("text", ["", "  ", "\t"])
def test_an_empty_variable_counts_as_unset(text: str) -> None:
    for variable, *_ in READ:
        settings = Settings.from_env({variable: text})
        assert settings == Settings.from_env({})
        assert settings.source("tcp_port") == "DYN_TCP_RPC_PORT"
        assert not settings.is_set("tcp_port")


def test_the_first_of_two_variables_wins() -> None:
    settings = Settings.from_env({"DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "5", "DYN_DRAIN_GRACE_S": "2"})
    assert settings.drain_grace_s == 2
    assert settings.source("drain_grace_s") == "DYN_DRAIN_GRACE_S"


def test_a_keyword_wins_over_its_variable_and_is_named() -> None:
    settings = Settings.from_env({"DYN_TCP_RPC_PORT": "bad"}, tcp_port=5)
    assert settings.tcp_port == 5
    assert settings.source("tcp_port") == "tcp_port"
    with pytest.raises(ConfigError, match=r"^tcp_port='x': expected a port"):
        Settings.from_env({"DYN_TCP_RPC_PORT": "5"}, tcp_port="x")


def test_what_replaces_a_value_is_named_as_its_source() -> None:
    settings = Settings.from_env({"NATS_SERVER": "a", "DYN_TCP_RPC_PORT": "5"})
    other = settings.replaced("the URL", nats_server="b")
    assert (other.nats_server, other.source("nats_server")) == ("b", "the URL")
    assert (other.tcp_port, other.source("tcp_port")) == (5, "DYN_TCP_RPC_PORT")
    assert settings.source("nats_server") == "NATS_SERVER"
    with pytest.raises(ConfigError, match=r"^the URL='x': expected a port"):
        settings.replaced("the URL", tcp_port="x")


def test_the_real_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_NAMESPACE", "from-outside")
    assert Settings.from_env().namespace == "from-outside"


def test_paths_are_paths(tmp_path: Path) -> None:
    settings = Settings.from_env({}, file_kv=tmp_path, tls_cert_path=tmp_path / "c.pem")
    assert settings.file_root == tmp_path
    assert settings.tls_cert_path == str(tmp_path / "c.pem")


BAD: list[tuple[str, list[str], list[str], list[Any]]] = [
    ("DYN_DISCOVERY_BACKEND", [], ["adapter"], [None, 1, "", " "]),
    ("DYN_DISCOVERY_BACKEND", ["file:///a%00b", "static:///%00", "mem://a\0b"], ["URL", "NUL"], []),
    ("DYN_REQUEST_PLANE", ["tcp://[::1"], ["URL"], []),
    ("DYN_NAMESPACE", ["a.b", "a/b", "..", "-a", "a b", "ä", "x" * 129], ["name"], [None, 1, b"x"]),
    ("DYN_FILE_KV", [], ["path"], [1, b"x", "a\0b"]),
    ("DYN_STATIC_INSTANCES", ["\udcff"], ["UTF-8"], []),
    ("DYN_TCP_RPC_HOST", [], ["text"], [1, b"x", Path("x")]),
    ("KUBECONFIG", ["a\0b"], ["NUL"], []),
    ("ETCD_ENDPOINTS", ["a\0b:1"], ["NUL"], []),
    ("DYN_TCP_RPC_PORT", ["-1", "65536", "http", "1.5", "0x1", "9" * 5000], ["port"], [None, True, 1.0]),
    ("DYN_KUBE_DISCOVERY_MODE", ["node"], ["pod", "container"], [1]),
    ("DYN_WORKER_INDEX", ["-1", "10000", "one", "1.5"], ["0 to 9999"], [True, 1.0]),
    ("DYN_AUTH_TOKEN", ["\udcff"], ["UTF-8"], []),
    ("DYN_STARTUP_TIMEOUT_S", ["-1", "nan", "inf", "5s", "31536001"], ["seconds"], [None, True, 10**400]),
    ("DYN_CONNECT_TIMEOUT_S", ["0", "-0", "-1", "1m"], ["seconds"], [None, 0]),
    ("DYN_KEEPALIVE_S", ["0"], ["more than 0"], []),
    ("DYN_SYSTEM_HEALTH_PATH", ["health", "/", "/a b", "/{x}", "/a//b", "/a?b"], ["/health"], [None, 1]),
    ("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", ["[", "[1]", '["a.b"]', "a b"], ["name"], [None, 1, [1]]),
    ("DYN_LEASE_LOSS", ["ignore", "re-register"], ["reregister, shutdown"], [None, 1]),
    ("DYN_TCP_MAX_MESSAGE_SIZE", ["1023", "32MiB", "1e6", "-5", "1" * 5000], ["bytes"], [None, 2e3, 2**41]),
    ("DYN_LOGGING_JSONL", ["maybe", "2", "ja"], ["1, true, yes, on"], [None, 2, [1]]),
]  # fmt: skip


def cases() -> list[Any]:
    fields = {
        variable: f.name for f in attrs.fields(Settings) for variable in f.metadata.get("variables", ())
    }
    return [
        pytest.param(given, name, value, words, id=f"{name}-{str(value)[:12]!r}")
        for variable, texts, words, objects in BAD
        for name, given, value in (
            *((variable, {"environ": {variable: text}}, text) for text in texts),
            *((fields[variable], {fields[variable]: value}, value) for value in objects),
        )
    ]


@pytest.mark.parametrize("given,name,value,words", cases())
def test_a_bad_value_is_told_by_what_set_it_and_what_is_expected(
    given: Any, name: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env(**({"environ": {}} | given))
    message = str(caught.value)
    assert message.startswith(name)
    for word in words:
        assert word in message
    if name not in ("DYN_AUTH_TOKEN", "auth_token"):
        assert repr(value)[:10] in message
    assert len(message) < 300, "a huge value fills the screen"


def test_a_secret_is_never_shown() -> None:
    with pytest.raises(ConfigError, match=r"^auth_token=\(hidden\): expected text") as caught:
        Settings.from_env({}, auth_token=[b"hush"])
    assert "hush" not in str(caught.value)
    settings = Settings.from_env({"DYN_AUTH_TOKEN": "hush"})
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings)
    with pytest.raises(ConfigError, match=r"^discovery_backend: bad URL 'etcd://\*\*\*@\[h':") as caught:
        Settings.from_env({}, discovery_backend="etcd://user:hush@[h")
    assert "hush" not in str(caught.value)


def test_bytes_of_the_environment_that_are_no_text_are_told_by_name() -> None:
    code = "from dynamo.core.config import Settings; Settings.from_env()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environb, b"DYN_AUTH_TOKEN": b"\xff\xfe"},
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert b"ConfigError: DYN_AUTH_TOKEN=(hidden): expected text in UTF-8" in done.stderr


@pytest.mark.parametrize(
    "option,words",
    [
        ("tcp_prot", "did you mean 'tcp_port'"),
        ("discovery_backends", "did you mean 'discovery_backend'"),
        ("zzz", "known: discovery_backend, request_plane"),
        ("_sources", "known|did you mean"),
        ("sources", "known|did you mean"),
        ("from_env", "known|did you mean"),
    ],
)
def test_an_unknown_option_is_told_with_the_known_ones(option: str, words: str) -> None:
    given: dict[str, Any] = {option: 1}
    with pytest.raises(ConfigError, match=f"^unknown option '{option}'; ({words})"):
        Settings.from_env({}, **given)


def refusal(environ: dict[str, str], **options: Any) -> str | None:
    try:
        Settings.from_env(environ, **options)
    except ConfigError as error:
        return str(error)
    return None


@given(st.sampled_from([variable for variable, *_ in READ]), st.text(max_size=30))
def test_any_text_is_read_or_refused_by_name(variable: str, text: str) -> None:
    assert (refusal({variable: text}) or variable).startswith(variable)


@given(
    st.sampled_from(Settings.options()),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.text()),
)
def test_any_value_is_taken_or_refused_by_name(option: str, value: Any) -> None:
    assert (refusal({}, **{option: value}) or option).startswith(option)


def test_settings_do_not_change() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Settings().tcp_port = 1  # type: ignore[misc]
