"""Payloads into arguments: what fits, and what a caller is told of what does not."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import AsyncIterator
from typing import Any, Literal, TypedDict

import attrs
import msgspec
import pytest
from pydantic import BaseModel

from dynamo.core.errors import BadPayloadError, Retry
from dynamo.runtime import api, endpoint, service
from dynamo.sdk import ServiceMethod, ServiceSpec, encode_json, route_schemas, routes_of


@attrs.define
class Sampling:
    temperature: float = 1.0
    stop: list[str] = attrs.field(factory=list)


@dataclasses.dataclass
class Message:
    text: str
    sampling: Sampling | None = None


class Tool(TypedDict):
    name: str
    arity: int


class Prompt(BaseModel):
    text: str
    tokens: int = 4


class Kind(enum.Enum):
    CHAT = "chat"
    RAW = "raw"


@service
class Typed:
    @endpoint
    async def many(
        self, prompt: str, max_tokens: int = 16, kind: Literal["a", "b"] = "a", stop: list[str] = [],  # noqa: B006
    ) -> str:  # fmt: skip
        return ""

    @endpoint
    async def text(self, text: str) -> str:
        return ""

    @endpoint
    async def number(self, number: int = 7) -> str:
        return ""

    @endpoint
    async def maybe(self, value: int | None) -> str:
        return ""

    @endpoint
    async def message(self, message: Message) -> str:
        return ""

    @endpoint
    async def messages(self, messages: list[Message]) -> str:
        return ""

    @endpoint
    async def tool(self, tool: Tool) -> str:
        return ""

    @endpoint
    async def prompt(self, prompt: Prompt) -> str:
        return ""

    @endpoint
    async def kind(self, kind: Kind) -> str:
        return ""

    @endpoint
    async def counts(self, counts: dict[int, int]) -> str:
        return ""

    @endpoint
    async def anything(self, request) -> str:  # type: ignore[no-untyped-def]
        return ""

    @endpoint
    async def nothing(self) -> str:
        return ""

    @endpoint
    async def optional(self, first: Prompt = Prompt(text="x"), *, last: bool) -> str:  # noqa: B008
        return ""


def method(name: str) -> ServiceMethod:
    (found,) = (one for one in ServiceSpec.of(Typed).methods if one.name == name)
    return found


@pytest.mark.parametrize(
    "name, payload, arguments",
    [
        ("many", {"prompt": "p"}, {"prompt": "p", "max_tokens": 16, "kind": "a"}),
        (
            "many",
            {"prompt": "p", "stop": ["x"]},
            {"prompt": "p", "max_tokens": 16, "kind": "a", "stop": ["x"]},
        ),
        ("text", {"text": "t"}, {"text": "t"}),
        ("text", "t", {"text": "t"}),
        ("number", 5, {"number": 5}),
        ("number", {"number": 5}, {"number": 5}),
        ("number", {}, {"number": 7}),
        ("number", None, {}),
        ("maybe", None, {"value": None}),
        ("maybe", {"value": None}, {"value": None}),
        ("message", {"message": {"text": "t"}}, {"message": Message("t")}),
        ("message", {"text": "t", "sampling": {"temperature": 1}}, {"message": Message("t", Sampling(1.0))}),
        ("messages", [{"text": "t"}], {"messages": [Message("t")]}),
        ("tool", {"name": "n", "arity": 2}, {"tool": {"name": "n", "arity": 2}}),
        ("prompt", {"text": "t"}, {"prompt": Prompt(text="t")}),
        ("prompt", {"prompt": {"text": "t", "tokens": 1}}, {"prompt": Prompt(text="t", tokens=1)}),
        ("kind", "raw", {"kind": Kind.RAW}),
        ("counts", {1: 2}, {"counts": {1: 2}}),
        ("counts", {"1": 2}, {"counts": {1: 2}}),
        ("anything", [1, {"x": None}], {"request": [1, {"x": None}]}),
        ("anything", {"request": 1}, {"request": 1}),
        ("anything", {"other": 1}, {"request": {"other": 1}}),
        ("nothing", None, {}),
        ("nothing", {}, {}),
        ("optional", {"last": True}, {"last": True}),
        ("optional", {"first": {"text": "y"}, "last": False}, {"first": Prompt(text="y"), "last": False}),
    ],
)
def test_it_fits(name: str, payload: Any, arguments: dict[str, Any]) -> None:
    assert method(name).signature.bind(payload) == arguments


@pytest.mark.parametrize(
    "name, payload, says",
    [
        ("many", {"prompt": 5}, "Typed.many: prompt: expected str, got int"),
        ("many", {}, "Typed.many: prompt: missing"),
        ("many", {"prompt": "p", "max_tokens": "5"}, "Typed.many: max_tokens: expected int, got str"),
        ("many", {"prompt": "p", "max_tokens": True}, "Typed.many: max_tokens: expected int, got bool"),
        ("many", {"prompt": "p", "kind": "c"}, "Typed.many: kind: expected one of 'a', 'b', got 'c'"),
        ("many", {"prompt": "p", "stop": [1]}, r"Typed.many: stop\[0\]: expected str, got int"),
        (
            "many",
            {"promt": "p"},
            "unknown key 'promt'; did you mean 'prompt'. known: prompt, max_tokens, kind",
        ),
        ("many", {"prompt": "p", 1: 2}, "unknown key 1; known: prompt"),
        ("many", "p", "Typed.many takes an object with prompt, max_tokens, kind, stop, got str"),
        ("text", 5, "Typed.text: text: expected str, got int"),
        ("text", {"txt": "t"}, "Typed.text: unknown key 'txt'; did you mean 'text'"),
        ("text", {"text": "t", "n": 1}, "Typed.text: unknown key 'n'"),
        ("number", "5", "Typed.number: number: expected int, got str"),
        ("message", {"text": 5}, "message.text: expected str, got int"),
        ("message", {"message": {"text": 5}}, "message.text: expected str, got int"),
        ("message", {"text": "t", "sampling": {"stop": [1]}}, r"message.sampling.stop\[0\]: expected str"),
        (
            "message",
            {"text": "t", "sampling": {"stpo": []}},
            "message.sampling: unknown field 'stpo'; did you",
        ),
        ("messages", [{"text": "t", "x": 1}], r"messages\[0\]: unknown field 'x'; known: text, sampling"),
        ("tool", {"name": "n"}, "tool.arity: missing"),
        ("tool", {"name": "n", "arity": 1, "a": 1}, "tool: unknown field 'a'"),
        ("prompt", {"text": "t", "tokens": "many"}, "prompt: tokens: Input should be a valid integer"),
        ("kind", "loud", "kind: expected one of 'chat', 'raw', got 'loud'"),
        ("counts", {"a": 2}, "a key of counts: expected int, got str"),
        ("nothing", {"x": 1}, "Typed.nothing: unknown key 'x'; there is none"),
        ("nothing", 5, "Typed.nothing takes no arguments, got int"),
    ],
)
def test_it_does_not_fit(name: str, payload: Any, says: str) -> None:
    with pytest.raises(BadPayloadError, match=says) as raised:
        method(name).signature.bind(payload)
    assert raised.value.retry is Retry.NEVER
    assert "\n" not in str(raised.value)


def test_a_call_is_packed_by_name() -> None:
    pack = method("many").signature.pack
    assert pack(("p",), {}) == ({"prompt": "p"}, None)
    assert pack(("p", 3), {"kind": "b"}) == ({"prompt": "p", "max_tokens": 3, "kind": "b"}, None)
    with pytest.raises(TypeError, match=r"Typed.many: missing a required argument: 'prompt'"):
        pack((), {})
    with pytest.raises(TypeError, match=r"Typed.many: too many positional arguments"):
        pack(("p", 1, "a", [], 5), {})
    with pytest.raises(TypeError, match=r"Typed.optional: missing a required .*'last'"):
        method("optional").signature.pack((Prompt(text="x"),), {})


@service
class Shown:
    @api
    async def chat(self, prompt: Prompt, messages: list[Message], n: int = 1) -> AsyncIterator[Message]:
        """Talks."""
        for message in messages:
            yield message

    @api(path="/v1/kind")
    async def kind(self, kind: Kind) -> Kind:
        return kind

    @endpoint
    async def hidden(self) -> None:
        pass


def test_routes_are_described_with_schemas_that_resolve() -> None:
    routes = routes_of(ServiceSpec.of(Shown), Shown(), namespace="demo")
    assert [(one.http_method, one.path, one.endpoint, one.is_streaming) for one in routes] == [
        ("POST", "/chat", "demo.Shown.chat", True),
        ("POST", "/v1/kind", "demo.Shown.kind", False),
    ]
    schemas = route_schemas(routes)
    request = schemas.components[schemas.requests["/chat"]["$ref"].rpartition("/")[2]]
    assert request["required"] == ["prompt", "messages"]
    assert request["properties"]["n"] == {"type": "integer", "default": 1}
    assert schemas.components["Message"]["properties"]["text"] == {"type": "string"}
    assert schemas.items["/v1/kind"]["$ref"] == "#/components/schemas/Kind"
    text = msgspec.json.encode([schemas.requests, schemas.items, schemas.components]).decode()
    references = set(text.split('"#/components/schemas/')[1:])
    assert {reference.partition('"')[0] for reference in references} <= set(schemas.components)


def test_an_item_as_json_looks_as_on_the_wire() -> None:
    item = [Message("t", Sampling()), Prompt(text="x"), Kind.RAW]
    assert msgspec.json.decode(encode_json(item)) == [
        {"text": "t", "sampling": {"temperature": 1.0, "stop": []}},
        {"text": "x", "tokens": 4},
        "raw",
    ]
    with pytest.raises(TypeError, match="cannot write list as JSON"):
        encode_json([object()])
