"""Programs of Dynamo's style in processes of their own; they import asyncio and ``dynamo.runtime``."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo.runtime import Client, DistributedRuntime, StreamBrokenError
from unit.deployments import bounded, until

pytestmark = pytest.mark.anyio

START_S = 40.0  # for a process to come up on a busy machine

WORKER = """
import asyncio, os
from dynamo.runtime import Context, DistributedRuntime, dynamo_worker

async def generate(request, context: Context):
    for number in range(request["tokens"]):
        yield {"n": number, "pid": os.getpid(), "request": context.id()}
        await asyncio.sleep(request.get("delay", 0.001))

@dynamo_worker()
async def worker(runtime: DistributedRuntime):
    await runtime.endpoint("demo.backend.generate").serve_endpoint(generate)
    print("left", flush=True)

asyncio.run(worker())
"""

RELAY = """
import asyncio
from dynamo.runtime import Context, DistributedRuntime, dynamo_worker

@dynamo_worker()
async def relay(runtime: DistributedRuntime):
    backend = await runtime.endpoint("demo.backend.generate").client()
    await backend.wait_for_instances()

    async def generate(request, context: Context):
        async for item in await backend.generate(request, annotated=False, context=context):
            yield {"relayed": item["n"], "same_request": item["request"] == context.id()}

    await runtime.endpoint("demo.middle.generate").serve_endpoint(generate)

asyncio.run(relay())
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One deployment on this host: file discovery, tcp."""
    for variable, value in {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(tmp_path / "kv"),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0.2",
    }.items():
        monkeypatch.setenv(variable, value)


@contextmanager
def running(program: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


@pytest.fixture
async def client(environment: None) -> AsyncIterator[Client]:
    async with DistributedRuntime.from_env() as runtime:
        yield await runtime.endpoint("demo.backend.generate").client()


async def test_sigterm_empties_the_list_finishes_what_runs_and_exits_well(client: Client) -> None:
    with running(WORKER) as worker:
        await bounded(client.wait_for_instances(), START_S)
        async with client.stream({"tokens": 30, "delay": 0.02}) as items:
            first = await bounded(anext(items))
            assert first["pid"] == worker.pid
            worker.send_signal(signal.SIGTERM)
            await until(lambda: client.instance_ids() == [])
            rest = [item["n"] async for item in items]
        assert rest == list(range(1, 30))
        output, errors = await asyncio.to_thread(worker.communicate, None, START_S)
        assert (worker.returncode, output, errors) == (0, "left\n", "")


async def test_a_killed_worker_is_stepped_over_and_its_successor_found(client: Client) -> None:
    with running(WORKER) as victim, running(WORKER) as survivor:
        await until(lambda: len(client.instance_ids()) == 2, START_S)
        streams = [client.stream({"tokens": 10_000}) for _ in range(4)]
        pids = [(await bounded(anext(stream)))["pid"] for stream in streams]
        assert set(pids) == {victim.pid, survivor.pid}
        os.kill(victim.pid, signal.SIGKILL)
        for pid, stream in zip(pids, streams, strict=True):
            if pid == victim.pid:
                with pytest.raises(StreamBrokenError):
                    await bounded(_drain(stream))
            else:
                await stream.aclose()
        for _ in range(10):
            assert await _who(client) == survivor.pid
        await until(lambda: len(client.instance_ids()) == 1)
        with running(WORKER) as successor:
            await until(lambda: len(client.instance_ids()) == 2, START_S)
            assert {await _who(client) for _ in range(10)} == {survivor.pid, successor.pid}


async def _who(client: Client) -> int:
    async with client.stream({"tokens": 1}) as items:
        pid: int = (await bounded(anext(items)))["pid"]
        return pid


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_relay_in_a_process_of_its_own(environment: None) -> None:
    async with DistributedRuntime.from_env() as runtime:
        client = await runtime.endpoint("demo.middle.generate").client()
        with running(WORKER), running(RELAY) as relay:
            await bounded(client.wait_for_instances(), START_S)
            items = [item async for item in await client.generate({"tokens": 3}, annotated=False)]
            assert items == [{"relayed": number, "same_request": True} for number in range(3)]
            relay.send_signal(signal.SIGINT)
            await asyncio.to_thread(relay.wait, START_S)
            assert relay.returncode == 0
