"""Clients of services: objects with the service's methods, each of which is a call to one of its workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from dynamo.core.client import Client
from dynamo.core.context import Context
from dynamo.core.errors import BadPayloadError
from dynamo.core.streams import ResponseStream
from dynamo.core.typed import Converter, did_you_mean
from dynamo.sdk.current import CURRENT
from dynamo.sdk.spec import ServiceMethod

T = TypeVar("T")

_CURRENT: Final[Any] = object()
_STREAM_ONLY = ("first_item_timeout_s", "idle_timeout_s")
_AS_THEY_ARE = (str, int, float, bool, bytes)


class ServiceClient:
    """Has the endpoints of a service as methods; what else the class has stays in its workers."""

    def __init__(self, title: str, opened: Mapping[str, tuple[ServiceMethod, Client]], options: Any) -> None:
        self._title, self._opened, self._options = title, opened, options

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or (found := self._opened.get(name)) is None:
            raise AttributeError(
                f"{self._title}.{name} is no endpoint, and only endpoints can be called from elsewhere; "
                f"{did_you_mean(name, self._opened)}"
            )
        method, client = found
        call = (StreamCall if method.streaming else Call)(method, client, self._options)
        self.__dict__[name] = call
        return call

    def _using(self, options: Mapping[str, Any]) -> ServiceClient:
        return ServiceClient(self._title, self._opened, {**self._options, **options})

    def __repr__(self) -> str:
        return f"<client of {self._title}>"


class Call:
    """A coroutine method of a service, as its client calls it."""

    __slots__ = ("_client", "_context", "_convert", "_method", "_options", "_pack", "_plain")

    def __init__(self, method: ServiceMethod, client: Client, options: Mapping[str, Any]) -> None:
        self._method, self._client = method, client
        self._options = dict(options)
        self._context: Any = self._options.pop("context", _CURRENT)
        if not method.streaming:
            for name in _STREAM_ONLY:
                self._options.pop(name, None)
        signature = method.signature
        self._pack = signature.pack
        self._convert: Converter = signature.item
        self._plain = signature.item_type if signature.item_type in _AS_THEY_ARE else object()

    def _request(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], Context | None]:
        request, context = self._pack(args, kwargs)
        if context is None:
            context = CURRENT.get() if self._context is _CURRENT else self._context
        return request, context

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request, context = self._request(args, kwargs)
        item = await self._client.call(request, context=context, **self._options)
        return item if type(item) is self._plain else self._converted(item)

    def _converted(self, item: Any) -> Any:
        try:
            return self._convert(item)
        except ValueError as error:
            raise BadPayloadError(
                f"an item from {self._method.where} is not of the type that it declares: {error}"
            ) from error


class StreamCall(Call):
    """An async generator method of a service, as its client calls it."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request, context = self._request(args, kwargs)
        return ItemStream(self._client.stream(request, context=context, **self._options), self)


class ItemStream(AsyncIterator[Any]):
    """The items of one answer, of the type that the method declares.

    Leaving an ``async with`` block early, ``aclose``, or dropping it (as leaving an ``async for`` over the
    call does) cancels the worker.
    """

    __slots__ = ("_call", "_plain", "_stream")

    def __init__(self, stream: ResponseStream, call: StreamCall) -> None:
        self._stream, self._call, self._plain = stream, call, call._plain

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        item = await self._stream.__anext__()
        if type(item) is self._plain:
            return item
        try:
            return self._call._converted(item)
        except BadPayloadError:
            await self._stream.aclose()
            raise

    @property
    def response(self) -> ResponseStream:
        """Who answers, how often it was sent, and how to ask it to finish: the stream below."""
        return self._stream

    async def aclose(self) -> None:
        """Leave: the worker is cancelled. Doing it twice is fine."""
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.aclose()


def using(
    client: T,
    *,
    timeout_s: float | None = _CURRENT,
    instance: int | str | None = _CURRENT,
    idempotent: bool | None = _CURRENT,
    metadata: Mapping[str, str] | None = _CURRENT,
    context: Context | None = _CURRENT,
    priority: int = _CURRENT,
    first_item_timeout_s: float | None = _CURRENT,
    idle_timeout_s: float | None = _CURRENT,
) -> T:
    """The same client with options for its calls: ``using(self.backend, timeout_s=2).generate(prompt)``.

    They are those of ``Client.call`` and ``Client.stream``; the last two are for methods that yield. With
    ``context=None`` the calls outlive the current request. An object that is no client, such as what a test
    put in its place, comes back as it is.
    """
    if not isinstance(client, ServiceClient):
        return client
    given = {
        "timeout_s": timeout_s,
        "instance": instance,
        "idempotent": idempotent,
        "metadata": metadata,
        "context": context,
        "priority": priority,
        "first_item_timeout_s": first_item_timeout_s,
        "idle_timeout_s": idle_timeout_s,
    }
    made: Any = client._using({name: value for name, value in given.items() if value is not _CURRENT})
    return made  # type: ignore[no-any-return]
