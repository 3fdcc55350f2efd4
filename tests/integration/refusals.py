"""Runtimes that wait for little, and what a refusal must say."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dynamo.core.errors import DynamoError
from dynamo.runtime import DistributedRuntime
from unit.deployments import fresh


async def echo(request: Any) -> Any:
    return request


def make(plane: str = "tcp", **options: Any) -> DistributedRuntime:
    """A runtime that waits for little."""
    url = options.setdefault("discovery", fresh())
    given = {
        "request_plane": url if plane == "mem" else plane,
        "tcp_host": "127.0.0.1",
        "drain_grace_s": 0.0,
        "instance_wait_s": 0.5,
        "startup_timeout_s": 5.0,
        "connect_timeout_s": 0.5,
    }
    return DistributedRuntime(**{**given, **options})


def check(found: DynamoError, error: type[DynamoError], words: tuple[str, ...]) -> None:
    assert type(found) is error
    for text in words:
        assert text in str(found)
    assert "\n" not in str(found)
    assert len(str(found)) < 1000


@contextmanager
def busy_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def free_port() -> int:
    """Of nobody, a moment ago."""
    with busy_port() as port:
        return port
