"""Two connections joined by two pipes that move only when told to."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from dynamo.core.ports.request_plane import Payload, Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.opening import Options
from dynamo.core.wire.stream import Stream

TAKE = 64 * 1024


class Pair:
    def __init__(
        self,
        dialer: Options | None = None,
        listener: Options | None = None,
        *,
        budget: int = 64 * 2**20,
        accept: Callable[[Stream], None] | None = None,
    ) -> None:
        self.accepted: list[Stream] = []
        self.dialer_budget, self.listener_budget = ReceiveBudget(budget), ReceiveBudget(budget)
        self.dialer = Connection(dialer or Options(), self.dialer_budget, dialer=True)
        self.listener = Connection(
            listener or Options(), self.listener_budget, dialer=False, accept=accept or self.accepted.append
        )
        self.to_listener, self.to_dialer = bytearray(), bytearray()
        self._ids = itertools.count(1)

    def open(self, payload: Payload | None = b"\xc0", *, end: bool = True, **fields: Any) -> Stream:
        request = Request(endpoint="a.b.c", request_id=f"r-{next(self._ids)}", payload=payload, end=end)
        for name, value in fields.items():
            setattr(request, name, value)
        return self.dialer.open(request)

    def pull(self, max_bytes: int = TAKE) -> bool:
        """One turn of output of both sides into the pipes; False if there was none."""
        moved = False
        for connection, pipe in ((self.dialer, self.to_listener), (self.listener, self.to_dialer)):
            for part in connection.take_output(max_bytes):
                pipe += part
                moved = True
        return moved

    def push(self, *, up: int | None = None, down: int | None = None) -> bool:
        """Deliver that many bytes each way, all by default; False if there were none."""
        moved = False
        for connection, pipe, count in (
            (self.listener, self.to_listener, up),
            (self.dialer, self.to_dialer, down),
        ):
            if count is None:
                count = len(pipe)
            data = bytes(pipe[:count])
            del pipe[:count]
            if data:
                moved = True
                connection.feed(data)
        return moved

    def settle(self) -> None:
        """Turns until neither side has anything to say."""
        for _ in range(100_000):
            pulled = self.pull()
            if not self.push() and not pulled:
                return
        raise AssertionError("the two sides do not come to rest")

    def call(
        self, payload: Payload | None = b"\xc0", *, end: bool = True, **fields: Any
    ) -> tuple[Stream, Stream]:
        """A call and its worker's end, both settled."""
        caller = self.open(payload, end=end, **fields)
        self.settle()
        return caller, self.accepted[-1]

    def cut(self) -> None:
        self.dialer.connection_lost(ConnectionResetError("cut"))
        self.listener.connection_lost(ConnectionResetError("cut"))


def read(stream: Stream) -> list[Payload]:
    items: list[Payload] = []
    while (item := stream.receive_nowait()) is not None:
        items.append(item)
    return items


def read_all(pair: Pair, stream: Stream) -> list[Payload]:
    """Items until the end, or until nothing more comes."""
    items = read(stream)
    while not stream.ended:
        pair.settle()
        if not (more := read(stream)):
            pair.settle()
            if not (more := read(stream)):
                break
        items += more
    return items
