"""A runtime as a guest: in somebody else's process, loop, thread, signals and logging."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from dynamo.core import registry
from dynamo.core.errors import MissingExtraError
from dynamo.runtime import (
    ClosedError,
    ConfigError,
    DistributedRuntime,
    Status,
)
from dynamo.testing.leaks import Traces
from unit.deployments import PATH, bounded, fresh, make_runtime, until

pytestmark = pytest.mark.anyio


async def echo(request: Any) -> Any:
    return request


async def count(request: int) -> AsyncIterator[int]:
    for number in range(request):
        yield number


# Opening and closing.


async def test_construction_does_nothing_and_needs_no_loop() -> None:
    before = Traces.now()
    runtime = make_runtime()
    assert Traces.now().beyond(before) == []
    assert runtime.health().status is Status.DOWN
    await runtime.shutdown()
    with pytest.raises(ClosedError, match="make a new one"):
        await runtime.endpoint(PATH).client()


def test_a_runtime_can_be_made_before_there_is_a_loop() -> None:
    runtime = make_runtime()

    async def main() -> Any:
        async with runtime, runtime.endpoint(PATH).serve(echo):
            client = await runtime.endpoint(PATH).client()
            return await bounded(client.call("hello"))

    assert asyncio.run(main()) == "hello"


async def test_a_program_may_wait_until_it_is_told_to_end() -> None:
    async with make_runtime() as runtime:
        told = asyncio.create_task(runtime.until_shutdown())
        await asyncio.sleep(0)
        assert not told.done()
        ended = runtime.shutdown()
        await bounded(told)
        await bounded(ended)
        await bounded(runtime.until_shutdown())  # after the end too


async def test_a_runtime_opens_at_its_first_await_and_closes_at_shutdown() -> None:
    before = Traces.now()
    runtime = make_runtime()
    serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(echo))
    client = await bounded(runtime.endpoint(PATH).client())
    await bounded(client.wait_for_instances())
    assert await bounded(client.call(1)) == 1
    assert runtime.health().status is Status.UP
    await bounded(runtime.shutdown())
    await bounded(serving)
    await bounded(runtime.shutdown())  # again changes nothing
    assert runtime.health().status is Status.DOWN
    await until(lambda: not Traces.now().beyond(before))


async def test_a_shutdown_need_not_be_awaited() -> None:
    runtime = make_runtime()
    serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(echo))
    await until(lambda: runtime.serving)
    runtime.shutdown()
    assert runtime.health().status is Status.DOWN
    await bounded(serving)


async def test_a_thousand_runtimes_open_and_close_without_a_trace() -> None:
    async def once() -> None:
        async with make_runtime() as runtime:
            async with runtime.endpoint(PATH).serve(echo):
                client = await runtime.endpoint(PATH).client()
                await client.wait_for_instances()
                assert await client.call(7) == 7

    for _ in range(50):  # warm what is cached for good
        await bounded(once())
    gc.collect()
    before, objects = Traces.now(), len(gc.get_objects())
    memory = psutil.Process().memory_info().rss
    for _ in range(1_000):
        await bounded(once())
    await until(lambda: not Traces.now().beyond(before))
    gc.collect()
    assert len(gc.get_objects()) - objects < 1_000, "less than one object each"
    assert psutil.Process().memory_info().rss - memory < 8 * 2**20


async def test_two_runtimes_in_one_process_talk_to_each_other() -> None:
    url = fresh()
    async with make_runtime(url) as worker, make_runtime(url) as caller:
        async with worker.endpoint(PATH).serve(count):
            client = await caller.endpoint(PATH).client()
            assert await bounded(client.wait_for_instances()) == [worker.connection_id()]
            assert [item async for item in client.stream(3)] == [0, 1, 2]
        assert worker.connection_id() != caller.connection_id()


async def test_a_host_that_cancels_the_block_gets_its_cancellation_and_a_closed_runtime() -> None:
    before = Traces.now()
    entered = asyncio.Event()

    async def host() -> None:
        async with make_runtime() as runtime, runtime.endpoint(PATH).serve(echo):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(host())
    await bounded(entered.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bounded(task)
    await until(lambda: not Traces.now().beyond(before))


async def test_a_host_that_raises_gets_its_own_error() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with make_runtime() as runtime, runtime.endpoint(PATH).serve(echo):
            raise KeyError("mine")


def test_a_loop_that_ends_without_a_shutdown_takes_the_runtime_with_it() -> None:
    seen: list[str] = []

    async def main() -> None:
        runtime = make_runtime()
        client = await runtime.endpoint(PATH).client()
        serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(echo))
        await bounded(client.wait_for_instances())
        seen.append(await bounded(client.call("served")))
        assert not serving.done()

    asyncio.run(main())
    assert seen == ["served"]


# Whose it is.


async def test_use_from_another_loop_is_an_error_that_says_so() -> None:
    async with make_runtime() as runtime:

        async def use() -> None:
            await runtime.endpoint(PATH).client()

        async def serve() -> None:
            async with runtime.endpoint(PATH).serve(echo):
                pass

        async def shut_down() -> None:
            runtime.shutdown()

        for attempt in (use, serve, shut_down):
            with pytest.raises(ClosedError, match="belongs to the event loop that opened it"):
                await asyncio.to_thread(asyncio.run, attempt())


async def test_a_loop_given_at_construction_is_the_one_it_belongs_to() -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), fresh(), "mem", drain_grace_s=0)
    assert runtime.event_loop() is asyncio.get_running_loop()

    async def use() -> None:
        await runtime.endpoint(PATH).client()

    with pytest.raises(ClosedError):
        await asyncio.to_thread(asyncio.run, use())
    await runtime.shutdown()


async def test_another_thread_may_shut_it_down() -> None:
    runtime = make_runtime()
    serving = asyncio.ensure_future(runtime.endpoint(PATH).serve_endpoint(echo))
    await until(lambda: runtime.serving)
    await asyncio.to_thread(runtime.shutdown)
    await bounded(serving)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
async def test_a_forked_child_is_told_to_make_its_own() -> None:
    async with make_runtime() as runtime:
        async with runtime.endpoint(PATH).serve(echo):
            client = await runtime.endpoint(PATH).client()
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    said = []
                    for use in (runtime.health, runtime.shutdown, lambda: asyncio.run(_client(runtime))):
                        try:
                            use()
                        except ClosedError as error:
                            said.append("fork" in str(error))
                    os.write(writer, b"yes" if said == [True] * 3 else repr(said).encode())
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            assert os.read(reader, 1000) == b"yes"
            os.close(reader)
            os.close(writer)
            assert await bounded(client.call("the parent serves on")) == "the parent serves on"


async def _client(runtime: DistributedRuntime) -> None:
    await runtime.endpoint(PATH).client()


async def test_a_runtime_touches_neither_signals_nor_logging() -> None:
    root = logging.getLogger()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    handlers, level = list(root.handlers), root.level
    ours = logging.getLogger("dynamo.runtime")
    async with make_runtime() as runtime, runtime.endpoint(PATH).serve(echo):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        assert (root.handlers, root.level) == (handlers, level)
        assert (ours.handlers, ours.level) == ([], logging.NOTSET)


async def test_signals_can_be_handled_in_the_main_thread_only() -> None:
    async def main() -> None:
        async with make_runtime(handle_signals=True):
            pass

    with pytest.raises(ConfigError, match="main thread"):
        await asyncio.to_thread(asyncio.run, main())


async def test_handled_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with make_runtime(handle_signals=True), make_runtime(handle_signals=True):
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# What it says about a bad environment.


@pytest.mark.parametrize(
    "options, says",
    [
        ({"discovery": "memm"}, "did you mean 'mem'"),
        ({"discovery": "consul"}, "mem (one process), file (one host) or static"),
        ({"request_plane": "carrier-pigeon"}, "carrier-pigeon"),
        ({"response_plane": "quic"}, "quic"),
        ({"discovery": "mem", "discovery_backend": "mem"}, "two names of one option"),
        ({"drain_grace_s": "soon"}, "drain_grace_s='soon'"),
        ({"discovry": "mem"}, "unknown option 'discovry'"),
    ],
)
def test_a_bad_option_is_refused_at_construction(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        DistributedRuntime(**{"discovery": "mem", "request_plane": "mem", **options})
    assert says in str(raised.value)


def test_the_default_backend_without_its_packages_points_at_those_without_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DYN_DISCOVERY_BACKEND", raising=False)
    monkeypatch.setattr(registry.discovery, "_factories", {})
    for name in [name for name in sys.modules if name.startswith("dynamo.adapters.discovery.etcd")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(
        MissingExtraError, match=r"'grpc'.*\[etcd\].*'etcd' is the default.*mem \(one process\)"
    ):
        DistributedRuntime()


def test_enable_nats_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="enable_nats"):
        DistributedRuntime(None, "mem", "mem", True)


# Whole programs.

PATIENCE_S = 50.0  # for a process, on a machine that is busy with others


PROGRAM = """
import asyncio, sys, signal, os, time
from dynamo.runtime import DistributedRuntime, dynamo_worker, Context

