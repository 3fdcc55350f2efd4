"""What Accept and Content-Type headers mean."""

from __future__ import annotations

import pytest

pytest.importorskip("aiohttp", reason="the extra http is not installed")
pytest.importorskip("msgspec", reason="the extra services is not installed")

from dynamo.adapters.http.media import Form, chosen, is_json
from dynamo.adapters.http.problems import Refusal


@pytest.mark.parametrize(
    "accept, streamed, whole",
    [
        ("", Form.LINES, Form.JSON),
        ("*/*", Form.LINES, Form.JSON),
        ("application/json", Form.JSON, Form.JSON),
        ("APPLICATION/JSON; charset=utf-8", Form.JSON, Form.JSON),
        ("text/event-stream", Form.EVENTS, Form.EVENTS),
        ("application/x-ndjson", Form.LINES, Form.LINES),
        ("application/jsonl", Form.LINES, Form.LINES),
        ("application/json, text/event-stream", Form.EVENTS, Form.JSON),
        ("application/json;q=0.5, text/event-stream;q=0.4", Form.JSON, Form.JSON),
        ("application/*", Form.LINES, Form.JSON),
        ("text/*", Form.EVENTS, Form.EVENTS),
        ("*/*;q=0.1, application/json;q=0, text/html", Form.LINES, Form.LINES),
        ("application/x-ndjson;q=0, */*", Form.EVENTS, Form.JSON),
        ("text/html, application/xhtml+xml, */*;q=0.8", Form.LINES, Form.JSON),
        (", ,text/event-stream", Form.EVENTS, Form.EVENTS),
    ],
)
def test_the_form_follows_accept(accept: str, streamed: Form, whole: Form) -> None:
    assert chosen(accept, is_streaming=True) is streamed
    assert chosen(accept, is_streaming=False) is whole


@pytest.mark.parametrize(
    "accept", ["image/png", "text/html", "*/*;q=0", "application/json;q=2", "json", "text/event-stream;q=x"]
)
def test_what_cannot_be_given_is_refused_and_what_can_is_told(accept: str) -> None:
    with pytest.raises(Refusal, match="application/x-ndjson") as refused:
        chosen(accept, is_streaming=True)
    assert refused.value.problem.status == 406


@pytest.mark.parametrize(
    "content_type, expected",
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("Application/JSON", True),
        ("application/vnd.api+json", True),
        ("", False),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("application/jsonp", False),
        ("text/json+x", False),
    ],
)
def test_only_json_is_json(content_type: str, expected: bool) -> None:
    assert is_json(content_type) is expected
