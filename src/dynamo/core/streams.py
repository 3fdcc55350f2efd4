"""What a caller holds while an answer streams: the response stream, and Dynamo's annotated items."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeAlias

from dynamo.core.codec import decode, encode
from dynamo.core.errors import DynamoError, RemoteError
from dynamo.core.exchange import Exchange
from dynamo.core.model import Instance
from dynamo.core.ports.request_plane import OutgoingCall, Payload

ENVELOPE = "_dynamo_annotated"  # Dynamo's mark of an envelope that a handler yields itself

Decode: TypeAlias = Callable[[Payload], Any]


class Annotated:
    """One item with what may come beside it: Dynamo's envelope."""

    __slots__ = ("_comments", "_data", "_error", "_event", "_id")

    def __init__(
        self,
        data: Any = None,
        *,
        id: str | None = None,
        event: str | None = None,
        comments: list[str] | None = None,
        error: Any = None,
    ) -> None:
        self._data, self._id, self._event, self._comments, self._error = data, id, event, comments, error

    @classmethod
    def of(cls, value: Any) -> Annotated:
        """What a handler yielded, an envelope or a plain value."""
        if type(value) is not dict or not value.get(ENVELOPE):
            return cls(value)
        comment = value.get("comment")
        return cls(
            value.get("data"),
            id=value.get("id"),
            event=value.get("event"),
            comments=[comment] if isinstance(comment, str) else comment,
            error=value.get("error"),
        )

    def data(self) -> Any:
        """The item itself; None in an envelope without data."""
        return self._data

    def id(self) -> str | None:
        return self._id

    def event(self) -> str | None:
        """The kind of envelope, such as ``error``; None for a plain item."""
        return self._event

    def comments(self) -> list[str] | None:
        return self._comments

    def is_error(self) -> bool:
        """True if the handler yielded an error envelope."""
        return self._event == "error" or self._error is not None

    def __repr__(self) -> str:
        beside = {"id": self._id, "event": self._event, "comments": self._comments, "error": self._error}
        shown = "".join(f", {name}={value!r}" for name, value in beside.items() if value is not None)
        return f"Annotated({self._data!r}{shown})"


def decode_annotated(payload: Payload) -> Annotated:
    """One item as Dynamo's callers get it by default."""
    return Annotated.of(decode(payload))


def decode_plain(payload: Payload) -> Any:
    """One item without its envelope. Raises RemoteError for an error envelope, which has no data to give."""
    value = decode(payload)
    if type(value) is not dict or not value.get(ENVELOPE):
        return value
    item = Annotated.of(value)
    if item.is_error():
        raise RemoteError(
            "; ".join(item.comments() or []) or str(value.get("error") or "the handler sent an error")
        )
    return item.data()


def decode_buffers(payload: Payload) -> Any:
    """One item; raw bytes as the memoryview that they arrived in."""
    return decode(payload, buffers=True)


def keep_for(
    exchange: Exchange, resume: Callable[[Any, list[Any]], Any], request: Any, decoding: Decode
) -> Decode:
    """Keep the items that were read, for ``resume``; returns the decoding that does so."""
    items: list[Any] = []

    def decode_and_keep(payload: Payload) -> Any:
        item = decoding(payload)
        items.append(item)
        return item

    exchange.resume = lambda: encode(resume(request, items))
    return decode_and_keep


class ResponseStream(AsyncIterator[Any]):
    """The items of one answer, read by one task.

    Use it as ``async with client.stream(...) as items``, which cancels the worker when the block is left
    early; or await it, or iterate at once. ``aclose`` and dropping the last reference cancel the worker too.
    Cancelling a read, as a ``wait_for`` that times out does, loses no item and cancels nothing. After the
    end, or an error, it stays ended.
    """

    __slots__ = ("__weakref__", "_call", "_decode", "_exchange", "_reading")

    def __init__(self, exchange: Exchange, decode: Decode) -> None:
        self._exchange, self._decode = exchange, decode
        self._call: OutgoingCall | None = None  # the present one, once it has answered
        self._reading = False  # somebody waits: what comes wakes one

    @property
    def request_id(self) -> str:
        """The same for every attempt, and in the worker."""
        return self._exchange.request_id

    @property
    def instance(self) -> Instance | None:
        """Who was sent the request last; None if nobody was yet."""
        peer = self._exchange.peer
        return None if peer is None else peer.instance

    @property
    def attempts(self) -> int:
        """How often it was sent."""
        return self._exchange.attempts

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        payload: Payload | None = None
        if (call := self._call) is not None:  # most items take no other step
            payload = call.receive_nowait()
        if payload is None:
            if self._reading:
                raise RuntimeError(
                    "another task waits for the next item of this stream: let one task read it"
                )
            self._reading = True
            try:
                if call is not None:
                    await call.wait()
                    payload = call.receive_nowait()
                if payload is None:
                    exchange = self._exchange
                    payload = await exchange.next()
                    if payload is None:
                        self._call = None
                        raise StopAsyncIteration
                    if exchange.patience is None:  # else it has its own bounds of waiting
                        self._call = exchange.call
            finally:
                self._reading = False
        try:
            return self._decode(payload)
        except DynamoError:
            self._exchange.close()
            raise

    def __await__(self) -> Generator[Any, None, Self]:
        """Wait until an instance was sent the request."""
        yield from self._opened().__await__()
        return self

    async def _opened(self) -> None:
        await self._exchange.opened()
        self._exchange.tell()

    async def __aenter__(self) -> Self:
        try:
            await self._opened()
        except BaseException:
            self._exchange.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def stop(self) -> None:
        """Ask the worker to finish; what it still sends arrives, up to its end."""
        self._exchange.cancel(False)

    async def aclose(self) -> None:
        """Leave: the worker is cancelled, unread items are dropped. Doing it twice is fine."""
        self._call = None
        self._exchange.close()

    def __del__(self) -> None:
        exchange: Exchange | None = getattr(self, "_exchange", None)
        if exchange is not None and not exchange.done:
            try:  # the collector may run in any thread, and in the middle of anything
                exchange.out.loop.call_soon_threadsafe(exchange.close)
            except RuntimeError:
                pass  # the loop is closed, and the call with it
