"""``dynamo serve`` with ``@api`` routes: ports, several workers on one of them, and its end."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

pytest.importorskip("aiohttp", reason="the extra http is not installed")
pytest.importorskip("msgspec", reason="the extra services is not installed")
pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

from integration.test_cli import BOUND_S, COMMAND, environment, refused, started
from integration.test_cli_serve import until

SHOP = """
import asyncio, os
from collections.abc import AsyncIterator
from dynamo.runtime import api, depends, endpoint, service

@service(namespace="demo")
class Backend:
    @api
    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number
            await asyncio.sleep(0.05)

@service(namespace="demo", workers=2)
class Frontend:
    backend = depends(Backend)

    @api
    async def pid(self) -> int:
        return os.getpid()

    @api
    async def relay(self, to: int) -> AsyncIterator[int]:
        async for number in self.backend.count(to):
            yield number
"""


def free_ports() -> int:
    """The first one of two neighbours that are free, and that the system gives nobody who asks for any."""
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            with (
                socket.create_server(("127.0.0.1", port)),
                socket.create_server(("127.0.0.1", port + 1)),
            ):
                return port
        except OSError:
            continue


def test_workers_share_a_port_and_streams_finish_when_all_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text(SHOP)
    env = environment(f"file://{tmp_path}/discovery", PWD=str(tmp_path), DYN_DRAIN_GRACE_S="0")
    port = free_ports()
    serve = ("serve", "shop:Frontend", "--http-port", str(port))
    url = f"http://127.0.0.1:{port}"
    with started(serve, env) as serving:
        lines = until(serving, "up: Backend 1/1, Frontend 2/2")
        backends = f"HTTP routes at http://127.0.0.1:{port + 1}"
        if not any(backends in line for line in lines):  # it comes by another pipe
            until(serving, backends)
        pids = set[int]()
        for _ in range(500):  # the kernel draws one of them for each connection
            pids.add(httpx.post(f"{url}/pid", trust_env=False).json())
            if len(pids) == 2:
                break
        assert len(pids) == 2
        again = subprocess.run(
            [*COMMAND, *serve], env=env, text=True, capture_output=True, timeout=BOUND_S, check=False
        )
        refused(again, 2, f"port {port} is in use", "--http-port")
        with httpx.stream(
            "POST", f"{url}/relay", json={"to": 20}, trust_env=False, timeout=BOUND_S
        ) as answer:
            items = answer.iter_lines()
            assert next(items) == "0"
            serving.send_signal(signal.SIGINT)
            rest = threading.Thread(target=serving.communicate)
            rest.start()
            assert [int(item) for item in items] == list(range(1, 20))
        rest.join(BOUND_S)
        assert serving.returncode == 0
