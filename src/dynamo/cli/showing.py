"""Text for people and for pipes. What other processes wrote is never let loose on a terminal."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def printable(text: str) -> str:
    """Without what would move the cursor or colour a terminal; newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """A message that fits one line of a log."""
    return printable(" ".join(text.split()))


def as_json(value: Any) -> str:
    """One line of JSON; bytes as base64."""
    return json.dumps(value, ensure_ascii=False, default=_plain, separators=(", ", ": "))


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    return str(value)


def console(*, stderr: bool = False) -> Console:
    """A terminal in colour unless NO_COLOR is set, plain text of any width where there is none."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=False)
