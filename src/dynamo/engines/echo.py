"""An engine without a model: it streams the prompt back, token by token, and misbehaves on request."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any, NotRequired, TypedDict

from attrs import field, frozen, validators

from dynamo.core.context import Context

_TOKEN = re.compile(r"\s*\S+|\s+$")  # a word with the space before it, as byte-pair tokenizers cut


class EchoRequest(TypedDict):
    """What to send back, and at most how many tokens of it."""

    prompt: str
    max_tokens: NotRequired[int | None]


class EchoItem(TypedDict):
    """One token, or with ``finish_reason`` the end of the answer: ``stop``, ``length`` or ``cancelled``.

    ``token_ids`` holds the token's place in the prompt; the ``text`` of all items joined is the prompt.
    """

    token_ids: list[int]
    text: str
    finish_reason: NotRequired[str]


@frozen(kw_only=True)
class EchoEngine:
    """Serve ``engine.generate``. The switches imitate what real engines do, and do wrong.

    ``delay_s``: wait before each token, in seconds, as a decoding step does; other requests go on meanwhile.
    ``block_loop_s``: before each token, block the event loop so many seconds, as an engine that starves it.
    ``fail_after``: raise RuntimeError once so many tokens were sent; 0 fails before the first.
    """

    delay_s: float = field(default=0.0, validator=validators.ge(0))
    block_loop_s: float = field(default=0.0, validator=validators.ge(0))
    fail_after: int | None = field(default=None, validator=validators.optional(validators.ge(0)))

    async def generate(self, request: EchoRequest, context: Context) -> AsyncIterator[EchoItem]:
        """Stream ``prompt`` back, at most ``max_tokens`` tokens, then one item with the ``finish_reason``.

        Ends early once the context is stopped. Raises ValueError for a request that is not an EchoRequest.
        """
        prompt, limit = _read(request)
        sent, reason = 0, "stop"
        for sent, text in enumerate(_TOKEN.findall(prompt)):
            if sent == limit:
                reason = "length"
                break
            if sent == self.fail_after:
                raise RuntimeError(f"the echo engine fails after {sent} tokens, as it was told")
            if self.block_loop_s:
                time.sleep(self.block_loop_s)  # noqa: ASYNC251 - blocking is what was asked for
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if context.is_stopped():
                reason = "cancelled"
                break
            yield EchoItem(token_ids=[sent], text=text)
        yield EchoItem(token_ids=[], text="", finish_reason=reason)


def _read(request: Any) -> tuple[str, int | None]:
    """What came over the wire is whatever the caller sent."""
    if not isinstance(request, dict) or not isinstance(prompt := request.get("prompt"), str):
        raise ValueError(f'expected {{"prompt": text, "max_tokens": optional integer}}, not {request!r:.200}')
    limit = request.get("max_tokens")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise ValueError(f"max_tokens: expected an integer of 0 or more, not {limit!r:.200}")
    return prompt, limit