def say(text):
    print(text, flush=True)

run = asyncio.run
if os.environ.get("DYNAMO_TEST_LOOP") == "uvloop":
    import uvloop
    run = uvloop.run
"""


def start(program: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM + textwrap.dedent(program)],
        env={
            **os.environ,
            "DYN_DISCOVERY_BACKEND": "mem",
            "DYN_REQUEST_PLANE": "mem",
            "DYN_DRAIN_GRACE_S": "0.1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def heard(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line, process.communicate(timeout=PATIENCE_S)[1]


STREAMING_WORKER = """
async def generate(request, context: Context):
    for number in range(5):
        yield number
        await asyncio.sleep(0.05)

@dynamo_worker()
async def worker(runtime):
    endpoint = runtime.endpoint("a.b.c")
    client = await endpoint.client()

    async def call():
        await client.wait_for_instances()
        items = []
        async with client.stream(None) as stream:
            async for item in stream:
                items.append(item)
                if len(items) == 1:
                    say("streaming")
        say(items)

    calling = asyncio.create_task(call())
    await endpoint.serve_endpoint(generate)
    say(client.instance_ids())
    await calling
    say("cleaned up")
    return 5

result = run(worker())
say(result)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_program_ends_well(number: signal.Signals) -> None:
    with start(STREAMING_WORKER) as process:
        heard(process, "streaming")
        process.send_signal(number)
        process.send_signal(number)  # its echo, from a wrapper that passes on what the group got already
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert output.splitlines() == ["[0, 1, 2, 3, 4]", "[]", "cleaned up", "5"], errors
    assert process.returncode == 0
    assert errors == ""


