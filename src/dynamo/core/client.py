"""Calling an endpoint: pick an instance for each request, send it, read the answer."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

from dynamo.core.codec import decode, encode
from dynamo.core.config import Settings
from dynamo.core.context import Context, text_map
from dynamo.core.duplex import DuplexStream
from dynamo.core.errors import CallCancelledError, CardinalityError, ClosedError, ConfigError, DeadlineError
from dynamo.core.exchange import Exchange
from dynamo.core.membership import Membership
from dynamo.core.model import EndpointId, Instance, shown
from dynamo.core.outbound import Dial, Outbound
from dynamo.core.patience import Patience, seconds
from dynamo.core.ports.request_plane import Payload, Request
from dynamo.core.ports.telemetry import Telemetry
from dynamo.core.routing import Direct, Random, RoundRobin, Strategy, strategy_of
from dynamo.core.streams import (
    Decode,
    ResponseStream,
    decode_annotated,
    decode_buffers,
    decode_plain,
    keep_for,
)

logger = logging.getLogger("dynamo.runtime")

NOT_GIVEN: Any = object()


class Client:
    """Calls the instances of one endpoint. Made on the loop that uses it; ``aclose`` cancels the calls under
    way.

    Options of every call, all but the request by name:

    - ``timeout_s``: the deadline of the whole call, retries included; DeadlineError after it. Without it,
      waiting for an instance is bounded by ``DYN_INSTANCE_WAIT_S`` (NoInstancesError), an instance's answer
      is not.
    - ``instance``: the id or name of the one instance to ask; no other will do.
    - ``idempotent``: may it run twice? Then an attempt that may have reached a handler is followed by
      another, up to three in all. Default: what the worker said when it served the endpoint.
    - ``metadata``: text to text, for the handler's ``context.metadata``.
    - ``context``: the handler's own, in a nested call: its id, metadata, trace and deadline travel, and what
      stops or kills it stops or kills the call.
    - ``priority``: a small integer for the worker's queue.
    - ``buffers``: raw bytes arrive as the memoryview that they came in, without a copy.

    A refusal is always retried, with a growing pause, elsewhere where possible. An error that a handler
    raised never is.
    """

    def __init__(
        self,
        endpoint_id: EndpointId,
        *,
        membership: Membership,
        dial: Dial,
        settings: Settings,
        telemetry: Telemetry | None = None,
        strategy: str | Strategy = "round_robin",
        instance: int | str | None = None,
    ) -> None:
        self._strategy = strategy_of(strategy, instance)
        self._random, self._round_robin = Random(), RoundRobin()
        self._endpoint = str(endpoint_id)
        self.endpoint_id = endpoint_id
        self._membership = membership
        self._out = Outbound(membership, dial, settings, telemetry)
        membership.retain()

    async def call(
        self,
        request: Any,
        *,
        timeout_s: float | None = None,
        instance: int | str | None = None,
        idempotent: bool | None = None,
        metadata: Mapping[str, str] | None = None,
        context: Context | None = None,
        priority: int = 0,
        buffers: bool = False,
    ) -> Any:
        """Send ``request`` and return the one item of its answer, once the answer has ended.

        Raises CardinalityError if there is none or a second one; cancelling it cancels the worker.
        """
        strategy = self._strategy if instance is None else Direct(instance)
        exchange = self._exchange(
            strategy, encode(request), True, timeout_s, idempotent, metadata, context, priority
        )
        exchange.whole = True
        payload = attempt = None
        try:
            exchange.begin()
            if (call := exchange.call) is not None:
                await call.wait()  # not by ``next``: one coroutine less to wake through
            while (item := await exchange.next()) is not None:
                if attempt is exchange.request:
                    raise CardinalityError(
                        f"{self._endpoint} returned multiple responses; use client.stream()"
                    )
                payload, attempt = item, exchange.request  # what an earlier attempt brought had no end
                call = exchange.call
                if call is not None and call.ended and call.error is None:  # mostly it comes with the item
                    break
            if payload is None or attempt is not exchange.request:
                raise self._no_item(exchange)
        finally:
            exchange.close()
        return decode(payload, buffers=buffers)

    def stream(
        self,
        request: Any,
        *,
        timeout_s: float | None = None,
        instance: int | str | None = None,
        idempotent: bool | None = None,
        metadata: Mapping[str, str] | None = None,
        context: Context | None = None,
        priority: int = 0,
        buffers: bool = False,
        first_item_timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        resume: Callable[[Any, list[Any]], Any] | None = None,
    ) -> ResponseStream:
        """Send ``request`` at once and return the stream of its answer: ``async with``, await or iterate it.

        ``first_item_timeout_s`` and ``idle_timeout_s`` bound each wait of the reader. ``resume(request,
        items_so_far)`` gives the request that continues a stream which broke after items; the items are kept
        for it.
        Raises EncodeError.
        """
        strategy = self._strategy if instance is None else Direct(instance)
        return self._stream(
            strategy, encode(request), timeout_s, idempotent, metadata, context, priority,
            decode_buffers if buffers else decode, first_item_timeout_s, idle_timeout_s,
            None if resume is None else (resume, request),
        )  # fmt: skip

    def duplex(
        self,
        request: Any = NOT_GIVEN,
        *,
        inputs: AsyncIterable[Any] | None = None,
        timeout_s: float | None = None,
        instance: int | str | None = None,
        idempotent: bool | None = None,
        metadata: Mapping[str, str] | None = None,
        context: Context | None = None,
        priority: int = 0,
        buffers: bool = False,
        first_item_timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
    ) -> DuplexStream:
        """Start a call whose input streams too: an opening item, then ``inputs``, or what you ``send``."""
        strategy = self._strategy if instance is None else Direct(instance)
        payload = None if request is NOT_GIVEN else encode(request)
        exchange = self._exchange(
            strategy, payload, False, timeout_s, idempotent, metadata, context, priority
        )
        if first_item_timeout_s is not None or idle_timeout_s is not None:
            exchange.patience = Patience(first_item_timeout_s, idle_timeout_s, exchange.exhausted)
        stream = DuplexStream(exchange, decode_buffers if buffers else decode, inputs)
        exchange.begin()
        return stream

    # Dynamo's spellings

    def generate(
        self, request: Any, annotated: bool | None = True, context: Context | None = None
    ) -> ResponseStream:
        """Dynamo's call, by the client's strategy: await it for the stream, of Annotated or plain items."""
        return self._dynamo(self._strategy, request, annotated, context)

    def random(
        self, request: Any, annotated: bool | None = True, context: Context | None = None
    ) -> ResponseStream:
        """``generate`` to a random instance."""
        return self._dynamo(self._random, request, annotated, context)

    def round_robin(
        self, request: Any, annotated: bool | None = True, context: Context | None = None
    ) -> ResponseStream:
        """``generate`` to the next instance."""
        return self._dynamo(self._round_robin, request, annotated, context)

    def direct(
        self,
        request: Any,
        instance_id: int | str,
        annotated: bool | None = True,
        context: Context | None = None,
    ) -> ResponseStream:
        """``generate`` to that instance, by id or name."""
        return self._dynamo(Direct(instance_id), request, annotated, context)

    def _dynamo(
        self, strategy: Strategy, request: Any, annotated: bool | None, context: Context | None
    ) -> ResponseStream:
        reading = decode_plain if annotated is False else decode_annotated
        return self._stream(
            strategy, encode(request), None, None, None, context, 0, reading, None, None, None
        )

    # The instances

    def instances(self) -> list[Instance]:
        """What routing uses now: the live instances, without those that drain."""
        return self._membership.ready()

    def instance_ids(self) -> list[int]:
        """The ids of ``instances()``."""
        return [instance.instance_id for instance in self._membership.ready()]

    async def wait_for_instances(self, min_count: int = 1, timeout_s: float | None = None) -> list[int]:
        """Wait until there are ``min_count`` instances; return their ids.

        Without ``timeout_s`` it waits until the runtime ends, and says once in the log what it waits for.
        Raises DeadlineError, a TimeoutError.
        """
        wanted = "an instance" if min_count == 1 else f"{min_count} instances"
        await self._wait(lambda membership: membership.peers.count >= min_count, wanted, timeout_s)
        return self.instance_ids()

    async def wait_for_instance_by_runtime_data(
        self, key: str, value: str, timeout_s: float | None = None
    ) -> int:
        """Wait until exactly one instance has the property ``key`` with ``value``; return its id."""
        return (
            await self._wait_for_matching(key, value, lambda count: count == 1, "one instance", timeout_s)
        )[0]

    async def wait_for_instances_by_runtime_data(
        self, key: str, value: str, min_count: int, timeout_s: float | None = None
    ) -> list[int]:
        """Wait until ``min_count`` instances have ``value`` as property ``key``; return their sorted ids."""
        if min_count < 1:
            raise ConfigError(f"min_count={min_count!r}: expected 1 or more")
        return await self._wait_for_matching(
            key, value, lambda count: count >= min_count, f"{min_count} instances", timeout_s
        )

    async def _wait_for_matching(
        self, key: str, value: str, enough: Callable[[int], bool], wanted: str, timeout_s: float | None
    ) -> list[int]:
        matching: list[int] = []

        def look(membership: Membership) -> bool:
            matching[:] = sorted(
                instance.instance_id
                for instance in membership.ready()
                if (found := instance.metadata.get(key)) is not None
                and (found == value or str(found) == value)
            )
            return enough(len(matching))

        try:
            await self._wait(look, f"{wanted} with {key}={value!r}", timeout_s)
        except DeadlineError as error:
            raise DeadlineError(
                f"{self._endpoint}: not {wanted} with {key}={value!r} within {timeout_s} s: "
                f"last_match_count={len(matching)}, matching_ids={matching}"
            ) from error
        return matching

    async def _wait(
        self, predicate: Callable[[Membership], bool], wanted: str, timeout_s: float | None
    ) -> None:
        out = self._out
        if not out.on_its_loop():
            raise self._unusable()

        def look(membership: Membership) -> bool:
            return out.closed or predicate(membership)

        if timeout_s is not None:
            await self._membership.wait_for(look, timeout_s, wanted=wanted)
        else:
            try:
                await self._membership.wait_for(look, out.instance_wait_s, wanted=wanted)
            except DeadlineError as error:
                logger.warning("still waiting: %s", error)
                await self._membership.wait_for(look)
        if out.closed:
            raise self._unusable()

    # Life

    async def aclose(self) -> None:
        """Cancel the calls under way (their readers get ClosedError) and leave the shared watch."""
        out = self._out
        if not out.closed:
            out.closed = True
            for exchange in list(out.active):
                exchange.abort(ClosedError(f"{self._endpoint}: the client was closed during the call"))
            self._membership.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Client of {self._endpoint}>"

    # Each request

    def _exchange(
        self,
        strategy: Strategy,
        payload: Payload | None,
        end: bool,
        timeout_s: float | None,
        idempotent: bool | None,
        metadata: Mapping[str, str] | None,
        context: Context | None,
        priority: int,
    ) -> Exchange:
        out = self._out
        if out.closed or not out.on_its_loop():
            raise self._unusable()
        if timeout_s is not None:
            timeout_s = seconds("timeout_s", timeout_s)
        if priority and (type(priority) is not int or not -(2**31) <= priority < 2**31):
            raise ConfigError(f"priority={shown(priority)}: expected an integer of 32 bits, such as 1 or -1")
        if context is None:
            request_id = out.request_id()
            headers = {} if metadata is None else text_map(metadata)
        elif not isinstance(context, Context):
            raise ConfigError(f"context={shown(context)}: expected a Context")
        else:
            request_id = context.id()
            headers = {**context.metadata, **context.trace_headers(), **text_map(metadata or {})}
            left_s = context.timeout_s
            if left_s is not None and (timeout_s is None or left_s < timeout_s):
                timeout_s = left_s
        # In the order of the fields: by name it would take half a microsecond more.
        request = Request(self._endpoint, request_id, payload, end, 1, timeout_s, headers, priority)
        exchange = Exchange(out, request, strategy, idempotent)
        if timeout_s is not None:
            exchange.expire_in(timeout_s)
        if context is not None:
            exchange.link(context)
        return exchange

    def _stream(
        self,
        strategy: Strategy,
        payload: Payload,
        timeout_s: float | None,
        idempotent: bool | None,
        metadata: Mapping[str, str] | None,
        context: Context | None,
        priority: int,
        decoding: Decode,
        first_item_timeout_s: float | None,
        idle_timeout_s: float | None,
        resuming: tuple[Callable[[Any, list[Any]], Any], Any] | None,
    ) -> ResponseStream:
        exchange = self._exchange(strategy, payload, True, timeout_s, idempotent, metadata, context, priority)
        if first_item_timeout_s is not None or idle_timeout_s is not None:
            exchange.patience = Patience(first_item_timeout_s, idle_timeout_s, exchange.exhausted)
        if resuming is not None:
            decoding = keep_for(exchange, *resuming, decoding)
        exchange.begin()
        return ResponseStream(exchange, decoding)

    def _no_item(self, exchange: Exchange) -> Exception:
        if exchange.attempts == 0:
            return CallCancelledError(
                f"{self._endpoint}: stopped by its context before an instance was sent the request"
            )
        return CardinalityError(f"{self._endpoint} returned no response to a call that takes exactly one")

    def _unusable(self) -> ClosedError:
        if self._out.closed:
            return ClosedError(
                f"the client of {self._endpoint} is closed, as its runtime may be: "
                "make one of a runtime that is open"
            )
        return ClosedError(
            f"the client of {self._endpoint} belongs to the event loop that it was made on: "
            "open a runtime of its own in each loop, thread and forked process"
        )
