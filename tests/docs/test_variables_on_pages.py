"""Pages name variables that are read, or say that they are not; operations has what each bound does."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest

from dynamo.core.config import Settings

DOCS = Path(__file__).parents[2] / "docs"
VARIABLE = re.compile(r"\b(?:DYN|ETCD)_[A-Z_]*[A-Z](?![A-Z_*])")
READ = {
    field.name: field.metadata["variables"]
    for field in attrs.fields(Settings)
    if "variables" in field.metadata
}
NOT_READ = re.compile(r"^\| (`DYN_.+?) \| \*\*not supported\*\*", re.MULTILINE)


def not_supported() -> set[str]:
    page = (DOCS / "moving-from-dynamo.md").read_text(encoding="utf-8")
    return {name for row in NOT_READ.findall(page) for name in VARIABLE.findall(row)}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_variable_on_a_page_is_one_that_is_read(page: Path) -> None:
    known = {variable for variables in READ.values() for variable in variables}
    if page.name == "moving-from-dynamo.md":
        known |= not_supported()
    named = set(VARIABLE.findall(page.read_text(encoding="utf-8")))
    assert named - known == set()


def test_what_is_not_supported_is_not_read() -> None:
    assert "DYN_HEALTH_CHECK_PAYLOAD" in not_supported()
    assert not_supported() & {variable for variables in READ.values() for variable in variables} == set()


def test_operations_says_what_each_bound_does() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    bounds = [variables[0] for name, variables in READ.items() if name.endswith(("_s", "_bytes"))]
    assert bounds
    assert [variable for variable in bounds if variable not in page] == []
