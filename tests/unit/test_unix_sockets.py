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


async def test_a_worker_that_comes_while_the_last_one_leaves_has_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await schemes(2, tmp_path, monkeypatch) == [
        "unix",
        "tcp",
    ]
    assert list(tmp_path.iterdir()) == []


async def test_it_does_without_one_where_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await schemes(1000, tmp_path, monkeypatch) == ["tcp"]
