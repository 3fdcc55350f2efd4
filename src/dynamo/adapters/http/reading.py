"""What a request says: its payload, its identity, its deadline.

=====================  ==============================================================================
``X-Request-Id``       the context's id; one that is no plain word of at most 128 characters is replaced
``X-Request-Timeout``  seconds until the deadline, such as 2.5
``traceparent``        and ``tracestate``: metadata of the context, W3C Trace Context
=====================  ==============================================================================
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from typing import Any

import msgspec
from aiohttp import web

from dynamo.adapters.http.media import is_json
from dynamo.adapters.http.problems import Refusal
from dynamo.core.context import Context

REQUEST_ID, TIMEOUT = "X-Request-Id", "X-Request-Timeout"
BODY_S = 60.0  # for a whole body
LONGEST_S = 31_536_000.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_ENCODINGS = ("", "identity", "gzip", "deflate")  # those that aiohttp undoes without another package


def request_id_of(request: web.Request) -> str:
    """The client's, if it is one that a log and a header can show, else a new one."""
    given = request.headers.get(REQUEST_ID, "").strip()
    return given if _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


def context_of(request: web.Request, request_id: str) -> Context:
    """The context of a request. Raises Refusal (400)."""
    context = Context(request_id, timeout_s=_timeout_of(request))
    if (parent := request.headers.get("traceparent")) is not None:
        context.metadata["traceparent"] = parent.strip()
        if context.trace_id is None:  # not one that anybody could go on from
            del context.metadata["traceparent"]
        elif states := request.headers.getall("tracestate", []):
            context.metadata["tracestate"] = ",".join(states)
    return context


def _timeout_of(request: web.Request) -> float | None:
    if (text := request.headers.get(TIMEOUT)) is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_S:  # false for nan too
        raise Refusal(400, f"{TIMEOUT}: {text[:40]}: expected seconds, such as 2.5")
    return seconds


async def payload_of(request: web.Request, limit: int) -> Any:
    """The body's JSON value, None for an empty body. Raises Refusal (400, 408, 413, 415)."""
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_S):
            body = await _body(request, limit)
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_S:g} s") from None
    except web.RequestPayloadError as error:
        request.content.feed_eof()  # or aiohttp would read on, and log what it finds
        why = " ".join(str(error).rpartition("message:")[2].split())
        raise Refusal(400, f"the body cannot be read: {why}") from error
    except ConnectionError as error:
        raise Refusal(400, "the client left before its body was whole") from error
    if not body or body.isspace():
        return None
    if not is_json(given := request.headers.get("Content-Type", "")):
        raise Refusal(
            415,
            f"content-type: {given[:100] or 'none'}; this takes application/json "
            "(curl -H 'content-type: application/json')",
            headers={"Accept-Post": "application/json"},
        )
    if (encoding := request.headers.get("Content-Encoding", "").strip().lower()) not in _ENCODINGS:
        raise Refusal(
            415, f"content-encoding: {encoding[:40]}; send gzip or none", headers={"Accept-Encoding": "gzip"}
        )
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error


async def _body(request: web.Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > limit:  # counted after gzip is undone
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413, f"the body is larger than {limit} bytes (DYN_TCP_MAX_MESSAGE_SIZE)", members={"limit": limit}
    )
