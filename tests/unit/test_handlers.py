"""What may be served, what it is given, and what its caller gets of it."""

from __future__ import annotations

import asyncio
import functools
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest

from dynamo.core.handlers import read_handler
from dynamo.runtime import (
    BadPayloadError,
    ConfigError,
    Context,
    DeadlineError,
    DynamoError,
    EncodeError,
    NoInstancesError,
    RemoteError,
    RequestStream,
    ResponseSender,
    Retry,
    TooLargeError,
)
from unit.deployments import bounded, fresh, make_runtime, serving, until

pytestmark = pytest.mark.anyio


async def generator(request: Any) -> AsyncIterator[Any]:
    yield request
    yield "second"


async def coroutine(request: Any) -> Any:
    return request


def returns_a_generator(request: Any) -> AsyncIterator[Any]:
    return generator(request)


async def awaits_to_a_generator(request: Any) -> AsyncIterator[Any]:
    return generator(request)


def returns_the_item(request: Any) -> Any:
    return request


def plain_generator(request: Any) -> Any:
    yield request


class PlainEngine:
    def __call__(self, request: Any) -> Any:
        yield request


class Engine:
    async def generate(self, request: Any) -> AsyncIterator[Any]:
        yield request
        yield "second"

    __call__ = generate


class Iterator:
    """An async iterator that is no generator."""

    def __init__(self, request: Any) -> None:
        self._items = [request, "second"]

    def __aiter__(self) -> Iterator:
        return self

    async def __anext__(self) -> Any:
        if not self._items:
            raise StopAsyncIteration
        return self._items.pop(0)


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


@pytest.mark.parametrize(
    "handler, items",
    [
        (generator, 2),
        (coroutine, 1),
        (returns_a_generator, 2),
        (awaits_to_a_generator, 2),
        (returns_the_item, 1),
        (Engine().generate, 2),
        (Engine(), 2),
        (Iterator, 2),
        (functools.partial(generator), 2),
        (lambda request: coroutine(request), 1),
    ],
)
async def test_any_callable_that_streams_or_returns_can_be_served(handler: Any, items: int) -> None:
    async with serving(handler) as client:
        assert await bounded(collect(client.stream("ping"))) == ["ping", "second"][:items]


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}, b"\x00raw", 1.5, {"a": [1, None]}])
async def test_a_coroutine_answers_with_exactly_one_item_whatever_it_is(value: Any) -> None:
    async with serving(coroutine) as client:
        answer = await bounded(client.call(value))
        assert answer == value
        assert type(answer) is type(value)


async def test_a_generator_without_items_is_an_empty_stream() -> None:
    async def nothing(request: Any) -> AsyncIterator[Any]:
        return
        yield

    async with serving(nothing) as client:
        assert await bounded(collect(client.stream("ping"))) == []


# What a handler is given.


async def test_context_is_given_to_a_parameter_of_exactly_that_name_and_to_no_other() -> None:
    async def named(request: Any, context: Context) -> Any:
        return [context.id(), context.metadata["tenant"], context.timeout_s]

    async def otherwise(request: Any, ctx: Any = "nothing", *rest: Any, **more: Any) -> Any:
        return [ctx, list(rest), more]

    async def keyword_only(request: Any, *, context: Context) -> Any:
        return context.metadata["tenant"]

    async with serving(named) as client:
        context = Context("request-7")
        seen = await bounded(client.call(1, context=context, metadata={"tenant": "a"}, timeout_s=3))
        assert seen[:2] == ["request-7", "a"]
        assert 0 < seen[2] <= 3
    async with serving(otherwise) as client:
        assert await bounded(client.call(1)) == ["nothing", [], {}]
    async with serving(keyword_only) as client:
        assert await bounded(client.call(1, metadata={"tenant": "b"})) == "b"


async def test_without_a_deadline_the_context_has_none() -> None:
    async def handler(request: Any, context: Context) -> Any:
        return context.timeout_s

    async with serving(handler) as client:
        assert await bounded(client.call(1)) is None


