"""Peers that speak something else, too little, too much or nonsense: closed in bounded time and memory, told
why where they can understand it; and the other connections of the worker notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from dynamo.core.errors import DynamoError, UnavailableError, WireError
from dynamo.core.wire.faults import decode_error
from dynamo.core.wire.frames import (
    END,
    ERROR,
    F_ITEM,
    GOAWAY,
    HELLO,
    ITEM,
    MAGIC,
    OPEN,
    PING,
    PONG,
    header,
    map_frame,
    number_frame,
)  # fmt: skip
from dynamo.core.wire.opening import Options, encode_hello
from integration import certificates
from integration.planes import BOUND_S, Neighbour, Worker, ask, calling, working
from unit.wire.test_mutations import RECORDED, STARTS, mutate

pytestmark = pytest.mark.anyio

OPENING_S = 0.5  # DYN_CONNECT_TIMEOUT_S of the worker, where a test waits for it
HELLO_FRAME = map_frame(HELLO, 0, encode_hello(Options(), None, None))
OPENED = MAGIC + HELLO_FRAME
SECRET_HELLO = map_frame(HELLO, 0, encode_hello(Options(), bytes(32), None))
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(193)


class Peer:
    """A bare connection to a worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def to(cls, worker: Worker) -> AsyncIterator[Peer]:
        peer = cls(*await asyncio.open_connection(worker.host, worker.port))
        try:
            yield peer
        finally:
            peer.writer.transport.abort()

    async def rest(self) -> bytes:
        """All that the worker still says, until it closes, within the bound."""
        said = b""
        async with asyncio.timeout(BOUND_S):
            try:
                while more := await self.reader.read(65536):
                    said += more
            except ConnectionError:
                pass
        return said


def frames(said: bytes) -> list[tuple[int, int, bytes]]:
    """Type, stream and body of each frame after the magic."""
    found = []
    assert said.startswith(MAGIC)
    at = len(MAGIC)
    while at < len(said):
        length, kind, _, _, stream = struct.unpack_from("<IBBHQ", said, at)
        found.append((kind, stream, said[at + 16 : at + 16 + length]))
        at += 16 + length
    assert at == len(said), "closed in the middle of a frame"
    return found


def told(said: bytes) -> DynamoError:
    """Why the worker closed, as its last frame says."""
    kind, stream, body = frames(said)[-1]
    assert (kind, stream) == (ERROR, 0)
    return decode_error(body)


@asynccontextmanager
async def watched(**settings: Any) -> AsyncIterator[tuple[Worker, Neighbour]]:
    """A worker with a neighbour; in the end only the neighbour's connection is left."""
    async with working(**settings) as worker, Neighbour.of(worker) as neighbour:
        yield worker, neighbour
        async with asyncio.timeout(BOUND_S):
            while worker.server.calls > 1 or len(worker.server._links) > 1:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        CLIENT_HELLO,
        b"\n",
        bytes(4096),
        random.Random(1).randbytes(4096),
        MAGIC[:7] + b"\x0b",
        b"\x89DYN\r\r\n\x1a\n",  # as a transfer in text mode would leave it
    ],
    ids=["http", "http2", "tls", "newline", "zeros", "random", "almost", "text mode"],
)  # fmt: skip
async def test_who_speaks_something_else_is_closed_without_a_word(first: bytes) -> None:
    async with watched() as (worker, neighbour), Peer.to(worker) as peer:
        peer.writer.write(first)
        assert await peer.rest() == b""
        await neighbour.is_unharmed()


