"""What a worker tells HTTP clients: what it serves, and what is wrong with a request."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from dynamo.adapters.request_plane.http2 import open_http2
from dynamo.core.config import Settings
from dynamo.core.errors import (
    AuthError,
    BadPayloadError,
    DeadlineError,
    DrainingError,
    DynamoError,
    OverloadedError,
    RemoteError,
    Retry,
    TooLargeError,
    UnknownEndpointError,
    WrongInstanceError,
)
from dynamo.runtime import DistributedRuntime, endpoint, service
from dynamo.sdk import serve_services

pytestmark = pytest.mark.anyio


@service(namespace="demo")
class Greeter:
    @endpoint()
    async def greet(self, name: str, times: int = 1) -> AsyncIterator[str]:
        for _ in range(times):
            yield f"hello {name}"


async def echo(request: Any) -> Any:
    return request


@asynccontextmanager
async def worker() -> AsyncIterator[httpx.AsyncClient]:
    """A client of a runtime that serves Greeter."""
    runtime = DistributedRuntime(
        discovery="mem", request_plane="http2", tcp_host="127.0.0.1", drain_grace_s=0
    )
    async with runtime, serve_services(runtime, Greeter):
        calling = await runtime.endpoint("demo.Greeter.greet").client()
        await calling.wait_for_instances()
        (instance,) = calling.instances()
        async with httpx.AsyncClient(
            base_url=instance.addresses[0], http1=False, http2=True, trust_env=False
        ) as client:
            yield client


async def test_what_is_served_is_listed_with_its_schemas() -> None:
    async with worker() as client:
        answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    told = answer.json()
    greet = told["endpoints"]["demo.Greeter.greet"]
    assert greet["item"] == {"type": "string"}
    request = told["components"]["schemas"][greet["request"]["$ref"].rpartition("/")[2]]
    assert request["properties"]["times"] == {"type": "integer", "default": 1}
    assert request["required"] == ["name"]


@pytest.mark.parametrize(
    "method, path, allow", [("GET", "/demo/Greeter/greet", "POST"), ("PUT", "/", "GET"), ("POST", "/", "GET")]
)
async def test_another_method_is_told_which_is_allowed(method: str, path: str, allow: str) -> None:
    async with worker() as client:
        answer = await client.request(method, path, json={"name": "you"})
        assert (answer.status_code, answer.headers["allow"]) == (405, allow)
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == 405
        assert path in problem["detail"]


async def test_the_answer_to_head_has_no_body() -> None:
    async with worker() as client:
        answer = await client.head("/")
        assert (answer.status_code, answer.headers["allow"], answer.content) == (405, "GET", b"")


async def test_a_body_of_another_type_is_told_which_is_read() -> None:
    async with worker() as client:
        text = {"content-type": "text/plain"}
        answer = await client.post("/demo/Greeter/greet", content="name=you", headers=text)
        assert answer.status_code == answer.json()["status"] == 415
        assert "application/json" in answer.json()["detail"]


async def test_an_unknown_endpoint_is_told_what_there_is() -> None:
    async with worker() as client:
        answer = await client.post("/demo/Greeter/nothing", json={})
        assert answer.status_code == 404
        assert "demo.Greeter.greet" in answer.json()["detail"]


@pytest.mark.parametrize("token", ["another", None])
async def test_a_caller_with_another_token_is_told_at_once_where_and_what_to_set(token: str | None) -> None:
    store = f"mem://{uuid.uuid4().hex}"
    options: dict[str, Any] = {
        "discovery": store,
        "request_plane": "http2",
        "tcp_host": "127.0.0.1",
        "drain_grace_s": 0,
    }
    async with (
        DistributedRuntime(**options, auth_token="one") as worker,
        DistributedRuntime(**options, auth_token=token) as caller,
        worker.endpoint("demo.backend.echo").serve(echo) as instance,
    ):
        client = await caller.endpoint("demo.backend.echo").client()
        await client.wait_for_instances(timeout_s=10)
        with pytest.raises(AuthError) as refused:
            await client.call("hi", timeout_s=10)
    assert str(refused.value) == (
        f"{instance.addresses[0]} wants a bearer token; set DYN_AUTH_TOKEN to the same on both sides"
    )
    assert refused.value.retry is Retry.NEVER


async def test_items_are_lines() -> None:
    async with worker() as client:
        answer = await client.post("/demo/Greeter/greet", json={"name": "you", "times": 2})
        assert answer.text == '"hello you"\n"hello you"\n'


REFUSED: list[tuple[DynamoError, int, str | None]] = [
    (BadPayloadError("no such field"), 400, None),
    (AuthError("not you"), 401, None),
    (UnknownEndpointError("nobody"), 404, None),
    (TooLargeError("too much"), 413, None),
    (OverloadedError("full"), 429, "1"),
    (DrainingError("leaving"), 503, "1"),
    (WrongInstanceError("another"), 503, "1"),
    (DeadlineError("late"), 504, None),
    (RemoteError("no 'x'", type_name="KeyError"), 500, None),
    (RemoteError("gone", type_name="Gone", status=410), 410, None),
]


@pytest.mark.parametrize("error, status, retry_after", REFUSED, ids=lambda value: type(value).__name__)
async def test_each_error_has_its_status_and_a_problem_body(
    error: DynamoError, status: int, retry_after: str | None
) -> None:
    async with (
        open_http2("http2://", Settings(tcp_host="127.0.0.1")) as plane,
        plane.serve(lambda call: call.fail(error), instance_id=1, incarnation=1) as server,
        httpx.AsyncClient(base_url=server.addresses[0], http1=False, http2=True, trust_env=False) as client,
    ):
        answer = await client.post("/a/b/c", json={})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers.get("retry-after") == retry_after
    problem = answer.json()
    assert (problem["title"], problem["status"], problem["detail"]) == (
        type(error).__name__,
        status,
        error.message,
    )