@pytest.mark.parametrize(
    "handler, says",
    [
        (lambda: None, "takes no request"),
        (lambda *, request: None, "takes no request"),
        (lambda request, ctx: None, "'ctx'"),
        (lambda request, *, tokenizer: None, "'tokenizer'"),
        ("not callable", "callable"),
        (plain_generator, "plain_generator is a plain generator.*async def"),
        (functools.partial(plain_generator), "plain generator"),
        (PlainEngine(), "PlainEngine is a plain generator"),
    ],
)
async def test_what_could_never_be_called_is_refused_when_it_is_served(handler: Any, says: str) -> None:
    async with make_runtime() as runtime:
        with pytest.raises(ConfigError, match=says):
            async with runtime.endpoint("a.b.c").serve(handler):
                pass


def test_a_callable_without_a_signature_is_given_the_request_alone() -> None:
    handler = read_handler(int)
    assert not handler.takes_context
    assert not handler.duplex


async def duplex_by_annotation(requests: RequestStream[int]) -> AsyncIterator[int]:
    async for number in requests:
        yield number * 2


async def duplex_by_word(requests: Any) -> AsyncIterator[int]:
    async for number in requests:
        yield number * 2


@pytest.mark.parametrize("handler, options", [(duplex_by_annotation, {}), (duplex_by_word, {"duplex": True})])
async def test_a_duplex_handler_reads_the_callers_items_as_they_come(handler: Any, options: Any) -> None:
    async with serving(handler, **options) as client:
        async with client.duplex(1) as call:
            assert await bounded(anext(call)) == 2
            await call.send(5)
            assert await bounded(anext(call)) == 10
            call.end_input()
            assert await bounded(collect(call)) == []


async def test_the_answer_goes_on_after_the_input_has_ended() -> None:
    async def summary(requests: RequestStream[int]) -> AsyncIterator[int]:
        numbers = [number async for number in requests]
        for number in numbers:
            yield number
        yield sum(numbers)

    async with serving(summary) as client:
        async with client.duplex(1) as call:
            await call.send(2)
            call.end_input()
            assert await bounded(collect(call)) == [1, 2, 3]


async def test_a_timed_out_read_of_the_input_loses_no_item() -> None:
    silent = asyncio.Event()

    async def patient(requests: RequestStream[int]) -> AsyncIterator[Any]:
        yield await anext(requests)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(requests), 0.01)
        silent.set()
        yield [number async for number in requests]

    async with serving(patient) as client:
        async with client.duplex(1) as call:
            assert await bounded(anext(call)) == 1
            await bounded(silent.wait())
            await call.send(2)
            await call.send(3)
            call.end_input()
            assert await bounded(anext(call)) == [2, 3]


async def test_a_plain_handler_takes_the_first_item_of_a_call_that_opened_without_one() -> None:
    async with serving(coroutine) as client:
        async with client.duplex() as call:
            await call.send("late")
            assert await bounded(collect(call)) == ["late"]
        async with client.duplex() as call:
            call.end_input()
            with pytest.raises(BadPayloadError, match="brought none"):
                await bounded(anext(call))


go_on: ContextVar[asyncio.Event] = ContextVar("go_on")


async def wait_for_leave(request: Any) -> None:
    """Until another call says so, which was sent later than what the first one sent."""
    if request == "go on":
        go_on.get().set()
    await go_on.get().wait()


async def yields_once(request: Any) -> AsyncIterator[Any]:
    await wait_for_leave(request)
    yield request


async def returns_once(request: Any) -> Any:
    await wait_for_leave(request)
    return request


async def pushes_once(request: Any, response_sender: ResponseSender) -> None:
    await wait_for_leave(request)
    response_sender.send(request)


@pytest.mark.parametrize("handler", [yields_once, returns_once, pushes_once])
@pytest.mark.parametrize("opened", [True, False])
async def test_a_plain_handler_that_was_sent_more_than_its_request_says_so(
    handler: Any, opened: bool
) -> None:
    go_on.set(asyncio.Event())
    async with serving(handler) as client:
        async with client.duplex("one") if opened else client.duplex() as call:
            if not opened:
                await call.send("one")
            await call.send("two")
            assert await client.call("go on") == "go on"
            with pytest.raises(BadPayloadError, match=r"takes one request, and the call sent more"):
                await bounded(collect(call))


# Pushing instead of yielding.


