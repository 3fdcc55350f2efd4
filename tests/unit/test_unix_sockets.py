"""The directory of Unix sockets, which who leaves last removes, also while the next one comes."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dynamo.adapters.request_plane.tcp import open_tcp, unix
from dynamo.core.config import Settings
from dynamo.core.ports.request_plane import IncomingCall

pytestmark = pytest.mark.anyio


def nobody(call: IncomingCall) -> None:
    pytest.fail("nobody calls")


async def schemes(removals: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of the addresses of a server that found its directory removed so many times."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    given: list[str] = []
    find = unix.socket_path

    def found(incarnation: int) -> str:
        path = find(incarnation)
        given.append(path)
        if len(given) <= removals:
            unix.remove(f"{os.path.dirname(path)}/other.sock")  # as another worker's, which leaves
        return path

    monkeypatch.setattr(unix, "socket_path", found)
    async with (
        open_tcp("tcp://", Settings(tcp_host="127.0.0.1")) as plane,
        plane.serve(nobody, instance_id=1, incarnation=2) as server,
    ):
        return [urlsplit(address).scheme for address in server.addresses]


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name leaves room for that of a socket, also with several test processes."""
    return tmp_path_factory.mktemp("s")


async def test_a_worker_that_comes_while_the_last_one_leaves_has_its_socket(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await schemes(2, short, monkeypatch) == [
        "unix",
        "tcp",
    ]
    assert list(short.iterdir()) == []


async def test_it_does_without_one_where_that_never_ends(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await schemes(1000, short, monkeypatch) == ["tcp"]
