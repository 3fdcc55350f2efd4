"""A worker that closes: who connects at the very end is told so, SAFE, and never merely cut off."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

import pytest

from dynamo.core.errors import DrainingError, Retry
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.opening import Options
from integration.planes import BOUND_S, ENDPOINT, Neighbour, ask, calling, working

pytestmark = pytest.mark.anyio


async def test_a_call_of_somebody_who_has_just_connected_is_turned_away_and_not_reset() -> None:
    """They are in the system's queue, with their HELLO and OPEN sent, when the worker begins to close."""
    callers: list[tuple[socket.socket, Connection]] = []
    with ExitStack() as stack:
        async with working() as worker:
            for _ in range(100):
                caller = stack.enter_context(socket.create_connection((worker.host, worker.port)))
                connection = Connection(Options(), ReceiveBudget(2**30), dialer=True)
                connection.open(Request(endpoint=ENDPOINT, request_id="r", payload=b"\x01"))
                caller.sendall(b"".join(connection.take_output(2**20)))
                caller.setblocking(False)
                callers.append((caller, connection))
        for caller, connection in callers:
            (call,) = connection._streams.values()
            async with asyncio.timeout(BOUND_S):
                while data := await asyncio.get_running_loop().sock_recv(caller, 65536):
                    connection.feed(data)
            assert connection.draining
            assert isinstance(call.error, DrainingError)
            assert call.error.retry is Retry.SAFE


async def test_closing_waits_for_nobody_who_stays_silent() -> None:
    with ExitStack() as stack:
        async with working() as worker:
            for _ in range(100):
                stack.enter_context(socket.create_connection((worker.host, worker.port)))
            async with calling() as caller:
                assert await ask(caller, worker.address) == "hello"
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < BOUND_S / 2


async def test_a_port_can_be_taken_by_a_successor_at_once() -> None:
    async with working() as worker:
        async with calling() as caller:
            assert await ask(caller, worker.address) == "hello"
    async with working(tcp_port=worker.port) as successor, Neighbour.of(successor):
        assert successor.address == worker.address
