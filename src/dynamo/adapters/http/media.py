"""Which form an answer gets: what ``Accept`` asks for, against what a route can give (RFC 9110, 12.5.1)."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence

from dynamo.adapters.http.problems import Refusal


class Form(enum.Enum):
    """How items are written; the value is the media type."""

    JSON = "application/json"
    EVENTS = "text/event-stream"
    LINES = "application/x-ndjson"


STREAMED = (Form.LINES, Form.EVENTS, Form.JSON)  # what we prefer comes first
WHOLE = (Form.JSON, Form.LINES, Form.EVENTS)
_OTHER_NAMES = {"application/ndjson": Form.LINES, "application/jsonl": Form.LINES}
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_JSON = re.compile(r"application/(?:[a-z0-9!#$&^_.+-]+\+)?json")


def chosen(accept: str, *, is_streaming: bool) -> Form:
    """The form for an ``Accept`` header ("" if there was none). Raises Refusal (406)."""
    offered = STREAMED if is_streaming else WHOLE
    if not accept.strip():
        return offered[0]
    ranges = _ranges(accept)
    best = max(offered, key=lambda form: _quality(form, ranges))  # the first one of several that are equal
    if _quality(best, ranges) <= 0:
        names = ", ".join(form.value for form in offered)
        raise Refusal(406, f"accept: {accept[:200]} leaves nothing that this route gives: {names}")
    return best


def _ranges(accept: str) -> list[tuple[str, float]]:
    """Media ranges with their weights; a weight that cannot be read counts as 0."""
    ranges: list[tuple[str, float]] = []
    for part in accept.split(","):
        name, *parameters = (piece.strip() for piece in part.lower().split(";"))
        weight = "1"
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = value.strip()
        name = _OTHER_NAMES[name].value if name in _OTHER_NAMES else name
        ranges.append((name, float(weight) if _QUALITY.fullmatch(weight) else 0.0))
    return ranges


def _quality(form: Form, ranges: Sequence[tuple[str, float]]) -> float:
    """The weight of the most specific range that matches; 0 where none does."""
    kind = form.value.partition("/")[0]
    for pattern in (form.value, f"{kind}/*", "*/*"):
        found = [weight for name, weight in ranges if name == pattern]
        if found:
            return max(found)
    return 0.0


def is_json(content_type: str) -> bool:
    """Whether a ``Content-Type`` announces JSON: ``application/json`` or anything ``+json``."""
    return _JSON.fullmatch(content_type.partition(";")[0].strip().lower()) is not None