@pytest.mark.parametrize(
    "said,words",
    [
        (MAGIC + header(HELLO, 0, 0, 262_145), "a frame of 262145 bytes (at most 262144)"),
        (MAGIC + header(HELLO, 0, 0, 2**32 - 1), "a frame of 4294967295 bytes"),
        (MAGIC + header(HELLO, 0, 0, 100_000), "HELLO of 100000 bytes"),
        (MAGIC + struct.pack("<IBBHQ", 8, HELLO, 0, 1, 0), "a header with 1 for zero"),
        (MAGIC + number_frame(PING, 0, 0), "came before HELLO"),
        (MAGIC + header(OPEN, F_ITEM, 1, 200_000), "came before HELLO"),
        (MAGIC + map_frame(HELLO, 0, b"\x93\x01\x02\x03"), "unreadable HELLO"),
        (MAGIC + map_frame(HELLO, 0, b"\x80"), "HELLO without min_version"),
        (OPENED + HELLO_FRAME, "HELLO"),
        (OPENED + header(0xFF, 0, 0, 0), "frame type 0xff"),
        (OPENED + header(0, 0, 0, 0), "frame type 0x00"),
        (OPENED + header(ITEM, 0, 1, 300_000), "a frame of 300000 bytes"),
        (OPENED + header(ITEM, 0, 5, 0), "ITEM on stream 5, which was never opened"),
        (OPENED + header(END, 0, 0, 0), "END with flags"),
        (OPENED + header(PING, 0, 0, 9) + bytes(9), "PING with flags 0x00, 9 bytes"),
        (OPENED + number_frame(GOAWAY, 0, 0), "GOAWAY is not the dialer's to send"),
        (OPENED + random.Random(2).randbytes(200), ""),
    ],
    ids=lambda value: value.replace(" ", "_")[:30] if isinstance(value, str) else "",
)
async def test_who_breaks_the_protocol_is_told_what_was_wrong(said: bytes, words: str) -> None:
    async with watched() as (worker, neighbour), Peer.to(worker) as peer:
        peer.writer.write(said)
        error = told(await peer.rest())
        assert type(error) is WireError
        assert "a caller broke the wire protocol: " in str(error)
        assert words in str(error)
        await neighbour.is_unharmed()


@pytest.mark.parametrize(
    "first", [b"", MAGIC[:4], MAGIC, MAGIC + HELLO_FRAME[:10], MAGIC + HELLO_FRAME[:-1]],
    ids=["nothing", "half magic", "magic", "half header", "half hello"],
)  # fmt: skip
async def test_who_stops_in_the_opening_is_closed_when_its_time_is_over(first: bytes) -> None:
    async with watched(connect_timeout_s=OPENING_S) as (worker, neighbour), Peer.to(worker) as peer:
        began = time.monotonic()
        peer.writer.write(first)
        error = told(await peer.rest())
        assert OPENING_S * 0.9 <= time.monotonic() - began < OPENING_S + BOUND_S / 2
        assert type(error) is UnavailableError
        assert f"did not finish the opening within {OPENING_S:g} s" in str(error)
        await neighbour.is_unharmed()


async def test_who_says_hello_byte_by_byte_gets_no_more_time() -> None:
    async with watched(connect_timeout_s=OPENING_S) as (worker, neighbour), Peer.to(worker) as peer:
        began = time.monotonic()
        slow = OPENED + bytes(1000)
        listening = asyncio.create_task(peer.rest())
        for at in range(len(slow)):
            peer.writer.write(slow[at : at + 1])
            if (await asyncio.wait([listening], timeout=OPENING_S / 20))[0]:
                break
        assert at < len(OPENED), "it had the time to finish"
        assert type(told(await listening)) is UnavailableError
        assert time.monotonic() - began < OPENING_S + BOUND_S / 2
        await neighbour.is_unharmed()


async def test_who_owes_the_proof_of_a_token_gets_no_more_time_either() -> None:
    async with working(connect_timeout_s=OPENING_S, auth_token="t") as worker:
        async with Neighbour.of(worker, auth_token="t") as neighbour, Peer.to(worker) as peer:
            peer.writer.write(MAGIC + SECRET_HELLO)
            assert type(told(await peer.rest())) is UnavailableError
            await neighbour.is_unharmed()


async def test_who_asks_for_answers_and_reads_none_is_closed() -> None:
    process = psutil.Process()
    async with watched() as (worker, neighbour), Peer.to(worker) as peer:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        peer.writer.write(OPENED)
        before, sent = process.memory_info().rss, 0
        flood = number_frame(PING, 0, 7) * 1000
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(BOUND_S):
                while True:
                    peer.writer.write(flood)
                    sent += len(flood)
                    await peer.writer.drain()
                    await asyncio.sleep(0)
        grown = process.memory_info().rss - before
        print(f"\na flood of PINGs was ended after {sent / 2**20:.1f} MiB, {grown / 2**20:.1f} MiB resident")
        assert grown < 32 * 2**20
        await neighbour.is_unharmed()


