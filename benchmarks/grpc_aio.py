"""grpc.aio under load, streaming bytes that are the same MessagePack.

python grpc_aio.py server|client PORT [SERVER_PID]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import msgspec
import uvloop
import workload
from workload import TIMEOUT_S, TRACE

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
METADATA = tuple(TRACE.items())
encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode


def coded(handler: Callable[[Any], AsyncIterator[Any]]) -> grpc.RpcMethodHandler[Any, Any]:
    async def serve(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
        async for item in handler(decode(request)):
            yield encode(item)

    return grpc.unary_stream_rpc_method_handler(serve)


async def block(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
    yield workload.bytes_of(decode(request)["bytes"])


async def weigh(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[bytes]:
    yield encode(len(request))


async def echo(
    inputs: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
) -> AsyncIterator[bytes]:
    async for item in inputs:
        yield encode(decode(item))


async def serve(port: int) -> None:
    server = grpc.aio.server(options=OPTIONS)
    handlers = {
        "generate": coded(workload.generate),
        "linger": coded(workload.linger),
        "block": grpc.unary_stream_rpc_method_handler(block),
        "weigh": grpc.unary_stream_rpc_method_handler(weigh),
        "echo": grpc.stream_stream_rpc_method_handler(echo),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


class Calls(workload.Calls):
    def __init__(self, channel: grpc.aio.Channel, port: int) -> None:
        self._port = port
        self._generate, self._block, self._weigh, self._linger = (
            channel.unary_stream(f"/bench/{name}") for name in ("generate", "block", "weigh", "linger")
        )
        self._echo = channel.stream_stream("/bench/echo")

    async def ask(self, request: dict[str, Any]) -> int:
        received = 0
        async for item in self._generate(encode(request), timeout=TIMEOUT_S, metadata=METADATA):
            decode(item)
            received += 1
        return received

    async def fetch(self, size: int) -> int:
        received = 0
        async for item in self._block(encode({"bytes": size}), timeout=TIMEOUT_S, metadata=METADATA):
            received += len(item)
        return received

    async def give(self, size: int) -> int:
        weight = 0
        async for item in self._weigh(workload.bytes_of(size), timeout=TIMEOUT_S, metadata=METADATA):
            weight += decode(item)
        return weight

    async def leave(self) -> None:
        call = self._linger(encode(None), timeout=TIMEOUT_S, metadata=METADATA)
        await call.read()
        call.cancel()

    async def hold(self) -> workload.Close:
        call = self._linger(encode(None), metadata=METADATA)
        await call.read()

        async def close() -> None:
            call.cancel()

        return close

    async def echo(self, count: int) -> int:
        async def inputs() -> AsyncIterator[bytes]:
            for index in range(count):
                yield encode({"token_ids": [index], "text": " word"})

        received = 0
        async for item in self._echo(inputs(), timeout=TIMEOUT_S, metadata=METADATA):
            decode(item)
            received += 1
        return received

    async def anew(self) -> None:
        # A pool of its own: channels of one process share connections otherwise.
        options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", options=options) as channel:
            await Calls(channel, self._port).ask({"items": 1, "pause": None})


async def call(port: int, server_pid: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), TIMEOUT_S)
        await workload.obey(Calls(channel, port), server_pid)


ROLES: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"server": serve, "client": call}

if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ROLES[role](*map(int, rest)))
