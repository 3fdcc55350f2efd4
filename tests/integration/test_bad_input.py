"""What users get wrong before anything runs: variables, options, names, static instances, ports, directories.

Each is a typed error in one line that names the thing, the address or the variable, and the way out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo.core.errors import (
    ConfigError,
    ConflictError,
    DynamoError,
)
from dynamo.runtime import DistributedRuntime
from integration.refusals import busy_port, check, echo, free_port, make
from unit.deployments import PATH, fresh

pytestmark = pytest.mark.anyio

NOBODY = 65534


async def refused(error: type[DynamoError], *words: str, **options: Any) -> None:
    """A runtime with these options fails to serve, with this class and these words, in one line."""
    began = time.monotonic()
    with pytest.raises(error) as caught:
        async with make(**options) as runtime, runtime.endpoint(PATH).serve(echo):
            pass
    assert time.monotonic() - began < 5
    check(caught.value, error, words)


# Variables and options


@pytest.mark.parametrize(
    "variable,value,words",
    [
        ("DYN_DISCOVERY_BACKEND", "fil", ("unknown discovery 'fil'", "did you mean 'file'")),
        ("DYN_DISCOVERY_BACKEND", "zookeeper", ("unknown discovery 'zookeeper'", "file", "mem", "static")),
        ("DYN_REQUEST_PLANE", "tpc", ("unknown request plane 'tpc'", "did you mean 'tcp'")),
        ("DYN_NAMESPACE", "a/b", ("bad namespace name 'a/b'", "A-Z a-z 0-9 _ -")),
        ("DYN_TCP_RPC_PORT", "http", ("'http'", "expected a port, 0 to 65535")),
        ("DYN_TCP_RPC_HOST", "no-such-host.invalid", ("no-such-host.invalid:0", "does not resolve")),
        ("DYN_TCP_RPC_HOST", "192.0.2.1", ("cannot listen on 192.0.2.1:0", "to an address of this host")),
        ("DYN_KEEPALIVE_S", "0", ("'0'", "more than 0 seconds")),
        ("DYN_LEASE_LOSS", "ignore", ("'ignore'", "reregister, shutdown")),
        ("DYN_TCP_MAX_MESSAGE_SIZE", "32MiB", ("'32MiB'", "a number of bytes, such as 33554432")),
    ],
)
async def test_a_variable(
    variable: str, value: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_DISCOVERY_BACKEND", fresh())
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        async with DistributedRuntime() as runtime, runtime.endpoint(PATH).serve(echo):
            pass
    check(caught.value, ConfigError, (variable, *words))


def test_a_program_ends_with_the_message_on_its_last_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from dynamo.runtime import DistributedRuntime; DistributedRuntime()"],
        env={**os.environ, "DYN_TCP_RPC_PORT": "99999"},
        capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "dynamo.core.errors.ConfigError: DYN_TCP_RPC_PORT='99999': expected a port, 0 to 65535"


async def test_a_default_backend_that_is_not_there_names_those_that_need_no_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DYN_DISCOVERY_BACKEND", raising=False)
    with pytest.raises(DynamoError) as caught:
        async with DistributedRuntime(startup_timeout_s=0.5) as runtime, runtime.endpoint(PATH).serve(echo):
            pass
    for words in ("etcd", "DYN_DISCOVERY_BACKEND", "mem (one process), file (one host) or static"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"discoveri": "mem"}, ("unknown option 'discoveri'", "did you mean 'discovery_backend'")),
        ({"discovery": "file:///tmp/x?ttl=3"}, ("file:///tmp/x?ttl=3", "unknown option 'ttl'", "ttl_s")),
        ({"discovery": "mem://x?ttl_s=fast"}, ("mem://x?ttl_s=fast", "0.1 to 86400 seconds")),
        ({"discovery": "file:///tmp/a%00b"}, ("discovery_backend", "'file:///tmp/a%00b'", "no NUL byte")),
        ({"plane": "tcp://?hots=h"}, ("tcp://?hots=h", "unknown option 'hots'", "host, port, bind")),
        ({"plane": "tcp://?port=99999"}, ("tcp://?port=99999", "'99999'", "0 to 65535")),
        ({"plane": "tcp://10.0.0.1:7"}, ("tcp://10.0.0.1:7:", "as tcp://?host=", "DYN_TCP_RPC_PORT")),
        ({"plane": "unix:///run/x"}, ("unix:///run/x:", "DYN_TCP_RPC_PORT")),
        ({"plane": "http://h:7"}, ("http2://h:7:", "as http2://?host=", "DYN_TCP_RPC_PORT")),
        ({"plane": "tcps"}, ("request_plane=tcps is TLS", "set DYN_TCP_TLS_CERT_PATH")),
        ({"plane": "https"}, ("request_plane=https is TLS", "set DYN_TCP_TLS_CERT_PATH")),
        ({"plane": "nats", "nats_auth_nkey": "SUAX"}, ("nats_auth_nkey=(hidden)", "no seed of an nkey")),
        ({"plane": "nats://h:x"}, ("request_plane: bad server 'nats://h:x'", "expected nats://host:port")),
        ({"tcp_port": True}, ("tcp_port=True", "0 to 65535")),
        ({"auth_token": b"secret"}, ("auth_token=(hidden)", "expected text")),
    ],
)
async def test_an_option(options: dict[str, Any], words: tuple[str, ...]) -> None:
    await refused(ConfigError, *words, **options)


# Names


@pytest.mark.parametrize(
    "path,words",
    [
        ("generate", ("'generate'", "'namespace.component.endpoint'")),
        ("a.b.c.d", ("'a.b.c.d'", "'namespace.component.endpoint'")),
        ("a..c", ("bad component name ''",)),
        ("a/b.c.d", ("bad namespace name 'a/b'", "A-Z a-z 0-9 _ -")),
        ("a.b.c ", ("bad endpoint name 'c '",)),
        ("a.b." + "x" * 10_000, ("bad endpoint name 'xxx", "1 to 128")),
        (None, ("None", "'namespace.component.endpoint'")),
    ],
)
async def test_the_path_of_an_endpoint(path: Any, words: tuple[str, ...]) -> None:
    async with make("mem") as runtime:
        with pytest.raises(ConfigError) as caught:
            runtime.endpoint(path)
        check(caught.value, ConfigError, words)


@pytest.mark.parametrize("name", ["", "..", "a.b", "a/b", "a b", "ä", "x" * 129, 7])
async def test_names_one_by_one(name: Any) -> None:
    async with make("mem") as runtime:
        for kind, use in (
            ("namespace", lambda: runtime.namespace(name).component("c").endpoint("e")),
            ("component", lambda: runtime.namespace("n").component(name)),
            ("endpoint", lambda: runtime.namespace("n").component("c").endpoint(name)),
        ):
            with pytest.raises(ConfigError, match=rf"^bad {kind} name {re.escape(repr(name))[:20]}"):
                use()
        with pytest.raises(ConfigError, match=r"^bad instance name"):
            async with runtime.endpoint(PATH).serve(echo, name=name):
                pass


# Static instances


@pytest.mark.parametrize(
    "value,words",
    [
        ("nonsense", ("entry 1 ('nonsense')", "no '='", "expected demo.backend.generate=tcp://")),
        ("a.b.c=", ("entry 1", "is no address", "tcp://host:port")),
        ("a.b=tcp://h:1", ("entry 1 ('a.b=tcp://h:1')", "'namespace.component.endpoint'")),
        ("a..c=tcp://h:1", ("bad component name ''",)),
        ("a.b.c=tcp://h", ("'tcp://h'", "a port from 1 to 65535")),
        ("a.b.c=tcp://h:99999", ("'tcp://h:99999'", "Port out of range 0-65535")),
        ("a.b.c=tcp://[::1:5", ("'tcp://[::1:5'", "tcp://host:port")),
        ("x.y.z=tcp://h:1;a.b.c=h:1", ("entry 2 ('a.b.c=h:1')", "tcp://host:port")),
        ("a.b.c=tcp://h:1#x", ("behind '#' stands the instance id",)),
        ("a.b.c=tcp://h:1#0", ("behind '#' stands the instance id",)),
        ("a.b.c=tcp://h:1,tcp://h:1", ("address 2", "declared twice")),
        (";;", ("declares nothing",)),
    ],
)
async def test_static_instances_in_a_variable(
    value: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_STATIC_INSTANCES", value)
    await refused(ConfigError, "DYN_STATIC_INSTANCES", *words, discovery="static")


@pytest.mark.parametrize(
    "content,words",
    [
        ("a: [", ("not YAML", "line 1, column 5")),
        ("\ta: 1", ("not YAML", "line 1, column 1")),
        ("", ("holds nothing", "expected a mapping")),
        ("- a", ("holds a list", "expected a mapping")),
        ("a.b.c: 3", ("under 'a.b.c'", "expected an address or a list of them")),
        ("a.b.c: {x: 1}", ("under 'a.b.c'", "expected an address or a list of them")),
        ("a.b.c: [tcp://h]", ("under 'a.b.c', address 1", "a port from 1 to 65535")),
        ("a.b: tcp://h:1", ("under 'a.b'", "'namespace.component.endpoint'")),
        ("a.b.c: tcp://h:1\na.b.c: tcp://h:2", ("line 2", "'a.b.c' appears twice")),
        ("a.b.c: !!python/object/apply:os.getcwd []", ("not YAML", "python/object")),
        (b"a.b.c: \xff", ("not UTF-8",)),
    ],
)
async def test_static_instances_in_a_file(
    content: str | bytes, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "instances.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.setenv("DYN_STATIC_FILE", str(file))
    await refused(ConfigError, "DYN_STATIC_FILE", str(file), *words, discovery="static")


async def test_static_instances_that_are_missing_or_said_twice(tmp_path: Path) -> None:
    await refused(ConfigError, "DYN_STATIC_INSTANCES", "DYN_STATIC_FILE", "such as", discovery="static")
    missing = tmp_path / "missing.yaml"
    await refused(ConfigError, str(missing), "No such file", discovery="static", static_file=missing)
    await refused(ConfigError, str(tmp_path), "is a directory", discovery="static", static_file=tmp_path)
    both = {"static_file": missing, "static_instances": f"{PATH}=tcp://127.0.0.1:1"}
    await refused(ConfigError, "static_instances and static_file are both set", discovery="static", **both)


async def test_a_worker_that_no_static_instance_is_meant_for() -> None:
    elsewhere = f"{PATH}=tcp://192.0.2.1:5"
    await refused(
        ConfigError, "tcp://192.0.2.1:5 (not an address of this host)", "declare one of this host",
        discovery="static", static_instances=elsewhere, tcp_host=None,
    )  # fmt: skip
    with busy_port() as port:
        await refused(
            ConfigError, f"tcp://127.0.0.1:{port}", "in use",
            discovery="static", static_instances=f"{PATH}=tcp://127.0.0.1:{port}",
        )  # fmt: skip
        await refused(
            ConfigError, f"{PATH} is not declared in static_instances", "x.y.z",
            discovery="static", static_instances="x.y.z=tcp://127.0.0.1:0".replace(":0", f":{free_port()}"),
        )  # fmt: skip


# Places


async def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with busy_port() as port:
        monkeypatch.setenv("DYN_TCP_RPC_PORT", str(port))
        await refused(
            ConflictError, f"port in use: 127.0.0.1:{port}", "choose another DYN_TCP_RPC_PORT, or 0"
        )


@contextmanager
def unprivileged() -> Iterator[None]:
    """For the block, permissions bind this process: root has none."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async with make(discovery=f"file://{tempfile.mkdtemp()}"):  # imports what it needs while it may
        pass
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        monkeypatch.setenv("DYN_FILE_KV", folder)
        with unprivileged():
            await refused(
                ConfigError, f"cannot make {folder}/services: Permission denied", "DYN_FILE_KV",
                "give a directory that this user may write", discovery="file",
            )  # fmt: skip


async def test_a_directory_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below"):
        monkeypatch.setenv("DYN_FILE_KV", str(place))
        await refused(ConfigError, str(place), "Not a directory", "DYN_FILE_KV", discovery="file")
    monkeypatch.setenv("DYN_FILE_KV", "/sys/dynamo")  # where not even root may
    with pytest.raises(DynamoError, match=r"cannot make /sys/dynamo: .*DYN_FILE_KV"):
        async with make(discovery="file") as runtime, runtime.endpoint(PATH).serve(echo):
            pass
