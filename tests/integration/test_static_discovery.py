"""Static discovery: what may be declared, and who takes on which address."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from dynamo.adapters.discovery.static import StaticDiscovery, open_static
from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, MissingExtraError
from dynamo.core.model import EndpointId, Instance, Scope
from dynamo.core.ports.discovery import Identity, Snapshot
from dynamo.runtime import DistributedRuntime

pytestmark = pytest.mark.anyio

GENERATE = EndpointId.parse("demo.backend.generate")
PREFILL = EndpointId.parse("demo.prefill.generate")
MAX_ID = 2**53 - 1


@asynccontextmanager
async def opened(text: str = "", url: str = "static://", **variables: str) -> AsyncIterator[StaticDiscovery]:
    settings = Settings.from_env({"DYN_STATIC_INSTANCES": text, **variables})
    async with open_static(url, settings) as discovery:
        yield discovery


async def declared(discovery: StaticDiscovery, scope: Scope | None = None) -> list[tuple[str, str, int]]:
    async with discovery.watch(scope or Scope()) as watch:
        first = await watch.receive()
        assert isinstance(first, Snapshot)
        with anyio.move_on_after(0.01):
            pytest.fail(f"a change: {await watch.receive()}")
        assert all(instance.incarnation == 0 for instance in first.instances)  # any
        return [(str(i.endpoint_id), i.addresses[0], i.instance_id) for i in first.instances]


def served(endpoint_id: EndpointId, identity: Identity, *more: str) -> Instance:
    """What core registers for who took on ``identity``."""
    addresses = (*more, identity.address or "")
    return Instance(
        endpoint_id=endpoint_id, instance_id=identity.instance_id, incarnation=5, addresses=addresses
    )


# What is declared


async def test_one_line_declares_instances_in_order_with_their_ids() -> None:
    text = """
        demo.backend.generate = tcp://Node-1:7000 , tcp://[::1]:07001#9;
        demo.prefill.generate=tcps://10.0.0.3:7000;;
        demo.backend.metrics=tcp://node-1:7000,mem://inside#12;
    """
    node_1 = int.from_bytes(hashlib.sha256(b"tcp://node-1:7000").digest()[:8], "big") >> 11
    async with opened(text) as discovery:
        found = await declared(discovery)
        assert found == [
            ("demo.backend.generate", "tcp://node-1:7000", node_1),
            ("demo.backend.generate", "tcp://[::1]:7001", 9),
            ("demo.prefill.generate", "tcps://10.0.0.3:7000", found[2][2]),
            ("demo.backend.metrics", "tcp://node-1:7000", node_1),
            ("demo.backend.metrics", "mem://inside", 12),
        ]
        assert await declared(discovery, Scope.of(PREFILL)) == found[2:3]
    assert node_1 == 8965009851924670  # for ever: another version of us may run beside this one


async def test_an_id_given_once_holds_wherever_the_address_stands() -> None:
    async with opened("a.b.c=tcp://h:1;a.b.d=tcp://h:1#7;a.b.e=tcp://h:1") as discovery:
        assert {instance_id for _, _, instance_id in await declared(discovery)} == {7}


async def test_a_yaml_file_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "our instances.yaml"
    file.write_text(
        """
        # one list for each endpoint
        demo.backend.generate:
          - tcp://10.0.0.1:7000
          - tcp://10.0.0.2:7000#7  # given
        demo.prefill.generate: tcp://10.0.0.3:7000
        """
    )
    inline = "demo.backend.generate=tcp://10.0.0.1:7000,tcp://10.0.0.2:7000#7;demo.prefill.generate=tcp://10.0.0.3:7000"
    async with opened(inline) as discovery:
        expected = await declared(discovery)
    async with opened(DYN_STATIC_FILE=str(file)) as discovery:
        assert await declared(discovery) == expected
    async with opened(url=f"static://{str(file).replace(' ', '%20')}") as discovery:
        assert await declared(discovery) == expected
    for name in ("marked.yaml", "marked.json"):  # as Windows' editors write UTF-8
        (tmp_path / name).write_text('{"demo.prefill.generate": "tcp://10.0.0.3:7000"}', encoding="utf-8-sig")
        async with opened(DYN_STATIC_FILE=str(tmp_path / name)) as discovery:
            assert await declared(discovery) == expected[2:]


async def test_json_needs_no_yaml_and_yaml_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "i.json").write_text(json.dumps({"a.b.c": ["tcp://h:1#1"], "a.b.d": "tcp://h:2#2"}))
    async with opened(DYN_STATIC_FILE=str(tmp_path / "i.json")) as discovery:
        assert [instance_id for _, _, instance_id in await declared(discovery)] == [1, 2]
    (tmp_path / "i.yaml").write_text("a.b.c: tcp://h:1")
    with pytest.raises(MissingExtraError, match=r"DYN_STATIC_FILE=.*i\.yaml: .*pip install '.*\[static\]'"):
        async with opened(DYN_STATIC_FILE=str(tmp_path / "i.yaml")):
            pass


def test_yaml_is_loaded_for_a_yaml_file_only() -> None:
    script = """
        import asyncio, sys
        from dynamo.core import registry
        from dynamo.core.config import Settings

        async def main():
            async with registry.discovery.open("static", Settings.from_env({"DYN_STATIC_INSTANCES": "a.b.c=tcp://h:1"})):
                assert "yaml" not in sys.modules
        asyncio.run(main())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)