@pytest.mark.parametrize("blocking", ["await asyncio.sleep(60)", "time.sleep(60)"])
def test_a_second_signal_exits_at_once_even_from_a_blocked_loop(blocking: str) -> None:
    program = f"""
    async def generate(request):
        say("running")
        {blocking}
        yield 1

    @dynamo_worker()
    async def worker(runtime):
        endpoint = runtime.endpoint("a.b.c")
        client = await endpoint.client()
        calling = asyncio.create_task(client.call(1))
        await endpoint.serve_endpoint(generate)

    run(worker())
    """
    with start(program) as process:
        heard(process, "running")
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 70
        assert process.stderr is not None
        assert "second signal" in process.stderr.read()


def test_ctrl_c_ends_a_program_that_serves_nothing() -> None:
    program = """
    @dynamo_worker()
    async def caller(runtime):
        client = await runtime.endpoint("a.b.c").client()
        say("waiting")
        try:
            await asyncio.Event().wait()
        finally:
            say("cleaned up")

    say(run(caller()))
    """
    with start(program) as process:
        heard(process, "waiting")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (output.splitlines(), process.returncode, errors) == (["cleaned up", "None"], 0, "")


def test_a_worker_that_does_not_return_after_its_drain_is_cancelled() -> None:
    program = """
    import dynamo.core.worker
    dynamo.core.worker.FAREWELL_S = 0.1

    @dynamo_worker()
    async def worker(runtime):
        async def echo(request):
            return request
        async with runtime.endpoint("a.b.c").serve(echo):
            say("serving")
            await asyncio.Event().wait()

    say(run(worker()))
    """
    with start(program) as process:
        heard(process, "serving")
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (output.splitlines(), process.returncode, errors) == (["None"], 0, "")


def test_a_runtime_that_was_asked_to_handles_signals_itself() -> None:
    program = """
    async def main():
        async def echo(request):
            return request
        async with DistributedRuntime(handle_signals=True) as runtime:
            asyncio.get_running_loop().call_soon(say, "serving")
            await runtime.endpoint("a.b.c").serve_endpoint(echo)
        say("ended")

    run(main())
    """
    with start(program) as process:
        heard(process, "serving")
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (output.splitlines(), process.returncode, errors) == (["ended"], 0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
def test_a_forked_child_dies_of_a_signal_as_any_process_does() -> None:
    program = """
    async def main():
        async with DistributedRuntime(handle_signals=True):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.write(writer, b"forked")
                time.sleep(30)
                os._exit(1)
            os.read(reader, 6)
            os.kill(pid, signal.SIGTERM)
            say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    run(main())
    """
    with start(program) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (output.split(), process.returncode, errors) == (["-15"], 0, "")


def test_a_signal_after_the_loop_has_ended_ends_the_process() -> None:
    program = """
    async def main():
        runtime = DistributedRuntime(handle_signals=True)
        await runtime.endpoint("a.b.c").client()

    run(main())
    say("the loop ended without a shutdown")
    time.sleep(30)
    """
    with start(program) as process:
        heard(process, "the loop ended without a shutdown")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == -signal.SIGTERM


def test_importing_the_public_face_is_quick_and_loads_no_adapters_dependency() -> None:
    program = """
    import json
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    adapters = [name for name in sys.modules if name.startswith("dynamo.adapters.")]
    say(json.dumps([loaded, adapters]))
    """
    import json

    with start(program) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    loaded, adapters = json.loads(output)
    assert adapters == [], errors
    forbidden = {
        "aiohttp",
        "grpc",
        "nats",
        "kubernetes",
        "zmq",
        "yaml",
        "cupy",
        "watchfiles",
        "pydantic",
        "uvloop",
    }
    assert not forbidden & set(loaded)


def test_nvidias_wheel_in_the_same_environment_is_noticed(tmp_path: Any) -> None:
    (tmp_path / "dynamo").mkdir()
    (tmp_path / "dynamo" / "_core.py").write_text("")
    with start("say('imported')", PYTHONPATH=str(tmp_path)) as process:
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert output == "imported\n"
    assert "RuntimeWarning" in errors
    assert "ai-dynamo-runtime" in errors
    assert "virtual environment" in errors
