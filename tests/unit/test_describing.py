"""What a runtime says of what it serves, to who calls the endpoint without a name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypedDict

import pytest
from pydantic import BaseModel

from dynamo.core.describing import describe
from dynamo.core.handlers import HandlerFunction, RequestStream, read_handler


class Question(TypedDict):
    text: str


class Answer(BaseModel):
    number: int


class Opaque:
    pass


async def typed(request: Question, context: Any) -> AsyncIterator[Answer]:
    yield Answer(number=1)


async def one(request: dict[str, int]) -> int:
    return 1


async def duplex(inputs: RequestStream[int]) -> AsyncIterator[int]:
    yield 1


async def untyped(request, context):  # type: ignore[no-untyped-def]
    yield request


async def opaque(request: Opaque) -> Opaque:
    return request


async def elsewhere(request: "Nowhere") -> int:  # type: ignore[name-defined]  # noqa: F821, UP037
    return 1


@pytest.mark.parametrize(
    "handler, request_type, item_type",
    [
        (typed, "object", "object"),
        (one, "object", "integer"),
        (duplex, None, "integer"),
        (untyped, None, None),
        (elsewhere, None, None),
    ],
)
def test_schemas_are_given_where_types_are_known(
    handler: HandlerFunction, request_type: str | None, item_type: str | None
) -> None:
    told = describe({"a.b.c": read_handler(handler)})
    schemas = told["components"]["schemas"]

    def kind(schema: dict[str, Any] | None) -> str | None:
        if schema is not None and "$ref" in schema:
            schema = schemas[schema["$ref"].rpartition("/")[2]]
        return None if schema is None else schema["type"]

    endpoint = told["endpoints"]["a.b.c"]
    assert (kind(endpoint.get("request")), kind(endpoint.get("item"))) == (request_type, item_type)


def test_what_has_no_schema_hides_nothing_else() -> None:
    told = describe({"a.b.c": read_handler(opaque), "a.b.d": read_handler(one)})
    assert set(told["endpoints"]) == {"a.b.c", "a.b.d"}
    assert told["endpoints"]["a.b.d"]["item"] == {"type": "integer"}