@pytest.mark.parametrize(
    "text, says",
    [
        (" ;; ", r"DYN_STATIC_INSTANCES: declares nothing; expected demo\.backend\.generate=tcp://"),
        ("demo.backend.generate", r"entry 1 \('demo.backend.generate'\): no '='; expected demo"),
        ("a.b.c=tcp://h:1;a.b=tcp://h:1", r"entry 2 \('a\.b=tcp://h:1'\): bad endpoint path 'a\.b'"),
        ("a.b/../c.d=tcp://h:1", r"entry 1 .*bad component name 'b/'|bad endpoint path"),
        ("a.b.c=", r"entry 1 .*, address 1: '' is no address; expected tcp://host:port"),
        ("a.b.c=tcp://h:1,,tcp://h:2", r"address 2: '' is no address"),
        ("a.b.c=h:7000", r"address 1: 'h:7000' is no address; expected tcp://host:port"),
        ("a.b.c=tcp://h", r"'tcp://h': expected tcp://host:port, with a port from 1 to 65535"),
        ("a.b.c=tcp://:7000", r"expected tcp://host:port"),
        ("a.b.c=tcp://h:0", r"with a port from 1 to 65535"),
        ("a.b.c=tcp://h:65536", r"Port out of range 0-65535; expected tcp://host:port"),
        ("a.b.c=tcp://h:seven", r"'tcp://h:seven': .*expected tcp://host:port"),
        ("a.b.c=tcp://[::1:7", r"'tcp://\[::1:7': .*expected tcp://host:port"),
        ("a.b.c=tcp://h:1/path", r"expected tcp://host:port"),
        ("a.b.c=tcp://me:secret@h:1", r"expected tcp://host:port"),
        ("a.b.c=tcp://0.0.0.0:7000", r"nobody can call 0\.0\.0\.0; declare the address that others call"),
        ("a.b.c=tcp://h:1 tcp://h:2", r"is no address"),
        ("a.b.c=tcp://h\1:1", r"is no address"),
        ("a.b.c=tcp://10.0..1:7", r"'10\.0\.\.1' is no name of a host; expected tcp://host:port"),
        (f"a.b.c=tcp://{'h' * 64}:7", r"'h+\.\.\. is no name of a host"),
        ("a.b.c=tcp://h:1#", r"behind '#' stands the instance id, 1 to 9007199254740991"),
        ("a.b.c=tcp://h:1#0", r"behind '#' stands the instance id"),
        ("a.b.c=tcp://h:1#x7", r"behind '#' stands the instance id"),
        (f"a.b.c=tcp://h:1#{MAX_ID + 1}", r"behind '#' stands the instance id"),
        (f"a.b.c=tcp://h:1#{'9' * 5000}", r"behind '#' stands the instance id"),
        ("a.b.c=tcp://h:1#\u0663", r"behind '#' stands the instance id"),
        ("a.b.c=tcp://h:1,tcp://H:1", r"address 2: tcp://h:1 is declared twice for a\.b\.c"),
        ("a.b.c=tcp://h:1;a.b.c=tcp://h:1", r"entry 2 .*tcp://h:1 is declared twice"),
        ("a.b.c=tcp://h:1#7,tcp://h:2#7", r"tcp://h:2 and tcp://h:1 are both instance 7; give one of them"),
        ("a.b.c=tcp://h:1#7;a.b.d=tcp://h:1#8", r"entry 2 .*tcp://h:1 is instance 8 here and 7 in entry 1"),
    ],
)
def test_a_bad_line_is_refused_with_the_place_and_an_example(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        registry.discovery.open("static", Settings.from_env({"DYN_STATIC_INSTANCES": text or " "}))
    assert str(caught.value).startswith("DYN_STATIC_INSTANCES: ")


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("i.yaml", "", r"holds nothing; expected a mapping, such as demo\.backend"),
        ("i.yaml", "- a\n- b", r"holds a list; expected a mapping"),
        ("i.yaml", "just text", r"holds a str; expected a mapping"),
        ("i.yaml", "a.b.c: [", r"not YAML: .* line 1, column 9: "),
        (
            "i.yaml",
            "a.b.c: {tcp: 1}",
            r"under 'a\.b\.c': expected an address or a list of them, such as demo",
        ),
        ("i.yaml", "a.b.c: 7", r"under 'a\.b\.c': expected an address or a list of them"),
        ("i.yaml", "a.b.c: []", r"declares nothing; expected demo"),
        ("i.yaml", "a.b.c: [tcp://h:1, 7]", r"under 'a\.b\.c', address 2: 7 is no address"),
        ("i.yaml", "a.b.c: [tcp://h:1]\na.b.d: [[x]]", r"under 'a\.b\.d', address 1: \['x'\] is no address"),
        ("i.yaml", "a.b: tcp://h:1", r"under 'a\.b': bad endpoint path 'a\.b'"),
        ("i.yaml", "1: tcp://h:1", r"under 1: bad endpoint path"),
        ("i.yaml", "a.b.c: tcp://h:1\n\na.b.c: tcp://h:2", r"i\.yaml, line 3: 'a\.b\.c' appears twice"),
        (
            "i.yaml",
            "a.b.c: !!python/object/apply:os.getcwd []",
            r"not YAML: could not determine a constructor",
        ),
        ("i.yaml", "? [a, b]\n: tcp://h:1", r"not YAML: .*unhashable key"),
        ("i.yaml", "[" * 3000, r"not YAML: "),
        ("i.yaml", "a.b.c: !!bool maybe", r"not YAML: KeyError: 'maybe'"),
        ("i.yaml", "a.b.c: !!timestamp soon", r"not YAML: AttributeError: "),
        ("i.yaml", "a.b.c: !!int ''", r"not YAML: IndexError: "),
        ("i.json", "[" * 300000, r"not JSON: "),
        ("i.json", '{"a.b.c": "tcp://h:1"', r"not JSON: Expecting"),
        ("i.json", '{"a.b.c": "tcp://h:1", "a.b.c": "tcp://h:2"}', r"'a\.b\.c' appears twice"),
        ("i.json", "[1]", r"holds a list"),
    ],
)
async def test_a_bad_file_is_refused_with_the_place(
    name: str, content: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        async with opened(DYN_STATIC_FILE=str(tmp_path / name)):
            pass
    assert str(caught.value).startswith(f"DYN_STATIC_FILE={tmp_path / name}")


async def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for file, says in [
        (tmp_path / "none.yaml", "cannot be read: No such file"),
        (tmp_path, "is a directory, not a file"),
        (Path(os.devnull), "is a device, not a file"),
    ]:
        with pytest.raises(ConfigError, match=f"^DYN_STATIC_FILE={file}: {says}.*or set DYN_STATIC"):
            async with asyncio.timeout(5), opened(DYN_STATIC_FILE=str(file)):
                pass
    (tmp_path / "i.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        async with opened(DYN_STATIC_FILE=str(tmp_path / "i.yaml")):
            pass


async def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "i.yaml")
    writer = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # who reads waits, but only for this test
    try:
        with pytest.raises(ConfigError, match=f"^DYN_STATIC_FILE={pipe}: is a pipe, not a file; give "):
            async with asyncio.timeout(5), opened(DYN_STATIC_FILE=str(pipe)):
                pass
    finally:
        os.close(writer)


def test_it_must_be_said_in_one_place() -> None:
    with pytest.raises(ConfigError, match=r"needs DYN_STATIC_INSTANCES, such as .*, or DYN_STATIC_FILE"):
        open_static("static://", Settings())
    both = Settings.from_env({"DYN_STATIC_INSTANCES": "a.b.c=tcp://h:1", "DYN_STATIC_FILE": "x.yaml"})
    with pytest.raises(ConfigError, match="DYN_STATIC_INSTANCES and DYN_STATIC_FILE are both set"):
        open_static("static://", both)
    with pytest.raises(ConfigError, match="expected static:// or static:///path"):
        open_static("static://host/x", Settings())
    with pytest.raises(ConfigError, match="unknown option 'ttl_s'"):
        open_static("static:///x?ttl_s=1", Settings())


# Who takes on which address


@contextmanager
def listeners() -> Iterator[Callable[[], int]]:
    """Makes ports of loopback that are in use until the end."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]


def free_ports(count: int) -> list[int]:
    with listeners() as listen:
        return [listen() for _ in range(count)]


async def test_runtimes_of_one_process_take_on_different_addresses() -> None:
    one, two = free_ports(2)
    text = f"demo.backend.generate=tcp://127.0.0.1:{one}#1,tcp://localhost:{two}#2"
    async with opened(text) as first, opened(text) as second, opened(text) as third:
        assert await first.identity(GENERATE) == Identity(instance_id=1, address=f"tcp://127.0.0.1:{one}")
        assert await second.identity(GENERATE) == Identity(instance_id=2, address=f"tcp://localhost:{two}")
        with pytest.raises(ConfigError) as caught:
            await third.identity(GENERATE)
        assert str(caught.value) == (
            "this process can take on none of the addresses declared for demo.backend.generate in "
            f"DYN_STATIC_INSTANCES: tcp://127.0.0.1:{one} (taken by this process), "
            f"tcp://localhost:{two} (taken by this process); declare one of this host that is free"
        )
    async with opened(text) as fourth:  # all are free again
        assert (await fourth.identity(GENERATE) or Identity(instance_id=0)).instance_id == 1


async def test_addresses_of_other_hosts_and_ports_in_use_are_passed_over() -> None:
    with listeners() as listen:
        used = listen()
        (free,) = free_ports(1)
        foreign = f"tcp://192.0.2.1:{free},tcp://no-such-host.invalid:{free},tcp://127.0.0.1:{used}"
        async with opened(f"demo.backend.generate={foreign},tcp://127.0.0.1:{free}") as discovery:
            identity = await discovery.identity(GENERATE)
            assert identity is not None
            assert identity.address == f"tcp://127.0.0.1:{free}"
        async with opened(f"demo.backend.generate={foreign}") as discovery:
            with pytest.raises(ConfigError) as caught:
                await discovery.identity(GENERATE)
        said = str(caught.value)
        assert f"tcp://192.0.2.1:{free} (not an address of this host)" in said
        assert f"tcp://no-such-host.invalid:{free} (no-such-host.invalid does not resolve: " in said
        assert f"tcp://127.0.0.1:{used} (in use)" in said


async def test_asked_again_it_gives_the_next_one() -> None:
    """As core does when the address was taken between our look and its own bind."""
    one, two = free_ports(2)
    text = f"demo.backend.generate=tcp://127.0.0.1:{one}#1,tcp://127.0.0.1:{two}#2"
    async with opened(text) as discovery:
        assert [(await discovery.identity(GENERATE)).instance_id for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match="can take on none"):
            await discovery.identity(GENERATE)


async def test_settings_choose_among_the_addresses_of_a_host() -> None:
    one, two, other = free_ports(3)
    text = (
        f"demo.backend.generate=tcp://127.0.0.1:{one}#1;demo.prefill.generate=tcp://127.0.0.1:{two}#2,"
        f"tcp://127.0.0.2:{two}#3"
    )
    async with opened(text, DYN_TCP_RPC_PORT=str(two)) as discovery:
        assert (await discovery.identity(PREFILL)).instance_id == 2  # type: ignore[union-attr]
    async with opened(text, DYN_TCP_RPC_HOST="127.0.0.2") as discovery:
        assert (await discovery.identity(PREFILL)).instance_id == 3  # type: ignore[union-attr]
    async with opened(text, DYN_TCP_RPC_PORT=str(other)) as discovery:
        with pytest.raises(
            ConfigError, match=rf"declared for .* has DYN_TCP_RPC_PORT={other}: tcp://127.0.0.1"
        ):
            await discovery.identity(GENERATE)


async def test_workers_of_several_kinds_share_a_host_without_being_told_their_ports() -> None:
    one, two = free_ports(2)
    text = f"demo.backend.generate=tcp://127.0.0.1:{one}#1;demo.prefill.generate=tcp://127.0.0.1:{two}#2"
    async with opened(text) as discovery, opened(text) as other, opened(text) as third:
        assert (await discovery.identity(PREFILL)).instance_id == 2  # type: ignore[union-attr]
        assert (await other.identity(GENERATE)).instance_id == 1  # type: ignore[union-attr]
        with pytest.raises(ConfigError, match=r"declared for demo\.prefill\.generate .*; declare one of"):
            await third.identity(PREFILL)
        with pytest.raises(ConfigError, match=r"^demo\.backend\.other is not declared in DYN_STATIC_INST"):
            await third.identity(EndpointId.parse("demo.backend.other"))


async def test_runtimes_take_on_the_address_of_what_they_serve_first() -> None:
    async def answer(request: str) -> str:
        return request

    one, two = free_ports(2)
    backend_at, prefill_at = f"tcp://127.0.0.1:{one}#1", f"tcp://127.0.0.1:{two}#2"
    options: dict[str, Any] = {
        "discovery": "static",
        "static_instances": f"demo.backend.generate={backend_at};demo.backend.load={backend_at};"
        f"demo.prefill.generate={prefill_at}",
        "request_plane": "tcp",
        "drain_grace_s": 0.0,
    }
    async with DistributedRuntime(**options) as prefill, DistributedRuntime(**options) as backend:
        async with (
            prefill.endpoint(str(PREFILL)).serve(answer),
            backend.endpoint(str(GENERATE)).serve(answer),
        ):
            assert (prefill.connection_id(), backend.connection_id()) == (2, 1)
            async with backend.endpoint("demo.backend.load").serve(answer):
                client = await prefill.endpoint("demo.backend.load").client()
                assert await client.call("x", timeout_s=5) == "x"
            with pytest.raises(
                ConfigError, match=r"^demo\.prefill\.generate is served at .*; declare it here"
            ):
                async with backend.endpoint(str(PREFILL)).serve(answer):
                    pass


async def test_behind_a_translated_address_the_settings_must_say_who_we_are() -> None:
    (port,) = free_ports(1)
    text = f"demo.backend.generate=tcp://203.0.113.1:{port}#1,tcp://203.0.113.2:{port}#2"
    async with opened(text, DYN_TCP_RPC_BIND="127.0.0.1") as discovery:
        with pytest.raises(ConfigError, match=r"DYN_TCP_RPC_BIND says where to listen.*set DYN_TCP_RPC_HOST"):
            await discovery.identity(GENERATE)
    async with opened(text, DYN_TCP_RPC_BIND="127.0.0.1", DYN_TCP_RPC_HOST="203.0.113.2") as discovery:
        assert await discovery.identity(GENERATE) == Identity(
            instance_id=2, address=f"tcp://203.0.113.2:{port}"
        )


async def test_what_is_served_must_be_declared() -> None:
    one, two = free_ports(2)
    text = f"demo.backend.generate=tcp://127.0.0.1:{one}#1;demo.prefill.generate=tcp://127.0.0.1:{two}#2"
    async with opened(text) as discovery:
        identity = await discovery.identity(GENERATE)
        assert identity is not None
        async with discovery.lease(instance_id=1, incarnation=5) as lease:
            await lease.put(served(GENERATE, identity, "unix://boot/tmp/socket"))
            await lease.remove(GENERATE)
            assert (await declared(discovery, Scope.of(GENERATE)))[0][2] == 1  # it stays declared
            with pytest.raises(
                ConfigError, match=rf"^demo\.prefill\.generate is served at tcp://127\.0\.0\.1:{one}, "
            ):
                await lease.put(served(PREFILL, identity))
            with pytest.raises(
                ConfigError, match=r"^demo\.backend\.other is not declared in DYN_STATIC_INST.* demo\.b"
            ):
                await lease.put(served(EndpointId.parse("demo.backend.other"), identity))
            with pytest.raises(ConfigError, match=r"is declared as instance 1 in .*, not as 3"):
                await lease.put(served(GENERATE, Identity(instance_id=3, address=identity.address)))
            with anyio.move_on_after(0.05):
                pytest.fail(await lease.lost())


async def test_workers_started_at_once_share_out_the_addresses_among_them() -> None:
    """Real runtimes in real processes: between the look and the bind another one may come first."""
    ports = free_ports(3)
    addresses = ",".join(f"tcp://127.0.0.1:{port}#{number}" for number, port in enumerate(ports, 1))
    script = """
        import asyncio, sys
        from dynamo.runtime import DistributedRuntime

        async def answer(request):
            yield request

        async def main():
            async with DistributedRuntime.from_env() as runtime:
                endpoint = runtime.endpoint("demo.backend.generate")
                async with endpoint.serve(answer):
                    print(endpoint.connection_id(), flush=True)
                    await asyncio.to_thread(sys.stdin.read)
        asyncio.run(main())
    """
    environment = {
        "PATH": "/usr/bin:/bin",
        "DYN_DISCOVERY_BACKEND": "static",
        "DYN_STATIC_INSTANCES": f"demo.backend.generate={addresses}",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in ports
    ]
    try:
        said = await asyncio.gather(*(asyncio.to_thread(worker.stdout.readline) for worker in workers))  # type: ignore[union-attr]
        assert sorted(said) == ["1\n", "2\n", "3\n"]
    finally:
        for worker in workers:
            worker.communicate(timeout=20)
    assert [worker.returncode for worker in workers] == [0, 0, 0]
