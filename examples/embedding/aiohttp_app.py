"""A runtime as a guest in an aiohttp application: it opens and closes with the application, nothing more.

A client that closes its connection cancels the request handler (``handler_cancellation``), which leaves the
block of ``stream``, which cancels the worker.
"""

import sys
from collections.abc import AsyncIterator

from aiohttp import web

from dynamo.runtime import Client, DistributedRuntime, UnavailableError

GENERATE = web.AppKey("generate", Client)


async def dynamo(app: web.Application) -> AsyncIterator[None]:
    async with DistributedRuntime.from_env() as runtime:
        app[GENERATE] = await runtime.endpoint("demo.backend.generate").client()
        yield


async def generate(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
    try:
        async with request.app[GENERATE].stream(await request.json()) as words:
            async for word in words:
                if not response.prepared:
                    await response.prepare(request)  # 200, now that a worker answers
                await response.write(f"{word}\n".encode())
    except UnavailableError as error:  # nobody took the call, so nothing is sent yet
        raise web.HTTPServiceUnavailable(text=f"{error}\n") from error
    return response


def application() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(dynamo)
    app.router.add_post("/generate", generate)
    return app


if __name__ == "__main__":
    port = int(sys.argv[1]) if sys.argv[1:] else 8080
    web.run_app(application(), host="127.0.0.1", port=port, handler_cancellation=True)
