"""How soon a chain knows that its HTTP clients have left: Frontend -> Middle -> Backend, a process each.

    python benchmarks/leaving.py [--clients 200] [--rounds 5] [--discovery file|URL]

Clients post to the frontend's ``@api`` route, read the first item and leave at one moment: they close, or
they reset their connections. Prints for each service how many handlers had begun, how many were cancelled,
and milliseconds from the leave to the first, the middle and the last CancelledError. All processes share the
monotonic clock of their host. The target for 200 clients is 200 ms for the last one. Exits with 1 if a
handler was not cancelled.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from dynamo.runtime import DistributedRuntime, api, depends, endpoint, service, service_client

BOUND_S = 30.0  # for what must come at all
QUIET_S = 1.0  # after which a handler that still runs counts as not cancelled
WAYS = ("close", "reset")
POST = b"POST /run HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Watched:
    """How many handlers of a service began, and when each was cancelled."""

    def __init__(self) -> None:
        self.began, self.cancelled_at = 0, list[float]()

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.began += 1
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled_at.append(time.monotonic())
            raise

    @endpoint
    async def take(self) -> tuple[int, list[float]]:
        """What there is, once no handler runs or nothing has happened for a while; the next round begins."""
        seen = -1
        while len(self.cancelled_at) < self.began and len(self.cancelled_at) != seen:
            seen = len(self.cancelled_at)
            await asyncio.sleep(QUIET_S)
        taken, self.began, self.cancelled_at = (self.began, self.cancelled_at), 0, []
        return taken


@service(namespace="bench")
class Backend(Watched):
    @endpoint
    async def run(self) -> AsyncIterator[int]:
        with self.watching():
            yield 0
            await asyncio.get_running_loop().create_future()


@service(namespace="bench")
class Middle(Watched):
    backend = depends(Backend)

    @endpoint
    async def run(self) -> AsyncIterator[int]:
        with self.watching():
            async for item in self.backend.run():
                yield item


@service(namespace="bench")
class Frontend(Watched):
    middle = depends(Middle)

    @api
    async def run(self) -> AsyncIterator[int]:
        with self.watching():
            async for item in self.middle.run():
                yield item


CHAIN = (Frontend, Middle, Backend)


async def arrive(host: str, port: int) -> asyncio.StreamWriter:
    """A client that has read its first item."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(POST)
    await reader.readuntil(b"\r\n0\n")
    return writer


def leave(writer: asyncio.StreamWriter, way: str) -> None:
    if way == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def measure(url: str, discovery: str, clients: int, rounds: int) -> bool:
    """Print the rows; whether every handler was cancelled."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    complete = True
    print("way    service   began  cancelled    first   middle     last  (ms after the leave)")
    async with DistributedRuntime(discovery=discovery, system_port=-1) as runtime:
        watched = [await service_client(runtime, one) for one in CHAIN]
        for way in WAYS:
            for _ in range(rounds):
                async with asyncio.timeout(BOUND_S):
                    writers = await asyncio.gather(*(arrive(host, int(port)) for _ in range(clients)))
                    left_at = time.monotonic()
                    for writer in writers:
                        leave(writer, way)
                    seen = [await one.take() for one in watched]
                for one, (began, cancelled_at) in zip(CHAIN, seen, strict=True):
                    after_ms = sorted((at - left_at) * 1e3 for at in cancelled_at)
                    complete &= began == len(after_ms) == clients
                    times = [after_ms[place] for place in (0, len(after_ms) // 2, -1)] if after_ms else []
                    shown = " ".join(f"{value:8.1f}" for value in times)
                    late = "  over 200 ms" if times and times[-1] > 200 else ""
                    print(f"{way:6} {one.__name__:9} {began:5} {len(after_ms):10} {shown}{late}", flush=True)
    return complete


@asynccontextmanager
async def deployed(discovery: str) -> AsyncIterator[str]:
    """The URL of the frontend, once all serve."""
    serve = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dynamo.cli", "serve", "leaving:Frontend", "--discovery", discovery,
        "--request-plane", "tcp", "--http-port", "0",
        cwd=Path(__file__).parent, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "DYN_DRAIN_GRACE_S": "0", "NO_COLOR": "1"},
    )  # fmt: skip
    assert serve.stdout is not None
    try:
        url, lines = "", ""
        async with asyncio.timeout(BOUND_S):
            while "Frontend 1/1" not in lines or not url:
                if not (line := (await serve.stdout.readline()).decode()):
                    sys.exit(f"the deployment did not come up:\n{lines}")
                lines += line
                url = found[1] if (found := re.search(r"HTTP routes at (\S+)", line)) else url
        yield url
    finally:
        serve.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(BOUND_S):
                await serve.communicate()
        finally:
            if serve.returncode is None:
                serve.kill()


async def run(clients: int, rounds: int, discovery: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-") as folder:
        discovery = f"file://{folder}" if discovery == "file" else discovery
        async with deployed(discovery) as url:
            print(f"{clients} clients, {rounds} rounds each way, at {url}")
            return await measure(url, discovery, clients, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how soon a chain knows that its clients have left.")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="for each way to leave")
    parser.add_argument("--discovery", default="file", metavar="URL")
    options = parser.parse_args()
    sys.exit(not asyncio.run(run(options.clients, options.rounds, options.discovery)))


if __name__ == "__main__":
    main()