async def test_threads_may_push_side_by_side_to_a_caller_that_is_behind() -> None:
    async def push(request: Any, response_sender: ResponseSender) -> None:
        def send(letter: str) -> None:
            for _ in range(20):
                response_sender.send(letter * 1000)

        await asyncio.gather(*(asyncio.to_thread(send, letter) for letter in "abc"))

    async with serving(push, runtime=make_runtime(window_bytes=2048)) as client:
        items = [item[0] async for item in client.stream(1, timeout_s=10)]
    assert sorted(items) == sorted("abc" * 20)


async def test_a_second_reader_of_a_request_stream_is_told() -> None:
    async def handler(stream: RequestStream[str]) -> AsyncIterator[str]:
        await anext(stream)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        try:
            await anext(stream)
        except RuntimeError as error:
            yield str(error)
        yield await first

    async with serving(handler) as client, client.duplex("one") as call:
        assert "let one task read it" in await bounded(anext(call))
        await call.send("two")
        assert await bounded(anext(call)) == "two"


async def test_a_response_sender_pushes_items_and_ends_the_stream() -> None:
    async def push(request: Any, context: Context, response_sender: ResponseSender) -> None:
        for number in range(request):
            response_sender.send({"n": number, "id": context.id()})
        response_sender.close()
        response_sender.close()
        with pytest.raises(RuntimeError, match="closed"):
            response_sender.send("too late")

    async with serving(push) as client:
        items = await bounded(collect(client.stream(3, context=Context("r"))))
        assert items == [{"n": number, "id": "r"} for number in range(3)]


async def test_a_pushing_handler_that_returns_ends_its_stream() -> None:
    async def push(request: Any, response_sender: Any = None) -> AsyncIterator[Any]:
        response_sender.send("one")
        return
        yield

    async with serving(push) as client:
        assert await bounded(collect(client.stream(1))) == ["one"]


async def test_close_with_error_reaches_the_caller_after_the_items() -> None:
    async def push(request: Any, response_sender: ResponseSender) -> None:
        response_sender.send("one")
        response_sender.close_with_error("the engine fell over")

    async with serving(push) as client:
        async with client.stream(1) as items:
            assert await bounded(anext(items)) == "one"
            with pytest.raises(RemoteError, match="the engine fell over"):
                await bounded(anext(items))


async def test_a_sender_works_from_another_thread_and_waits_there_for_the_reader() -> None:
    sent: list[int] = []

    async def push(request: Any, response_sender: ResponseSender) -> None:
        def engine() -> None:
            for number in range(200):
                response_sender.send(bytes(10_000))
                sent.append(number)
            response_sender.close()

        await asyncio.get_running_loop().run_in_executor(None, engine)

    async with serving(push) as client:
        async with client.stream(1) as items:
            await bounded(anext(items))
            before = -1
            while before != len(sent):  # until the window holds it up
                before = len(sent)
                await asyncio.sleep(0.05)
            assert before < 100, "a thread that nobody reads from must be held up"
            assert len(await bounded(collect(items))) == 199


async def test_a_pushing_handler_must_not_yield() -> None:
    async def push(request: Any, response_sender: ResponseSender) -> AsyncIterator[Any]:
        yield "misplaced"

    async with serving(push) as client:
        with pytest.raises(RemoteError, match="misplaced"):
            await bounded(client.call(1))


async def test_a_sender_refuses_what_cannot_be_sent() -> None:
    async def push(request: Any, response_sender: ResponseSender) -> None:
        with pytest.raises(EncodeError, match="object"):
            response_sender.send(object())
        response_sender.send("fine")

    async with serving(push) as client:
        assert await bounded(client.call(1)) == "fine"


# Items and errors.


async def test_each_yield_is_a_snapshot() -> None:
    async def counter(request: Any) -> AsyncIterator[Any]:
        state: dict[str, int] = {}
        for number in range(64):
            state["n"] = number
            yield state

    async with serving(counter) as client:
        assert await bounded(collect(client.stream(1))) == [{"n": number} for number in range(64)]


