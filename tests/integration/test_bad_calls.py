"""What users get wrong in a call: whom they call, what they send. One typed error each; the rest goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from dynamo.adapters.discovery.mem import open_mem
from dynamo.core.config import Settings
from dynamo.core.errors import (
    ConfigError,
    DynamoError,
    EncodeError,
    NoInstancesError,
    RemoteError,
    Retry,
    TooLargeError,
    UnavailableError,
    UnknownEndpointError,
    WrongInstanceError,
)
from dynamo.core.model import EndpointId, Instance
from dynamo.runtime import Client, Context, DistributedRuntime
from integration.refusals import check, echo, free_port, make
from unit.deployments import PATH, bounded, fresh

pytestmark = pytest.mark.anyio

MIB = 2**20


# Whom to call


@asynccontextmanager
async def registered(
    discovery: str, *addresses: str, endpoint: str = PATH, **fields: Any
) -> AsyncIterator[None]:
    """A record in mem discovery that somebody else is answerable for."""
    fields = {"instance_id": 77, "incarnation": 5, **fields}
    async with open_mem(discovery, Settings()) as backend:
        async with backend.lease(
            instance_id=fields["instance_id"], incarnation=fields["incarnation"]
        ) as lease:
            endpoint_id = EndpointId.parse(endpoint)
            await lease.put(Instance(endpoint_id=endpoint_id, addresses=addresses, **fields))
            yield


async def call_fails(
    error: type[DynamoError], retry: Retry, *words: str, runtime: DistributedRuntime
) -> None:
    client = await bounded(runtime.endpoint(PATH).client())
    with pytest.raises(error) as caught:
        await bounded(client.call("hello"))
    assert caught.value.retry is retry
    check(caught.value, error, words)


@pytest.mark.parametrize("plane", ["mem", "tcp"])
async def test_an_endpoint_that_nobody_serves(plane: str) -> None:
    async with make(plane) as runtime:
        words = (PATH, "after 0.5 s", "DYN_INSTANCE_WAIT_S", "check the name", "DYN_DISCOVERY_BACKEND")
        await call_fails(NoInstancesError, Retry.SAFE, *words, "nothing else is registered", runtime=runtime)
        async with runtime.endpoint("demo.backend.generat").serve(echo):
            await call_fails(
                NoInstancesError, Retry.SAFE, *words, "demo.backend.generat (1)", runtime=runtime
            )


@asynccontextmanager
async def one_worker(discovery: str) -> AsyncIterator[tuple[Client, Instance]]:
    """A client of a worker that serves one endpoint, and its record."""
    async with make(discovery=discovery) as runtime, runtime.endpoint("demo.backend.other").serve(echo):
        client = await runtime.endpoint("demo.backend.other").client()
        await bounded(client.wait_for_instances())
        (instance,) = client.instances()
        yield client, instance
        assert await bounded(client.call(1)) == 1


async def test_an_endpoint_that_its_instance_does_not_serve() -> None:
    discovery = fresh()
    async with one_worker(discovery) as (_, instance), make(discovery=discovery) as caller:
        who: dict[str, Any] = {"instance_id": instance.instance_id, "incarnation": instance.incarnation}
        async with registered(discovery, *instance.addresses, **who):
            await call_fails(UnknownEndpointError, Retry.SAFE, PATH, "DYN_INSTANCE_WAIT_S", runtime=caller)


async def test_an_address_where_another_instance_lives() -> None:
    discovery = fresh()
    async with one_worker(discovery) as (_, instance), make(discovery=discovery) as caller:
        async with registered(discovery, instance.addresses[-1], instance_id=77):
            words = (instance.addresses[-1], "instance 77", str(instance.instance_id), "address was reused")
            await call_fails(WrongInstanceError, Retry.SAFE, *words, runtime=caller)


@pytest.mark.parametrize(
    "address,words",
    [
        ("tcp://127.0.0.1:{port}", ("cannot connect to tcp://127.0.0.1:{port}: Connection refused",)),
        ("tcp://no-such-host.invalid:5", ("cannot connect to tcp://no-such-host.invalid:5",)),
    ],
)
async def test_an_address_where_nobody_is(address: str, words: tuple[str, ...]) -> None:
    discovery, port = fresh(), free_port()
    async with registered(discovery, address.format(port=port)), make(discovery=discovery) as runtime:
        told = (text.format(port=port) for text in words)
        await call_fails(UnavailableError, Retry.SAFE, "DYN_INSTANCE_WAIT_S", *told, runtime=runtime)


@pytest.mark.parametrize(
    "addresses,words",
    [
        (("http2://127.0.0.1:1",), ("it listens on http2", "set DYN_REQUEST_PLANE alike")),
        (("tcp://nowhere",), ("bad address 'tcp://nowhere'", "expected tcp://host:port")),
        (("tcp://[::1",), ("bad address 'tcp://[::1'",)),
        (("unix://another-boot/run/x.sock",), ("it listens on unix",)),
        ((), ("no address",)),
    ],
)
async def test_addresses_that_nobody_here_can_dial(
    addresses: tuple[str, ...], words: tuple[str, ...]
) -> None:
    discovery = fresh()
    async with registered(discovery, *addresses), make(discovery=discovery) as runtime:
        await call_fails(
            NoInstancesError,
            Retry.NEVER,
            "demo/backend/generate/77",
            "cannot be dialled",
            *words,
            runtime=runtime,
        )


async def test_one_bad_address_does_not_hide_a_good_one() -> None:
    discovery = fresh()
    async with make(discovery=discovery) as worker, worker.endpoint(PATH).serve(echo):
        client = await worker.endpoint(PATH).client()
        await bounded(client.wait_for_instances())
        async with registered(discovery, "tcp://nowhere", "zz://1", f"tcp://127.0.0.1:{free_port()}"):
            await bounded(client.wait_for_instances(2))
            for number in range(20):
                assert await bounded(client.call(number)) == number


# What is sent


@asynccontextmanager
async def talking(plane: str, **handlers: Any) -> AsyncIterator[dict[str, Client]]:
    discovery = fresh()
    url = discovery if plane == "mem" else plane
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(make(url, discovery=discovery))
        caller = await stack.enter_async_context(make(url, discovery=discovery))
        clients = {}
        for name, handler in {"echo": echo, **handlers}.items():
            await stack.enter_async_context(worker.endpoint(f"demo.backend.{name}").serve(handler))
            clients[name] = await caller.endpoint(f"demo.backend.{name}").client()
            await bounded(clients[name].wait_for_instances())
        yield clients
        assert await bounded(clients["echo"].call("still here")) == "still here"


PLANES = pytest.mark.parametrize("plane", ["mem", "tcp"])
LIMIT = ("over the limit of 33554432", "DYN_TCP_MAX_MESSAGE_SIZE", "raise the limit on both sides")


@PLANES
@pytest.mark.parametrize(
    "item", [bytes(33 * MIB), "x" * (33 * MIB), [bytes(17 * MIB)] * 2], ids=lambda item: type(item).__name__
)
async def test_an_item_of_33_mib_that_a_caller_sends(plane: str, item: Any) -> None:
    async with talking(plane) as clients:
        for _ in range(2):
            with pytest.raises(TooLargeError) as caught:
                await bounded(clients["echo"].call(item))
            check(caught.value, TooLargeError, LIMIT)
            assert caught.value.retry is Retry.NEVER
            assert not caught.value.remote
        async with clients["echo"].stream(bytes(31 * MIB)) as items:
            assert [len(received) async for received in items] == [31 * MIB]


@PLANES
@pytest.mark.parametrize("item", [bytes(33 * MIB), "x" * (33 * MIB)], ids=lambda item: type(item).__name__)
async def test_an_item_of_33_mib_that_a_handler_sends(plane: str, item: Any) -> None:
    async def give(request: Any) -> Any:
        return item

    async def first_small(request: Any) -> AsyncIterator[Any]:
        yield "small"
        yield item

    async with talking(plane, give=give, first_small=first_small) as clients:
        with pytest.raises(TooLargeError) as caught:
            await bounded(clients["give"].call(None))
        check(caught.value, TooLargeError, LIMIT)
        received = []
        with pytest.raises(TooLargeError) as caught:
            async with clients["first_small"].stream(None) as items:
                async for received_item in items:
                    received.append(received_item)
        assert received == ["small"]
        assert caught.value.retry is Retry.NEVER


async def test_an_item_over_the_limit_of_the_other_side_is_refused_before_it_is_sent() -> None:
    discovery = fresh()
    async with (
        make(discovery=discovery, max_message_bytes=2 * MIB) as worker,
        worker.endpoint(PATH).serve(echo),
    ):
        async with make(discovery=discovery) as caller:
            client = await caller.endpoint(PATH).client()
            await bounded(client.wait_for_instances())
            assert await bounded(client.call("hello")) == "hello"
            with pytest.raises(TooLargeError, match="over the limit of 2097152"):
                await bounded(client.call(bytes(3 * MIB)))
            assert len(await bounded(client.call(bytes(MIB)))) == MIB


class Odd: ...


@PLANES
async def test_values_that_cannot_be_sent(plane: str) -> None:
    async def give(request: Any) -> Any:
        return {"odd": Odd()}

    async def fail(request: Any) -> Any:
        raise KeyError("the key")

    async with talking(plane, give=give, fail=fail) as clients:
        for value, words in (
            (Odd(), "Odd is not a MessagePack value"),
            ({"k": [2**64]}, "2\\*\\*64 - 1"),
            ("\ud800", "surrogates not allowed"),
        ):
            with pytest.raises(EncodeError, match=f"cannot send .*{words}") as caught:
                await bounded(clients["echo"].call(value))
            assert not caught.value.remote
        with pytest.raises(EncodeError, match="Odd is not a MessagePack value") as caught:
            await bounded(clients["give"].call(None))
        assert caught.value.remote
        with pytest.raises(RemoteError, match="KeyError: 'the key'"):
            await bounded(clients["fail"].call(None))


@pytest.mark.parametrize("plane", ["mem", "tcp", "http2"])
async def test_what_goes_with_a_call(plane: str) -> None:
    async with talking(plane) as clients:
        call = clients["echo"].call
        for metadata in ({"a": 1}, [1], {1: "a"}):
            with pytest.raises(TypeError, match="text to text"):
                await bounded(call(1, metadata=metadata))  # type: ignore[arg-type]
        for timeout_s in (0, -1, float("nan")):
            with pytest.raises(DynamoError, match="deadline was over"):
                await bounded(call(1, timeout_s=timeout_s))
        assert await bounded(call(1, timeout_s=float("inf"))) == 1
        with pytest.raises(TypeError, match=r"^id is text, not 5$"):
            Context(5)  # type: ignore[arg-type]
        for options, words in (
            ({"timeout_s": "5"}, "^timeout_s='5': expected seconds, such as 2.5$"),
            ({"priority": "high"}, "^priority='high': expected an integer of 32 bits"),
            ({"priority": 2**31}, "^priority=2147483648: expected"),
            ({"context": "request-7"}, "^context='request-7': expected a Context$"),
        ):
            with pytest.raises(ConfigError, match=words):
                await bounded(call(1, **options))
        for option in ("first_item_timeout_s", "idle_timeout_s"):
            with pytest.raises(ConfigError, match=rf"^{option}='x': expected seconds"):
                clients["echo"].stream(1, **{option: "x"})  # type: ignore[arg-type]
        for instance in (12345, "worker-9"):
            with pytest.raises(NoInstancesError, match=f"no instance {instance} .*DYN_INSTANCE_WAIT_S"):
                await bounded(call(1, instance=instance))
