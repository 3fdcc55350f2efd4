"""What answers at an address may be anything: the call ends in time with a typed error; other calls go on."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager

import pytest

from dynamo.core.errors import Retry, StreamBrokenError, UnavailableError
from dynamo.core.health import Status
from dynamo.core.wire.frames import HELLO, ITEM, MAGIC, OPEN, PING, header, map_frame, number_frame
from dynamo.core.wire.opening import Options, encode_hello
from dynamo.runtime import DistributedRuntime
from integration.planes import BOUND_S, ENDPOINT, INSTANCE, Neighbour, ask, calling, start, working

pytestmark = pytest.mark.anyio

CONNECT_S = 0.5  # DYN_CONNECT_TIMEOUT_S
GREETING = MAGIC + map_frame(HELLO, 0, encode_hello(Options(), None, None))
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """Something that listens; ``answer`` is what it does with a connection before it closes it."""
    connections: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, RuntimeError):  # the last of them is uvloop's
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in connections:
            writer.transport.abort()


def says(data: bytes, to_a_call: bytes = b"") -> Answer:
    """Say that, once the caller has said hello, the rest once it calls, and wait for its end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(MAGIC))
        writer.write(data)
        if to_a_call:
            await reader.readuntil(ENDPOINT.encode())
            writer.write(to_a_call)
        while await reader.read(65536):
            pass

    return answer


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(len(MAGIC))


async def fails(address: str, *words: str) -> None:
    """A call there was certainly not sent."""
    async with working() as worker, Neighbour.of(worker) as neighbour:
        async with calling(connect_timeout_s=CONNECT_S) as caller:
            assert await ask(caller, worker.address) == "hello"
            began = time.monotonic()
            with pytest.raises(UnavailableError) as caught:
                await ask(caller, address)
            assert time.monotonic() - began < CONNECT_S + BOUND_S / 2
            assert type(caught.value) is UnavailableError
            assert caught.value.retry is Retry.SAFE
            for text in (address, *words):
                assert text in str(caught.value)
            health = await caller.check(address)
            assert health.status is Status.DOWN
            assert address in health.detail
            assert await ask(caller, worker.address) == "hello"
            assert caller.budget.used == 0
            await neighbour.is_unharmed()


@pytest.mark.parametrize(
    "data,words",
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak the wire protocol: it speaks HTTP"),
        (b"\x15\x03\x03\x00\x02\x02\x0a", "it speaks TLS, so one side has certificates set (DYN_TCP_TLS_*)"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak the wire protocol"),
        (random.Random(3).randbytes(5000), "does not speak the wire protocol"),
        (MAGIC + header(ITEM, 0, 1, 10) + bytes(10), "came before HELLO"),
        (MAGIC + map_frame(HELLO, 0, b"\xc0"), "unreadable HELLO"),
        (MAGIC + header(HELLO, 0, 0, 2**32 - 1), "a frame of 4294967295 bytes"),
    ],
    ids=["http", "tls", "ssh", "random", "no hello", "bad hello", "huge frame"],
)
async def test_something_else_answers(data: bytes, words: str) -> None:
    async with answering(says(data)) as address:
        await fails(address, words)


async def test_it_closes_before_it_says_anything() -> None:
    async with answering(closes) as address:
        await fails(address, "before it said anything", "its address is tcps://", "the call was not sent")


@pytest.mark.parametrize("data", [b"", MAGIC[:5], GREETING[:-2]], ids=["nothing", "half magic", "half hello"])
async def test_it_never_finishes_its_greeting(data: bytes) -> None:
    async with answering(says(data)) as address:
        await fails(address, f"did not finish the opening within {CONNECT_S:g} s")


async def test_it_does_not_take_the_connection() -> None:
    """Its queue is full: the system lets new connections wait."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        words = (f"no connection to tcp://127.0.0.1:{address[1]} within {CONNECT_S:g} s", "connect_timeout_s")
        await fails(f"tcp://127.0.0.1:{address[1]}", *words)


@pytest.mark.parametrize(
    "data,words",
    [
        (header(OPEN, 0, 1, 0), "OPEN is not the listener's to send"),
        (header(0x99, 0, 0, 0), "frame type 0x99"),
        (header(ITEM, 0, 7, 0), "ITEM on stream 7, which was never opened"),
        (header(ITEM, 0, 1, 300_000), "a frame of 300000 bytes"),
        (number_frame(PING, 5, 0), "PING with flags 0x00, 8 bytes, on stream 5"),
    ],
    ids=["open", "unknown type", "unknown stream", "too long", "ping on a stream"],
)
async def test_it_breaks_the_protocol_later(data: bytes, words: str) -> None:
    async with answering(says(GREETING, data)) as address, calling() as caller:
        with pytest.raises(StreamBrokenError, match="broke the wire protocol") as caught:
            await ask(caller, address)
        assert words in str(caught.value)
        assert address in str(caught.value)
        assert caught.value.retry is Retry.UNKNOWN


async def test_it_asks_for_answers_and_reads_none() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(MAGIC))
        writer.write(GREETING)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        while True:
            writer.write(number_frame(PING, 0, 1) * 1000)
            await writer.drain()

    async with working() as worker, Neighbour.of(worker) as neighbour:
        async with answering(flood) as address, calling() as caller:
            call = start(caller, address, "hello")
            async with asyncio.timeout(BOUND_S):
                await call.wait()
            assert isinstance(call.error, StreamBrokenError)
            assert "does not read the answers" in str(call.error)
            assert await ask(caller, worker.address) == "hello"
            await neighbour.is_unharmed()


@pytest.mark.parametrize("idempotent", [True, False])
async def test_whoever_dies_before_it_says_a_word_costs_a_call_no_attempt(idempotent: bool) -> None:
    """Of a killed process the system closes connections first and listeners last: it is called in between."""
    dying = 5

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dying
        if dying:
            dying -= 1
            await reader.readexactly(len(GREETING))
            return
        there, back = await asyncio.open_connection(worker.host, worker.port)
        async with asyncio.TaskGroup() as both:
            both.create_task(_forward(reader, back))
            both.create_task(_forward(there, writer))

    async with working() as worker, answering(dies) as address:
        declared = f"{ENDPOINT}={address}#{INSTANCE}"
        async with DistributedRuntime(discovery="static", static_instances=declared) as runtime:
            client = await runtime.endpoint(ENDPOINT).client()
            assert await client.call("hello", timeout_s=BOUND_S, idempotent=idempotent) == "hello"
    assert not dying


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