async def test_who_asks_for_answers_and_reads_them_is_served_beside_the_others() -> None:
    async with watched() as (worker, neighbour), Peer.to(worker) as peer:
        peer.writer.write(OPENED)
        count = 50_000

        async def flood() -> None:
            for _ in range(count // 1000):
                peer.writer.write(number_frame(PING, 0, 7) * 1000)
                await peer.writer.drain()

        flooding, answers = asyncio.create_task(flood()), b""
        async with asyncio.timeout(BOUND_S):
            while answers.count(number_frame(PONG, 0, 7)) < count:
                answers += await peer.reader.read(2**20)
                await neighbour.is_unharmed()
        await flooding


SILENT = 5000


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for SILENT sockets in this process and in those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SILENT + 1000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this host allows {hard} descriptors, {wanted} are needed: raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def lone_worker(scheme: str, **settings: Any) -> Iterator[tuple[psutil.Process, str]]:
    """A worker in a process of its own, and its address."""
    command = [sys.executable, "-m", "integration.lone_worker", scheme, json.dumps(settings, default=str)]
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | path
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield psutil.Process(process.pid), process.stdout.readline().strip()
            process.stdin.close()
            assert process.wait(BOUND_S) == 0
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["tcp", "tcps"])
async def test_silent_connections_by_the_thousand_cost_little_and_hold_up_nobody(
    scheme: str, tmp_path: Path, many_descriptors: None
) -> None:
    certificates.issue(tmp_path)
    short = ("cert=worker", "ca=ours") if scheme == "tcps" else ("", "")
    has, trusts = (certificates.options(tmp_path, text) for text in short)
    silent: list[socket.socket] = []
    with lone_worker(scheme, **has) as (process, address), contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2])
        async with calling(**trusts) as old:
            assert await ask(old, address) == "hello"
            before, longest = process.memory_info().rss, 0.0
            for number in range(SILENT):
                connection = stack.enter_context(socket.socket())
                connection.setblocking(False)
                await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
                silent.append(connection)
                if number % 500 == 499:
                    async with calling(**trusts) as new:
                        for caller in (old, new):
                            began = time.monotonic()
                            assert await ask(caller, address) == "hello"
                            longest = max(longest, time.monotonic() - began)
            grown, open_there = process.memory_info().rss - before, process.num_fds()
    print(
        f"\n{SILENT} silent {scheme} connections: {grown / 2**20:.0f} MiB and {open_there} descriptors; "
        f"a good caller waited {longest * 1000:.0f} ms at most"
    )
    assert grown < 64 * 2**20
    assert open_there < 1500, "the oldest of them do not make room"


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="no limits of other processes here")
async def test_a_worker_without_descriptors_takes_callers_again_once_it_has_some() -> None:
    with lone_worker("tcp") as (process, address), contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2])
        async with calling() as old:
            assert await ask(old, address) == "hello"
            process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 20, 1000))
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            process.cpu_percent()
            for _ in range(50):  # who is in already notices nothing
                assert await ask(old, address) == "hello"
                await asyncio.sleep(0.01)
            assert process.cpu_percent() < 20, "it turns in circles"
            stack.close()
            async with calling() as new:
                assert await ask(new, address) == "hello"


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [3000, pytest.param(100_000, marks=(pytest.mark.soak, pytest.mark.timeout(1800)))]
)
async def test_changed_conversations_by_the_thousand_harm_nobody(count: int) -> None:
    """The million of them run against the wire code itself; here they run against a socket."""
    key = (False, False)  # what arrives at a listener, without a token
    seed = int(os.environ.get("DYNAMO_TEST_SEED", "20240914"))
    before, process, endings = 0, psutil.Process(), {"closed": 0, "told": 0, "went on": 0}
    async with watched(window_bytes=3000, max_message_bytes=50_000) as (worker, neighbour):

        async def one(number: int) -> None:
            said = mutate(RECORDED[key], STARTS[key], random.Random(seed + number))
            async with Peer.to(worker) as peer:
                peer.writer.write(said)
                peer.writer.write_eof()
                answer = await peer.rest()
                if not answer:
                    endings["closed"] += 1
                elif answer.startswith(MAGIC) and frames(answer)[-1][:2] == (ERROR, 0):
                    error = told(answer)
                    assert str(error), f"seed {seed + number}"
                    endings["told"] += 1
                else:
                    endings["went on"] += 1

        for batch in range(0, count, 20):
            await asyncio.gather(*(one(number) for number in range(batch, batch + 20)))
            await neighbour.is_unharmed()
            if batch == 500:
                before = process.memory_info().rss
        grown = process.memory_info().rss - before
    print(f"\n{count:,} changed conversations from seed {seed}: {endings}, {grown / 2**20:.1f} MiB resident")
    assert all(endings.values()), "the mutations are of one kind only"
    assert grown < 32 * 2**20
    assert worker.plane.budget.used == 0
