"""A runtime as a guest in a FastAPI application: it lives in the application's lifespan.

A client that closes its connection cancels the task of its StreamingResponse, and with it the worker.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from dynamo.runtime import DistributedRuntime, ResponseStream, UnavailableError


class Prompt(BaseModel):
    prompt: str


@asynccontextmanager
async def dynamo(app: FastAPI) -> AsyncIterator[None]:
    async with DistributedRuntime.from_env() as runtime:
        app.state.generate = await runtime.endpoint("demo.backend.generate").client()
        yield


app = FastAPI(lifespan=dynamo)


@app.post("/generate")
async def generate(body: Prompt, request: Request) -> StreamingResponse:
    words = request.app.state.generate.stream(body.model_dump())
    try:
        first = await anext(words, None)  # no status is sent before a worker answers
    except UnavailableError as error:
        raise HTTPException(503, str(error)) from error
    return StreamingResponse(lines(first, words), media_type="text/plain")


async def lines(word: str | None, words: ResponseStream) -> AsyncIterator[str]:
    async with words:
        while word is not None:
            yield f"{word}\n"
            word = await anext(words, None)


if __name__ == "__main__":
    port = int(sys.argv[1]) if sys.argv[1:] else 8080
    uvicorn.run(app, host="127.0.0.1", port=port)
