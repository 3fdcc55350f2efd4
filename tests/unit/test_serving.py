"""Admission: whom an endpoint takes, lets wait, and turns away; and how it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo.core.codec import decode
from dynamo.core.ports.telemetry import Side
from dynamo.runtime import (
    Client,
    ConfigError,
    ConflictError,
    Context,
    DeadlineError,
    DistributedRuntime,
    DrainingError,
    DynamoError,
    EndpointId,
    OverloadedError,
    Phase,
    Retry,
    StreamBrokenError,
    UnknownEndpointError,
)
from unit.deployments import PATH, bounded, make_runtime, one_attempt, serving, start_call, store, until

pytestmark = pytest.mark.anyio


class Gate:
    """A handler that finishes when told, and remembers who came in."""

    def __init__(self) -> None:
        self.entered: list[Any] = []
        self.finished: list[Any] = []
        self.open = asyncio.Event()

    async def __call__(self, request: Any) -> Any:
        self.entered.append(request)
        await self.open.wait()
        self.finished.append(request)
        return request


def attempt(client: Client, request: Any, **options: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(client.call(request, **options))


async def refusal(client: Client, request: Any, **options: Any) -> DynamoError | None:
    """Why a bare attempt is turned away."""
    return (await one_attempt(client, request, **options)).error


async def in_flight(runtime: DistributedRuntime, count: int) -> None:
    """Wait until so many calls run or wait at the worker."""
    await until(lambda: runtime._hosting.served[PATH].calls == count)


async def test_max_inflight_bounds_the_running_handlers_and_the_queue_those_that_wait() -> None:
    gate = Gate()
    async with serving(gate, max_inflight=2, queue=1) as client:
        calls = [attempt(client, number) for number in range(3)]
        await until(lambda: len(gate.entered) == 2)
        error = await bounded(refusal(client, "too many"))
        assert isinstance(error, OverloadedError)
        assert error.retry is Retry.SAFE
        assert "max_inflight" in str(error)
        gate.open.set()
        assert await bounded(asyncio.gather(*calls)) == [0, 1, 2]
    assert gate.entered == [0, 1, 2]


async def test_a_queue_of_none_refuses_what_cannot_run_at_once() -> None:
    gate = Gate()
    async with serving(gate, max_inflight=1, queue=0) as client:
        first = attempt(client, 1)
        await until(lambda: gate.entered)
        assert isinstance(await bounded(refusal(client, 2)), OverloadedError)
        gate.open.set()
        await bounded(first)


async def test_without_a_bound_everything_runs_at_once() -> None:
    gate = Gate()
    async with serving(gate) as client:
        calls = [attempt(client, number) for number in range(300)]
        await until(lambda: len(gate.entered) == 300)
        gate.open.set()
        await bounded(asyncio.gather(*calls))


async def test_the_queue_goes_by_priority_and_then_by_arrival() -> None:
    order: list[str] = []
    turn = asyncio.Semaphore(0)

    async def handler(request: Any) -> None:
        order.append(request)
        await turn.acquire()

    runtime = make_runtime()
    async with serving(handler, runtime=runtime, max_inflight=1, queue=10) as client:
        calls = [attempt(client, "running")]
        await until(lambda: order)
        for name, priority in [("a", 0), ("b", 0), ("urgent", 5), ("later", -1), ("c", 0), ("urgent too", 5)]:
            calls.append(attempt(client, name, priority=priority))
            await in_flight(runtime, len(calls))
        for _ in calls:
            turn.release()
        await bounded(asyncio.gather(*calls))
    assert order == ["running", "urgent", "urgent too", "a", "b", "c", "later"]


async def test_a_waiting_call_whose_caller_leaves_never_starts_and_makes_room() -> None:
    gate, runtime = Gate(), make_runtime()
    async with serving(gate, runtime=runtime, max_inflight=1, queue=1) as client:
        running = attempt(client, "running")
        await until(lambda: gate.entered)
        for number in range(100):  # more than a heap of given-up entries may hold
            waiting = attempt(client, number)
            await in_flight(runtime, 2)
            waiting.cancel()
            await in_flight(runtime, 1)
        last = attempt(client, "last")
        await in_flight(runtime, 2)
        gate.open.set()
        assert list(await bounded(asyncio.gather(running, last))) == ["running", "last"]
    assert gate.entered == ["running", "last"]


async def test_a_waiting_call_whose_deadline_passes_never_starts() -> None:
    gate = Gate()
    async with serving(gate, max_inflight=1, queue=5) as client:
        running = attempt(client, "running")
        await until(lambda: gate.entered)
        with pytest.raises(DeadlineError):
            await bounded(client.call("late", timeout_s=0.02))
        gate.open.set()
        await bounded(running)
        assert await bounded(client.call("next")) == "next"
    assert gate.entered == ["running", "next"]


@pytest.mark.parametrize(
    "options, says",
    [
        ({"max_inflight": 0}, "max_inflight=0"),
        ({"queue": 3}, "queue=3"),
        ({"max_inflight": 1, "queue": -1}, "queue=-1"),
        ({"max_inflight": "8"}, "max_inflight='8'"),
        ({"max_inflight": 1, "queue": 1.5}, r"queue=1\.5"),
        ({"labels": "model"}, "labels='model': expected a map, or pairs"),
        ({"labels": [("model",)]}, r"labels=\[\('model',\)\]: expected a map, or pairs"),
        ({"labels": {1: "model"}}, "labels={1: 'model'}: expected a map, or pairs"),
        ({"metadata": ["zone"]}, r"metadata=\['zone'\]: expected a map"),
    ],
)
async def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    async with make_runtime() as runtime:
        with pytest.raises(ConfigError, match=says):
            async with runtime.endpoint(PATH).serve(Gate(), **options):
                pass


async def test_an_unknown_endpoint_is_refused_by_name_with_what_there_is() -> None:
    async with serving(Gate()) as client:
        error = await refusal(client, 1, endpoint="demo.backend.other")
    assert isinstance(error, UnknownEndpointError)
    assert "demo.backend.other" in str(error)
    assert "demo.backend.generate" in str(error)


async def test_a_call_that_is_killed_before_its_handler_runs_gives_its_place_back() -> None:
    gate = Gate()
    async with make_runtime() as runtime, runtime.endpoint(PATH).serve(gate, max_inflight=1, queue=0):
        client = await runtime.endpoint(PATH).client()
        await bounded(client.wait_for_instances())
        for _ in range(3):
            call = start_call(client, "killed")
            call.kill()  # travels together with the request, and arrives before the handler's first step
            assert isinstance(await refusal(client, 1, endpoint="demo.backend.other"), UnknownEndpointError)
            await in_flight(runtime, 0)  # it has come, as what was sent after it has
        gate.open.set()
        assert await bounded(client.call("next")) == "next"
    assert gate.entered == ["next"]


async def test_a_stop_that_comes_with_the_request_is_seen_from_the_start() -> None:
    async def handler(request: Any, context: Context) -> Any:
        return [context.is_stopped(), context.is_killed()]

    async with serving(handler) as client:
        call = start_call(client, 1)
        call.stop()
        await bounded(call.wait())
        payload = call.receive_nowait()
        assert payload is not None
        assert decode(payload) == [True, False]


async def test_a_worker_keeps_the_deadline_of_a_caller_that_does_not() -> None:
    gate = Gate()
    async with serving(gate, max_inflight=1, queue=1) as client:
        running = start_call(client, "running", timeout_s=0.3)
        await until(lambda: gate.entered)
        waiting = start_call(client, "waiting", timeout_s=0.01)
        for call, place in ((waiting, "in the queue of"), (running, "in the handler of")):
            await bounded(call.wait())
            assert isinstance(call.error, DeadlineError)
            assert f"passed {place} {PATH}" in str(call.error)
    assert gate.entered == ["running"]


async def test_a_call_that_arrives_past_its_deadline_never_starts() -> None:
    gate = Gate()
    async with serving(gate) as client:
        assert isinstance(await refusal(client, 1, timeout_s=0.0), DeadlineError)
    assert gate.entered == []


async def test_a_handlers_task_that_somebody_else_cancels_breaks_its_stream() -> None:
    tasks: list[asyncio.Task[Any] | None] = []

    async def handler(request: Any) -> None:
        tasks.append(asyncio.current_task())
        await asyncio.Event().wait()

    async with serving(handler) as client:
        call = start_call(client, 1)
        await until(lambda: tasks)
        assert tasks[0] is not None
        tasks[0].cancel()  # as asyncio.run() does at its end
        await bounded(call.wait())
        assert isinstance(call.error, StreamBrokenError)
        assert tasks[0].cancelled()


async def test_a_generator_whose_cleanup_fails_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        try:
            yield object()
        finally:
            raise RuntimeError("the cleanup failed")

    async with serving(handler) as client:
        assert "cannot send" in str(await refusal(client, 1))
        await until(lambda: "the cleanup failed" in caplog.text)


# Leaving.


async def test_what_comes_while_the_last_calls_finish_is_refused_as_draining() -> None:
    gate = Gate()
    async with make_runtime() as runtime:
        client = await runtime.endpoint(PATH).client()

        async def serve_a_while() -> None:
            async with runtime.endpoint(PATH).serve(gate):
                await bounded(client.wait_for_instances())
                calling.append(attempt(client, "running"))
                await until(lambda: gate.entered)

        calling: list[asyncio.Task[Any]] = []
        leaving = asyncio.ensure_future(serve_a_while())
        await until(lambda: PATH in runtime._hosting.served and runtime._hosting.served[PATH].leaving)
        await until(lambda: runtime._hosting.served[PATH]._refusal)
        error = await refusal(client, "late")
        assert isinstance(error, DrainingError)
        assert error.retry is Retry.SAFE
        gate.open.set()
        assert await bounded(calling[0]) == "running"
        await bounded(leaving)


async def test_leaving_the_block_lets_what_runs_finish_and_refuses_what_waits() -> None:
    gate = Gate()
    async with make_runtime() as runtime:
        endpoint = runtime.endpoint(PATH)
        client = await endpoint.client()
        async with endpoint.serve(gate, max_inflight=1, queue=1):
            await bounded(client.wait_for_instances())
            running, waiting = attempt(client, "running"), attempt(client, "waiting", timeout_s=2)
            await until(lambda: gate.entered)
            asyncio.get_running_loop().call_later(0.05, gate.open.set)
        assert gate.finished == ["running"]
        assert await bounded(running) == "running"
        assert endpoint.id not in runtime.serving
        async with endpoint.serve(gate):  # served again, the call that was turned away finds it
            assert await bounded(waiting) == "waiting"


async def test_a_draining_endpoint_is_seen_to_drain_and_serves_through_the_grace() -> None:
    async with make_runtime(drain_grace_s=0.2) as runtime:
        endpoint = runtime.endpoint(PATH)
        client = await endpoint.client()
        phases: list[Phase] = []
        client._membership.subscribe(
            lambda: phases.extend(instance.phase for instance in client._membership.instances())
        )

        async def handler(request: Any) -> Any:
            return request

        async def serve_a_while() -> None:
            async with endpoint.serve(handler):
                await bounded(client.wait_for_instances())

        leaving = asyncio.ensure_future(serve_a_while())
        await until(lambda: Phase.DRAINING in phases)
        call = await one_attempt(client, "late")  # by somebody who had not heard of it yet
        assert call.error is None
        assert call.receive_nowait() is not None
        await bounded(leaving)
        await until(lambda: not client._membership.instances())


async def test_cancelling_serve_endpoint_withdraws_it() -> None:
    async with make_runtime() as runtime:
        endpoint = runtime.endpoint(PATH)
        client = await endpoint.client()
        serving_it = asyncio.ensure_future(endpoint.serve_endpoint(Gate()))
        await bounded(client.wait_for_instances())
        serving_it.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bounded(serving_it)
        assert runtime.serving == ()
        assert not store(runtime).entries


async def test_without_graceful_shutdown_open_streams_are_cancelled_at_once() -> None:
    cancelled = asyncio.Event()

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield "first"
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with make_runtime(graceful_shutdown_timeout_s=60) as runtime:
        endpoint = runtime.endpoint(PATH)
        client = await endpoint.client()
        async with endpoint.serve(handler, graceful_shutdown=False):
            await bounded(client.wait_for_instances())
            stream = client.stream(1)
            await bounded(anext(stream))
        assert cancelled.is_set()
        with pytest.raises(StreamBrokenError, match="shut down"):
            await bounded(anext(stream))


async def test_what_does_not_finish_in_time_is_cancelled() -> None:
    async with make_runtime(graceful_shutdown_timeout_s=0.05) as runtime:
        endpoint = runtime.endpoint(PATH)
        client = await endpoint.client()
        async with endpoint.serve(Gate()):
            await bounded(client.wait_for_instances())
            call = attempt(client, 1, idempotent=False)
            await until(lambda: runtime._hosting.served[PATH].calls)
        with pytest.raises(StreamBrokenError) as raised:
            await bounded(call)
        assert raised.value.retry is Retry.UNKNOWN


async def test_what_a_cancelled_handler_does_at_its_end_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tidied = asyncio.Event()

    async def handler(request: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            tidied.set()

    async with make_runtime(graceful_shutdown_timeout_s=0.01) as runtime:
        endpoint = runtime.endpoint(PATH)
        client = await endpoint.client()
        async with endpoint.serve(handler):
            await bounded(client.wait_for_instances())
            call = attempt(client, 1)
            await until(lambda: runtime._hosting.served[PATH].calls)
        assert tidied.is_set()
        with pytest.raises(StreamBrokenError):
            await bounded(call)
    assert "run on" not in caplog.text


async def test_a_handler_that_never_ends_does_not_hold_up_the_shutdown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo.core.answering.CANCEL_S", 0.05)
    monkeypatch.setattr("dynamo.core.serving.CANCEL_S", 0.05)
    release = asyncio.Event()

    async def stubborn(request: Any) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                pass

    async with make_runtime(graceful_shutdown_timeout_s=0.05) as runtime:
        endpoint = runtime.endpoint(PATH)
        client = await endpoint.client()
        async with endpoint.serve(stubborn):
            await bounded(client.wait_for_instances())
            call = attempt(client, 1)
            await until(lambda: runtime._hosting.served[PATH].calls)
        with pytest.raises(StreamBrokenError):
            await bounded(call)
    assert "run on although they were cancelled" in caplog.text
    release.set()


async def test_one_runtime_serves_an_endpoint_once() -> None:
    async with make_runtime() as runtime:
        async with runtime.endpoint(PATH).serve(Gate()):
            with pytest.raises(ConflictError, match="already served"):
                async with runtime.endpoint(PATH).serve(Gate()):
                    pass
            assert runtime.serving == (EndpointId.parse(PATH),)


async def test_the_endpoints_of_a_runtime_share_one_address_and_id() -> None:
    async with make_runtime() as runtime:
        async with (
            runtime.endpoint("a.b.c").serve(Gate()) as one,
            runtime.endpoint("a.b.d").serve(Gate()) as two,
        ):
            assert one.instance_id == two.instance_id == runtime.connection_id()
            assert one.addresses == two.addresses


async def test_what_serve_is_told_is_in_the_record() -> None:
    async with make_runtime() as runtime:
        serve = runtime.endpoint(PATH).serve(
            Gate(),
            name="worker-1",
            idempotent=True,
            metadata={"device_type": "cuda"},
            labels=[("model", "m")],
        )
        async with serve:
            client = await runtime.endpoint(PATH).client()
            await bounded(client.wait_for_instances())
            (seen,) = client.instances()
    assert (seen.name, seen.idempotent, seen.device_type) == ("worker-1", True, "cuda")
    assert seen.metadata["labels"] == {"model": "m"}


@pytest.mark.parametrize(
    "options, says",
    [({"name": "a b"}, "instance name 'a b'"), ({"metadata": {"x": object()}}, "not JSON")],
)
async def test_a_record_that_discovery_cannot_hold_is_refused(options: Any, says: str) -> None:
    async with make_runtime() as runtime:
        with pytest.raises(ConfigError, match=says):
            async with runtime.endpoint(PATH).serve(Gate(), **options):
                pass
        assert runtime.serving == ()
        async with runtime.endpoint(PATH).serve(Gate()):  # and nothing of it is left
            pass


# Sleep and wake.


async def test_an_instance_sleeps_out_of_discovery_while_it_serves_and_wakes() -> None:
    async with make_runtime() as runtime:
        endpoint = runtime.endpoint(PATH)
        async with endpoint.serve(Gate()) as instance:
            await bounded(endpoint.unregister_endpoint_instance())
            await bounded(endpoint.unregister_endpoint_instance())
            assert (endpoint.id, instance.instance_id) not in store(runtime).entries
            assert runtime.serving == (endpoint.id,)
            await bounded(endpoint.register_endpoint_instance())
            await bounded(endpoint.register_endpoint_instance())
            assert (endpoint.id, instance.instance_id) in store(runtime).entries


async def test_what_is_not_served_has_nothing_to_register() -> None:
    async with make_runtime() as runtime:
        with pytest.raises(ConfigError, match="not served"):
            await runtime.endpoint(PATH).register_endpoint_instance()


# Telemetry.


class Tally:
    """Counts what a runtime tells."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def endpoint(self, endpoint_id: EndpointId, side: Side, labels: Any = None) -> Tally:
        return self if side is Side.SERVER else Tally()

    def started(self) -> None:
        self.told.append("started")

    def first_item(self, after_s: float) -> None:
        self.told.append("first")

    def ended(self, after_s: float, error: str | None) -> None:
        self.told.append(f"ended {error}")

    def refused(self, error: str) -> None:
        self.told.append(f"refused {error}")

    def retried(self, error: str) -> None:
        self.told.append("retried")

    def instances_changed(self, change: Any) -> None:
        pass

    def lease_changed(self, held: bool, reason: str) -> None:
        self.told.append(f"lease {held}")


async def test_telemetry_is_told_of_requests_and_the_lease_and_of_no_single_item() -> None:
    tally = Tally()

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        for number in range(50):
            yield number
        if request == "fail":
            raise ValueError("failed")

    async with serving(handler, runtime=make_runtime(telemetry=tally), max_inflight=1) as client:
        assert len([item async for item in client.stream("fine")]) == 50
        with pytest.raises(DynamoError):
            [item async for item in client.stream("fail")]
    assert tally.told == [
        "lease True",
        "started",
        "first",
        "ended None",
        "started",
        "first",
        "ended ValueError",
    ]
