"""Calls whose input streams too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from dynamo.core.codec import encode
from dynamo.core.errors import ClosedError, ConfigError, DynamoError, TooLargeError
from dynamo.core.exchange import Exchange
from dynamo.core.model import shown
from dynamo.core.ports.request_plane import Payload
from dynamo.core.streams import Decode, ResponseStream

SENDS_AT_ONCE = 64  # without a turn for anybody else
LEAVE_S = 5.0  # how long leaving a call waits for the caller's own iterable to clean up


class Input:
    """The sending side of one exchange; knows nothing of who holds the other side."""

    __slots__ = ("_exchange", "_feeder", "_full", "_sent", "_turn", "ended", "taken")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._full = False  # the window was spent by the last item
        self._turn = asyncio.Lock()
        self._sent = 0
        self._feeder: asyncio.Task[None] | None = None
        self.taken = False  # an item was sent after the opening one: the request can't be sent elsewhere
        self.ended = False

    async def send(self, payload: Payload) -> None:
        """Send one item when the window has room; it waits first, so that a cancelled one was not sent."""
        exchange = self._exchange
        while True:
            if self.ended:
                raise ClosedError("the input of this call was ended: nothing can be sent after end_input()")
            await exchange.opened()
            call = exchange.call
            if call is None:
                raise exchange.error or ClosedError("the call is over: it takes no more input")
            if call.ended and call.error is None:
                raise ClosedError("the worker has ended the call: it takes no more input")
            if call.ended:
                exchange.settle()  # ends the request, or has it sent to another instance
            elif self._full:
                async with self._turn:  # room wakes one of those that wait
                    if self._full:
                        await call.writable()
                        self._full = False  # if the call is still there: look again
            elif self._sent == SENDS_AT_ONCE:
                # A call that the worker ended is never full, though nothing goes there: let its reader see.
                self._sent = 0
                await asyncio.sleep(0)
            else:
                self._full = not call.send(payload)
                self._sent += 1
                self.taken = True
                return

    def end(self) -> None:
        """Nothing more is sent from here."""
        self.ended = True
        exchange = self._exchange
        if exchange.call is not None:
            exchange.call.end()
        elif exchange.request is not None:
            exchange.request.end = True  # not sent yet

    def feed(self, items: AsyncIterable[Any]) -> None:
        """Send what ``items`` yields, then end the input; what it raises ends the call."""
        self._feeder = self._exchange.out.loop.create_task(self._feed(items))

    async def _feed(self, items: AsyncIterable[Any]) -> None:
        iterator: AsyncIterator[Any] | None = None
        try:
            iterator = aiter(items)
            async for item in iterator:
                payload = encode(item)
                try:
                    await self.send(payload)
                except TooLargeError:
                    raise
                except DynamoError:
                    return  # the call is over: its reader is told why
            self.end()
        except Exception as error:
            self._exchange.abort(error)
        finally:
            if (leave := getattr(iterator, "aclose", None)) is not None:
                await leave()

    def close(self) -> None:
        """Stop feeding, unless it is the feeding that ended the call."""
        if self._feeder is not None and self._feeder is not asyncio.current_task():
            self._feeder.cancel()

    async def aclose(self) -> None:
        """Stop feeding and let the caller's iterable clean up, for a bounded time."""
        if self._feeder is not None:
            self._feeder.cancel()
            await asyncio.wait({self._feeder}, timeout=LEAVE_S)


class DuplexStream(ResponseStream):
    """A call whose input streams too: ``send`` items and ``end_input``, while another task may read.

    A call that an instance turned away is sent to another one as long as nothing was sent after the opening
    item.
    """

    __slots__ = ("_input",)

    def __init__(self, exchange: Exchange, decode: Decode, inputs: AsyncIterable[Any] | None) -> None:
        if inputs is not None and not isinstance(inputs, AsyncIterable):
            exchange.close()
            raise ConfigError(
                f"inputs={shown(inputs)}: expected an async iterable, such as an async generator"
            )
        super().__init__(exchange, decode)
        self._input = exchange.input = Input(exchange)
        if inputs is not None:
            self._input.feed(inputs)

    async def send(self, item: Any) -> None:
        """Send one input item once the window has room for it; cancelled before that, it has not sent the
        item.

        Raises what the call failed with, ClosedError (the worker has ended it), EncodeError, TooLargeError.
        """
        await self._input.send(encode(item))

    def end_input(self) -> None:
        """Nothing more is sent from here; items go on arriving. Doing it twice is fine."""
        self._input.end()

    async def aclose(self) -> None:
        """Leave: the worker is cancelled, and so is the feeding of the input."""
        await super().aclose()
        await self._input.aclose()
