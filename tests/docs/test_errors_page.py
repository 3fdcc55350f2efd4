"""The page of errors has each public class, with the verdict that the class gives."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from dynamo.core import errors
from dynamo.core.errors import DynamoError, Retry

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ROW = re.compile(r"^\| `(\w+Error)` \| `(\w+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)

PUBLIC = {
    name: found
    for name, found in vars(errors).items()
    if inspect.isclass(found) and issubclass(found, DynamoError) and found is not DynamoError
}


def test_every_class_is_there_with_its_verdict() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    listed = {name: Retry[verdict] for name, verdict, *_ in rows}
    assert len(rows) == len(listed)
    assert listed == {name: found.default_retry for name, found in PUBLIC.items()}


def test_every_heading_of_a_message_names_a_class() -> None:
    headings = re.findall(r"^### `(\w+)`", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    assert set(headings) <= PUBLIC.keys()