@pytest.mark.parametrize("bad", [object(), {"deep": [object()]}, 2**64, -(2**63) - 1])
async def test_an_item_that_cannot_be_sent_is_an_error_and_closes_the_generator(bad: Any) -> None:
    closed = asyncio.Event()

    async def handler(request: Any) -> AsyncIterator[Any]:
        try:
            yield "fine"
            yield bad
        finally:
            await asyncio.sleep(0)
            closed.set()

    async with serving(handler) as client:
        async with client.stream(1) as items:
            assert await bounded(anext(items)) == "fine"
            with pytest.raises(EncodeError, match="cannot send") as raised:
                await bounded(anext(items))
            assert raised.value.remote
            assert type(bad).__name__ in str(raised.value) or str(bad) in str(raised.value)
        await bounded(closed.wait())


async def test_an_item_past_the_limit_is_an_error_and_the_worker_serves_on() -> None:
    async def handler(request: Any) -> Any:
        return bytes(request)

    runtime = make_runtime(max_message_bytes=1_000_000)
    async with serving(handler, runtime=runtime) as client:
        with pytest.raises(TooLargeError, match="DYN_TCP_MAX_MESSAGE_SIZE"):
            await bounded(client.call(1_000_001))
        assert len(await bounded(client.call(1_000_000))) == 1_000_000


class TeapotError(Exception):
    def __init__(self) -> None:
        super().__init__("418 I'm a teapot")
        self.status = 418
        self.message = "I'm a teapot"


class PanicError(BaseException):
    """As what Rust panics with, under Python."""


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class SpecialDynamoError(DynamoError):
    """A user's own, which the other side need not have."""


async def raised_by(error: BaseException) -> DynamoError:
    """What the caller of a handler that raises ``error`` after one item gets."""

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield "before"
        raise error

    async with serving(handler) as client:
        async with client.stream(1) as items:
            assert await bounded(anext(items)) == "before"
            with pytest.raises(DynamoError) as raised:
                await bounded(anext(items))
            with pytest.raises(StopAsyncIteration):
                await bounded(anext(items))
    return raised.value


async def test_what_a_handler_raises_arrives_after_its_items_with_type_and_text() -> None:
    error = await raised_by(KeyError("token"))
    assert isinstance(error, RemoteError)
    assert isinstance(error, ValueError)
    assert (error.type_name, str(error)) == ("KeyError", "KeyError: 'token'")
    assert error.remote
    assert error.retry is Retry.NEVER


async def test_status_and_message_of_an_exception_cross_the_wire() -> None:
    error = await raised_by(TeapotError())
    assert isinstance(error, RemoteError)
    assert (error.status, error.message) == (418, "I'm a teapot")


async def test_an_error_of_ours_arrives_as_itself_but_is_never_sent_again() -> None:
    error = await raised_by(NoInstancesError("the backend of the backend is away"))
    assert type(error) is NoInstancesError
    assert str(error) == "the backend of the backend is away"
    assert error.remote
    assert error.retry is Retry.NEVER


async def test_a_users_subclass_of_ours_arrives_by_name() -> None:
    error = await raised_by(SpecialDynamoError("special"))
    assert isinstance(error, RemoteError)
    assert error.type_name == "SpecialDynamoError"


async def test_a_cancellation_that_the_handler_raises_itself_is_an_error_of_that_name() -> None:
    error = await raised_by(asyncio.CancelledError())
    assert isinstance(error, RemoteError)
    assert error.type_name == "CancelledError"


