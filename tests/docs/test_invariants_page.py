"""The page of invariants lists what the port modules promise, in their words."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from dynamo.core.ports import discovery, request_plane

PAGE = Path(__file__).parents[2] / "docs" / "invariants.md"
PROMISE = re.compile(r"^([DR]\d+) +(.+(?:\n    .+)*)", re.MULTILINE)
ROW = re.compile(r"^\| ([DR]\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def promised(port: ModuleType) -> dict[str, str]:
    return {number: " ".join(text.split()) for number, text in PROMISE.findall(port.__doc__ or "")}


def listed() -> dict[str, str]:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len({number for number, *_ in rows}) == len(rows)
    return {number: text.replace("`", "") for number, text, *_ in rows}


@pytest.mark.parametrize("port", [discovery, request_plane], ids=lambda port: port.__name__)
def test_each_invariant_is_there_in_the_ports_words(port: ModuleType) -> None:
    letter = "D" if port is discovery else "R"
    promises = promised(port)
    assert list(promises) == [f"{letter}{number}" for number in range(1, len(promises) + 1)]
    assert promises
    on_the_page = {number: text for number, text in listed().items() if number.startswith(letter)}
    assert on_the_page == {number: text.replace("``", "") for number, text in promises.items()}
