"""One worker of ``dynamo serve``: ``python -m dynamo.cli.worker DEPLOYMENT SERVICE READY_FD``.

It tells on READY_FD when it serves. Its standard input is open for as long as its supervisor lives.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from contextlib import AsyncExitStack

from dynamo.cli import logs
from dynamo.cli.deployment import Deployment
from dynamo.cli.loops import fastest_loop
from dynamo.cli.options import given
from dynamo.cli.showing import one_line
from dynamo.core.distributed import DistributedRuntime
from dynamo.core.errors import ClosedError, ConfigError, DynamoError
from dynamo.sdk import serve_services

logger = logging.getLogger("dynamo.serve")


async def _run(deployment: Deployment, service: str, ready: int) -> None:
    options = given(deployment.discovery, deployment.request_plane)
    async with DistributedRuntime(handle_signals=True, **options) as runtime:
        try:
            await _serve(runtime, deployment, service, ready)
        except ClosedError:
            if not runtime._begun.is_set():
                raise  # else it was told to end before it had begun, and there is nothing to drain


async def _serve(runtime: DistributedRuntime, deployment: Deployment, service: str, ready: int) -> None:
    logs.configure(runtime.settings)
    graph = deployment.graph()
    asyncio.get_running_loop().add_reader(0, _on_input, runtime)
    planned = graph[service]
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serve_services(runtime, planned.service.cls, graph=graph))
        if (port := deployment.http_ports.get(service)) is not None:
            from dynamo.adapters.http import serve_http

            shared = port != 0 and planned.workers > 1
            url = await stack.enter_async_context(
                serve_http(served, port=port, host=deployment.http_host, reuse_port=shared)
            )
            print(f"HTTP routes at {url}", flush=True)  # noqa: T201
        if not runtime.serving:
            runtime.set_health_status(True)
        # What the start has made, models too, stays: a full collection would stop all calls while it looks.
        gc.collect()
        gc.freeze()
        os.write(ready, b"1")
        os.close(ready)
        await served.until_shutdown()


def _on_input(runtime: DistributedRuntime) -> None:
    """Only the end of the input comes: the supervisor is gone, and nobody would end this process."""
    asyncio.get_running_loop().remove_reader(0)
    runtime.shutdown()


def main() -> int:
    deployment, service, ready = sys.argv[1:]
    try:
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            runner.run(_run(Deployment.from_text(deployment), service, int(ready)))
    except DynamoError as error:
        print(one_line(f"{type(error).__name__}: {error}"), file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, ConfigError) else 1
    except Exception as error:
        logger.critical("%s failed", service, exc_info=in_their_code(error))
        return 1
    return 0


def in_their_code(error: BaseException) -> BaseException:
    """Without the frames that lead from here to code of the service; with all where it never came there."""
    trace, called = error.__traceback__, False
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if called and module != "contextlib" and not module.startswith("dynamo."):
            return error.with_traceback(trace)
        called = called or module.startswith("dynamo.sdk.")
        trace = trace.tb_next
    return error


if __name__ == "__main__":
    sys.exit(main())
