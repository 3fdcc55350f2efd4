"""Each fault of the proxy, for connections open when it is switched and for those that come after."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dynamo.testing.leaks import no_leaks
from dynamo.testing.proxy import FaultProxy

pytestmark = pytest.mark.anyio

PATIENCE_S = 10.0
BUFFER_BYTES = 64 * 1024
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that sends back what it gets and counts what came; it can be told to stop reading."""

    def __init__(self) -> None:
        self.port = 0
        self.received = 0
        self.endings: list[str] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.changed = asyncio.Condition()
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self.reads.wait()
                data = await reader.read(16 * 1024)
                if not data:
                    self.endings.append("end")
                    break
                self.received += len(data)
                writer.write(data)
                await writer.drain()
                async with self.changed:
                    self.changed.notify_all()
        except ConnectionError:
            self.endings.append("reset")
        finally:
            writer.close()
            async with self.changed:
                self.changed.notify_all()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self.serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(condition)


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Echo, FaultProxy]]:
    """An echo server behind a proxy; nothing of either is left when the block ends."""
    async with no_leaks():
        echo = Echo()
        server = await asyncio.start_server(echo.accept, "127.0.0.1", 0)
        echo.port = server.sockets[0].getsockname()[1]
        try:
            async with FaultProxy("127.0.0.1", echo.port, buffer_bytes=BUFFER_BYTES) as proxy:
                yield echo, proxy
        finally:
            server.close()
            echo.reads.set()
            for task in list(echo.tasks):
                task.cancel()
            await asyncio.gather(*echo.tasks, return_exceptions=True)


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def soon(result: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        return await result


async def echoes(streams: Streams, data: bytes = b"hello") -> None:
    reader, writer = streams
    writer.write(data)
    assert await soon(reader.readexactly(len(data))) == data


async def silent(reader: asyncio.StreamReader, seconds: float = 0.1) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await reader.read(1)


async def test_bytes_pass_both_ways_and_are_counted() -> None:
    async with proxied() as (_, proxy), connected(proxy) as first, connected(proxy) as second:
        await echoes(first, b"a" * 100_000)
        await echoes(second, b"b" * 10)
        assert (proxy.bytes_to_target, proxy.bytes_from_target) == (100_010, 100_010)
        assert (proxy.connections, proxy.open_connections) == (2, 2)
        assert proxy.address == f"127.0.0.1:{proxy.port}"


async def test_ends_pass_one_direction_at_a_time() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as (reader, writer):
        writer.write(b"last words")
        writer.write_eof()
        assert await soon(reader.read()) == b"last words"
        await echo.until(lambda: echo.endings == ["end"])


async def test_a_reset_by_one_side_reaches_the_other() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as streams:
        await echoes(streams)
        opened: socket.socket = streams[1].get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        streams[1].transport.abort()
        await echo.until(lambda: echo.endings == ["reset"])


async def test_a_target_that_is_not_there_resets_the_client() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with FaultProxy("127.0.0.1", unused.getsockname()[1]) as proxy, connected(proxy) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await soon(reader.read())


async def test_delay_holds_for_open_and_new_connections_and_keeps_the_order() -> None:
    async with proxied() as (_, proxy), connected(proxy) as old:
        await echoes(old)
        proxy.delay(0.1)
        loop = asyncio.get_running_loop()
        async with connected(proxy) as new:
            for streams in (old, new):
                started = loop.time()
                for piece in (b"one ", b"two ", b"three"):
                    streams[1].write(piece)
                    await streams[1].drain()
                assert await soon(streams[0].readexactly(13)) == b"one two three"
                assert loop.time() - started >= 0.19  # there and back; a delay is no pause between pieces


async def test_delay_is_latency_and_not_a_limit_of_throughput() -> None:
    async with proxied() as (_, proxy), connected(proxy) as streams:
        await echoes(streams)
        proxy.delay(0.2)
        started = asyncio.get_running_loop().time()
        for _ in range(40):  # one after another they would take 16 s
            streams[1].write(b"x" * 1000)
            await asyncio.sleep(0)
        await soon(streams[0].readexactly(40_000))
        assert asyncio.get_running_loop().time() - started < PATIENCE_S / 2


async def test_throttle_holds_the_rate_per_direction() -> None:
    async with proxied() as (_, proxy), connected(proxy) as streams:
        proxy.throttle(200_000)
        started = asyncio.get_running_loop().time()
        await echoes(streams, b"x" * 40_000)
        assert asyncio.get_running_loop().time() - started >= 0.19


async def test_a_throttled_link_makes_its_sender_wait() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as (_, writer):
        proxy.throttle(1_000)
        writer.write(b"x" * 50_000_000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await writer.drain()
        assert echo.received <= 10_000


async def test_a_target_that_does_not_read_makes_its_sender_wait_and_gets_everything_later() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as (reader, writer):
        await echoes((reader, writer))
        echo.reads.clear()
        total = 30_000_000
        writer.write(bytes(total))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await writer.drain()
        assert proxy.bytes_to_target < total
        echo.reads.set()
        assert len(await soon(reader.readexactly(total))) == total


async def test_cut_ends_every_open_connection_and_lets_new_ones_in() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as first, connected(proxy) as second:
        await echoes(first)
        await echoes(second)
        proxy.cut()
        for reader, _ in (first, second):
            assert await soon(reader.read()) == b""
        await echo.until(lambda: echo.endings == ["end", "end"])
        async with connected(proxy) as new:
            await echoes(new)


async def test_reset_ends_both_sides_with_a_reset() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as streams:
        await echoes(streams)
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await soon(streams[0].read())
        await echo.until(lambda: echo.endings == ["reset"])


async def test_refuse_leaves_open_connections_alone_and_heal_listens_on_the_same_port() -> None:
    async with proxied() as (_, proxy), connected(proxy) as streams:
        await echoes(streams)
        port = proxy.port
        for _ in range(3):
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(proxy.host, port)
            await echoes(streams)
            proxy.heal()
            async with connected(proxy) as new:
                await echoes(new)
        assert proxy.port == port


async def test_the_port_stays_reserved_while_connections_are_refused() -> None:
    async with proxied() as (_, proxy):
        proxy.refuse()
        with socket.socket() as other, pytest.raises(OSError, match="in use") as caught:
            other.bind((proxy.host, proxy.port))
        assert caught.value.errno == errno.EADDRINUSE


async def test_refusing_and_healing_at_once_serves() -> None:
    async with proxied() as (_, proxy):
        proxy.refuse()
        proxy.heal()
        proxy.refuse()
        proxy.heal()
        async with connected(proxy) as streams:
            await echoes(streams)


async def test_a_black_hole_accepts_and_delivers_nothing_and_heal_resets_what_lost_bytes() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as used, connected(proxy) as idle:
        await echoes(used)
        await echoes(idle)
        received = echo.received
        proxy.black_hole()
        used[1].write(b"lost")
        async with connected(proxy) as new:
            new[1].write(b"lost too")
            new[1].write_eof()
            await silent(used[0])
            await silent(new[0])
            assert echo.received == received
            proxy.heal()
            for reader in (used[0], new[0]):
                with pytest.raises(ConnectionResetError):
                    await soon(reader.read())
        await echoes(idle)


async def test_a_black_hole_hides_that_the_other_side_is_gone() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as streams:
        await echoes(streams)
        proxy.black_hole()
        for task in list(echo.tasks):
            task.cancel()
        await silent(streams[0])
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            await soon(streams[0].read())


async def test_stall_delivers_nothing_and_loses_nothing() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as old:
        await echoes(old)
        received = echo.received
        proxy.stall()
        old[1].write(b"held")
        async with connected(proxy) as new:
            new[1].write(b"held too")
            await silent(old[0])
            await silent(new[0])
            assert echo.received == received
            proxy.heal()
            assert await soon(old[0].readexactly(4)) == b"held"
            assert await soon(new[0].readexactly(8)) == b"held too"


async def test_a_stalled_link_holds_no_more_than_its_buffer() -> None:
    async with proxied() as (echo, proxy), connected(proxy) as (reader, writer):
        await echoes((reader, writer))
        received = echo.received
        proxy.stall()
        total = 30_000_000
        writer.write(bytes(total))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await writer.drain()
        assert echo.received == received
        proxy.heal()
        assert len(await soon(reader.readexactly(total))) == total


async def test_heal_delivers_at_once_what_a_delay_holds() -> None:
    async with proxied() as (_, proxy), connected(proxy) as (reader, writer):
        await echoes((reader, writer))
        proxy.delay(3600)
        writer.write(b"early")
        await silent(reader)
        proxy.heal()
        assert await soon(reader.readexactly(5)) == b"early"


async def test_leaving_ends_what_is_open_under_every_fault() -> None:
    async with proxied() as (_, proxy):
        async with connected(proxy) as streams:
            await echoes(streams)
            proxy.delay(3600)
            proxy.stall()
            streams[1].write(b"never delivered")
            await silent(streams[0])
            proxy.refuse()


@pytest.mark.parametrize("ticks", range(5))
async def test_a_connection_accepted_as_the_proxy_refuses_is_served_or_reset(ticks: int) -> None:
    """Whichever step of the loop it comes in, its socket is not forgotten."""
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    async with proxied() as (_, proxy):
        dialed = socket.create_connection((proxy.host, proxy.port), PATIENCE_S)  # waits for the kernel alone
        for _ in range(ticks):
            await asyncio.sleep(0)
        proxy.refuse()
        reader, writer = await asyncio.open_connection(sock=dialed)
        try:
            writer.write(b"hello")
            async with asyncio.timeout(PATIENCE_S):
                assert await reader.readexactly(5) == b"hello"
        except (ConnectionError, asyncio.IncompleteReadError):
            assert proxy.open_connections == 0
        finally:
            writer.close()
    gc.collect()
    assert troubles == []
