"""The echo engine streams a prompt back, and each of its switches does what it says."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from dynamo.core.context import Context
from dynamo.engines.echo import EchoEngine

pytestmark = pytest.mark.anyio


async def answer(engine: EchoEngine, request: Any, context: Context | None = None) -> list[Any]:
    return [item async for item in engine.generate(request, context or Context())]


@pytest.mark.parametrize("prompt", ["one two  three", "  padded \n", "word", "日本 語", " ", ""])
async def test_the_joined_text_is_the_prompt(prompt: str) -> None:
    items = await answer(EchoEngine(), {"prompt": prompt})
    assert "".join(item["text"] for item in items) == prompt
    assert [item["token_ids"] for item in items] == [*([place] for place in range(len(items) - 1)), []]
    assert [item.get("finish_reason") for item in items] == [None] * (len(items) - 1) + ["stop"]


@pytest.mark.parametrize(
    "limit,text,reason",
    [(0, "", "length"), (2, "a b", "length"), (3, "a b c", "stop"), (None, "a b c", "stop")],
)
async def test_max_tokens_ends_the_answer(limit: int | None, text: str, reason: str) -> None:
    items = await answer(EchoEngine(), {"prompt": "a b c", "max_tokens": limit})
    assert "".join(item["text"] for item in items) == text
    assert items[-1]["finish_reason"] == reason


async def test_a_stopped_request_ends_early_and_says_so() -> None:
    context = Context()
    seen = []
    async for item in EchoEngine().generate({"prompt": "a b c d"}, context):
        seen.append(item)
        if len(seen) == 2:
            context.stop_generating()
    assert [item["text"] for item in seen] == ["a", " b", ""]
    assert seen[-1]["finish_reason"] == "cancelled"


async def test_it_fails_after_as_many_tokens_as_told() -> None:
    for told in (0, 2):
        seen = []
        with pytest.raises(RuntimeError, match=f"after {told} tokens"):
            async for item in EchoEngine(fail_after=told).generate({"prompt": "a b c"}, Context()):
                seen.append(item["text"])
        assert len(seen) == told


async def test_a_delay_lets_other_requests_run() -> None:
    started = time.monotonic()
    await asyncio.gather(*(answer(EchoEngine(delay_s=0.05), {"prompt": "a b"}) for _ in range(20)))
    assert 0.1 <= time.monotonic() - started < 1.0  # one after another they would take 2 s


async def test_a_blocked_loop_runs_nothing_else() -> None:
    loop = asyncio.get_running_loop()
    due, ran_at = loop.time() + 0.02, []
    loop.call_at(due, lambda: ran_at.append(loop.time()))
    await answer(EchoEngine(block_loop_s=0.2, delay_s=0.001), {"prompt": "a"})
    assert ran_at
    assert ran_at[0] - due >= 0.15


@pytest.mark.parametrize(
    "request_,told",
    [
        ("text", "expected"),
        ({}, "prompt"),
        ({"prompt": 1}, "prompt"),
        ({"prompt": "a", "max_tokens": "3"}, "max_tokens"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens"),
    ],
)
async def test_a_bad_request_is_told_what_was_expected(request_: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        await answer(EchoEngine(), request_)


@pytest.mark.parametrize("switches", [{"delay_s": -1}, {"block_loop_s": -1}, {"fail_after": -1}])
def test_bad_switches_are_refused(switches: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(switches))):
        EchoEngine(**switches)
