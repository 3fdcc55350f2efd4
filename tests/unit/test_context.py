"""What a request carries: identity, cancellation, deadline, metadata, and the link to nested calls."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import pytest

from dynamo.core.context import Context, Metadata

pytestmark = pytest.mark.anyio

TRACE, SPAN = "ab" * 16, "cd" * 8
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


# Identity


async def test_an_id_is_drawn_once_and_differs() -> None:
    first, second = Context(), Context()
    assert first.id() == first.id()
    assert first.id() != second.id()
    assert Context("mine").id() == "mine"


async def test_it_shows_its_id_and_state() -> None:
    context = Context("mine")
    assert repr(context) == "Context(id='mine', running)"
    context.stop_generating()
    assert repr(context) == "Context(id='mine', stopped)"
    context.kill()
    assert repr(context) == "Context(id='mine', killed)"


# Stop and kill


async def test_stop_asks_and_kill_cancels() -> None:
    context = Context()
    assert (context.is_stopped(), context.is_killed()) == (False, False)
    context.stop_generating()
    assert (context.is_stopped(), context.is_killed()) == (True, False)
    context.kill()
    assert (context.is_stopped(), context.is_killed()) == (True, True)
    killed = Context()
    killed.kill()
    assert (killed.is_stopped(), killed.is_killed()) == (True, True)


@pytest.mark.parametrize("end", [Context.stop_generating, Context.kill])
async def test_waiting_ends_with_either(end: Any) -> None:
    context = Context()
    waiting = [asyncio.create_task(context.async_killed_or_stopped()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    end(context)
    assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [True] * 3
    assert await context.async_killed_or_stopped() is True


async def test_a_cancelled_wait_leaves_the_others_waiting() -> None:
    context = Context()
    gone = asyncio.create_task(context.async_killed_or_stopped())
    stays = asyncio.create_task(context.async_killed_or_stopped())
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    context.kill()
    assert await asyncio.wait_for(stays, 5) is True


async def test_hooks_hear_each_step_once() -> None:
    context = Context()
    heard: list[bool] = []
    context._link(heard.append)
    context.stop_generating()
    context.stop_generating()
    context.kill()
    context.kill()
    context.stop_generating()
    assert heard == [False, True]


async def test_a_hook_that_comes_late_hears_what_has_happened() -> None:
    context = Context()
    heard: list[bool] = []
    context.stop_generating()
    context._link(heard.append)
    assert heard == [False]
    context.kill()
    assert heard == [False, True]
    late: list[bool] = []
    context._link(late.append)
    assert late == [True]


async def test_an_unlinked_hook_hears_nothing_even_while_hooks_are_told() -> None:
    context = Context()
    heard: list[bool] = []
    link = context._link(heard.append)
    context._unlink(link)
    context._unlink(link)
    links: list[int] = []
    links.append(context._link(lambda _: context._unlink(links[0])))
    context.kill()
    assert heard == []


async def test_hooks_of_equal_bound_methods_are_two() -> None:
    context = Context()
    heard: list[bool] = []
    context._link(heard.append)
    context._link(heard.append)
    context.kill()
    assert heard == [True, True]


# Deadline


async def test_the_time_left_goes_down_to_nothing() -> None:
    assert Context().timeout_s is None
    left = Context(timeout_s=100).timeout_s
    assert left is not None
    assert 99 < left <= 100
    assert Context(timeout_s=0).timeout_s == 0
    assert Context(timeout_s=-5).timeout_s == 0


# Metadata


async def test_metadata_is_a_live_mapping() -> None:
    context = Context(metadata={"a": "1"})
    held = context.metadata
    held["b"] = "2"
    del held["a"]
    assert dict(context.metadata) == {"b": "2"}
    assert context.metadata == {"b": "2"}
    assert len(held) == 1
    assert repr(held) == "{'b': '2'}"
    assert held.pop("b") == "2"
    assert held.pop("b") is None
    assert held.pop("b", "else") == "else"
    context.metadata = {"c": "3"}
    assert context.metadata["c"] == "3"
    assert dict(Context().metadata) == {}


async def test_a_context_has_its_own_copy() -> None:
    given = {"a": "1"}
    context = Context(metadata=given)
    given["a"] = "2"
    again = Context(metadata=context.metadata)
    again.metadata["a"] = "3"
    assert context.metadata["a"] == "1"


@pytest.mark.parametrize("bad", [{"a": 1}, {1: "a"}, {"a": None}, {"a": b"x"}, {b"a": "x"}])
async def test_what_is_not_text_to_text_is_refused_where_it_is_set(bad: Mapping[str, str]) -> None:
    told = re.escape(f"metadata is text to text, not {next(iter(bad))!r}: {next(iter(bad.values()))!r}")
    with pytest.raises(TypeError, match=told):
        Context(metadata=bad)
    with pytest.raises(TypeError, match=told):
        Context().metadata = bad
    with pytest.raises(TypeError, match=told):
        Context().metadata.update(bad)
    with pytest.raises(TypeError, match=told):
        Metadata(bad)


async def test_metadata_of_another_shape_is_refused() -> None:
    for bad in ([1], ["ab"], "ab", 1):
        with pytest.raises(TypeError, match="metadata is a mapping of text to text, not"):
            Context(metadata=bad)  # type: ignore[arg-type]


# Trace


async def test_the_trace_is_read_and_passed_on_under_a_span_of_our_own() -> None:
    context = Context(metadata={"traceparent": TRACEPARENT, "tracestate": "v=1", "other": "x"})
    assert (context.trace_id, context.parent_span_id) == (TRACE, SPAN)
    assert context.span_id == context.span_id
    assert context.span_id != SPAN
    assert context.trace_headers() == {"traceparent": f"00-{TRACE}-{context.span_id}-01", "tracestate": "v=1"}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        TRACEPARENT.upper(),
        f"00-{'0' * 32}-{SPAN}-01",  # W3C: ids of zeros only are invalid
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"{TRACEPARENT}\n",
        f"{TRACEPARENT}-more",
    ],
)
async def test_no_trace_and_a_bad_one_are_none(header: str | None) -> None:
    context = Context(metadata={} if header is None else {"traceparent": header, "tracestate": "v=1"})
    assert (context.trace_id, context.parent_span_id, context.span_id) == (None, None, None)
    assert context.trace_headers() == {}


async def test_a_detached_context_keeps_metadata_and_trace_and_nothing_else() -> None:
    context = Context("mine", {"traceparent": TRACEPARENT, "a": "1"}, timeout_s=5)
    detached = context.detached("other")
    context.kill()
    assert detached.id() == "other"
    assert detached.timeout_s is None
    assert not detached.is_stopped()
    assert detached.metadata["a"] == "1"
    assert (detached.trace_id, detached.parent_span_id) == (TRACE, context.span_id)
    assert context.detached().id() != "mine"