@pytest.mark.parametrize("kind", [GeneratorExit, PanicError])
async def test_what_is_no_exception_arrives_too_and_is_logged(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    error = await raised_by(kind("overflow"))
    assert isinstance(error, RemoteError)
    assert str(error) == f"{kind.__name__}: overflow"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is kind


async def test_an_error_without_a_text_still_arrives() -> None:
    error = await raised_by(MuteError())
    assert isinstance(error, RemoteError)
    assert error.type_name == "MuteError"


async def test_a_failure_before_the_first_item_arrives_at_its_place_in_the_stream() -> None:
    def broken(request: Any) -> AsyncIterator[Any]:
        raise LookupError("no such model")

    async with serving(broken) as client:
        stream = client.stream(1)
        with pytest.raises(RemoteError, match="LookupError: no such model"):
            await bounded(anext(stream))


async def test_an_unexpected_failure_is_logged_with_its_traceback_where_it_happened(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(request: Any) -> Any:
        models: dict[str, Any] = {}
        return models["missing"]

    async with serving(broken) as client:
        with caplog.at_level(logging.ERROR, "dynamo.runtime"), pytest.raises(RemoteError):
            await bounded(client.call(1))
    (record,) = caplog.records
    assert "demo.backend.generate" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


def test_system_exit_in_a_handler_ends_the_process() -> None:
    program = f"""
import asyncio, sys
from dynamo.runtime import DistributedRuntime

async def handler(request):
    sys.exit(3)

async def main():
    async with DistributedRuntime(discovery="{fresh()}", request_plane="mem", drain_grace_s=0) as runtime:
        async with runtime.endpoint("a.b.c").serve(handler):
            client = await runtime.endpoint("a.b.c").client()
            await client.call(1)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)
    assert done.returncode == 3, done.stderr.decode()


# Ends that come early.


async def test_leaving_a_stream_cancels_the_handler_where_it_waits() -> None:
    cancelled = asyncio.Event()

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            yield "first"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert context.is_killed()
            cancelled.set()
            raise

    async with serving(handler) as client:
        async with client.stream(1) as items:
            await bounded(anext(items))
        await bounded(cancelled.wait())


async def test_leaving_a_stream_cancels_a_handler_that_is_held_up_by_the_window() -> None:
    closed, sent = asyncio.Event(), 0

    async def handler(request: Any) -> AsyncIterator[Any]:
        nonlocal sent
        try:
            while True:
                yield bytes(10_000)
                sent += 1
        finally:
            closed.set()

    async with serving(handler) as client:
        async with client.stream(1) as items:
            await bounded(anext(items))
            before = -1
            while before != sent:  # until the window holds it up
                before = sent
                await asyncio.sleep(0.02)
        await bounded(closed.wait())
        assert sent < 100


async def test_stop_asks_the_handler_and_what_it_still_sends_arrives() -> None:
    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        yield "first"
        await context.async_killed_or_stopped()
        assert not context.is_killed()
        yield "last"

    async with serving(handler) as client:
        async with client.stream(1) as items:
            assert await bounded(anext(items)) == "first"
            items.stop()
            assert await bounded(collect(items)) == ["last"]


async def test_a_handler_that_stops_itself_ends_as_it_chose() -> None:
    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        yield "one"
        context.stop_generating()
        yield "two"

    async with serving(handler) as client:
        assert await bounded(collect(client.stream(1))) == ["one", "two"]


async def test_a_handler_that_kills_its_own_context_is_cancelled_and_its_caller_told() -> None:
    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        yield "one"
        context.kill()
        await asyncio.Event().wait()

    async with serving(handler) as client:
        async with client.stream(1) as items:
            await bounded(anext(items))
            with pytest.raises(DynamoError, match="killed"):
                await bounded(anext(items))


async def test_the_worker_cancels_a_handler_at_its_deadline_though_the_caller_is_silent() -> None:
    cancelled = asyncio.Event()

    async def handler(request: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(handler) as client:
        with pytest.raises(DeadlineError):
            await bounded(client.call(1, timeout_s=0.05))
        await bounded(cancelled.wait())


async def test_a_handler_that_swallows_its_cancellation_is_reported_and_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo.core.answering.CANCEL_S", 0.05)
    release, started = asyncio.Event(), asyncio.Event()

    async def stubborn(request: Any) -> Any:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    async with serving(stubborn) as client:
        calling = asyncio.ensure_future(client.call(1))
        await bounded(started.wait())
        with caplog.at_level(logging.WARNING, "dynamo.runtime"):
            calling.cancel()
            await until(lambda: "still runs" in caplog.text)
        release.set()


async def test_a_generator_that_goes_on_after_its_cancellation_is_closed() -> None:
    closed = asyncio.Event()

    async def stubborn(request: Any) -> AsyncIterator[Any]:
        try:
            while True:
                try:
                    await asyncio.sleep(0.001)
                except asyncio.CancelledError:
                    pass
                yield "more"
        finally:
            closed.set()

    async with serving(stubborn) as client:
        async with client.stream(1) as items:
            await bounded(anext(items))
        await bounded(closed.wait())
