"""Nodes for the short texts that come out of the code: ``like this`` is a literal, all else is text."""

from __future__ import annotations

import re

from docutils import nodes

LITERAL = re.compile(r"``(.+?)``", re.DOTALL)


def inline(text: str) -> list[nodes.Node]:
    """The nodes of one paragraph."""
    found: list[nodes.Node] = []
    for number, part in enumerate(LITERAL.split(" ".join(text.split()))):
        if part:
            found.append(nodes.literal(part, part) if number % 2 else nodes.Text(part))
    return found


def paragraph(text: str) -> nodes.paragraph:
    """One paragraph with its literals."""
    return nodes.paragraph(text, "", *inline(text))


def table(titles: list[str], rows: list[nodes.row], kind: str, widths: tuple[int, ...]) -> nodes.table:
    """A table with a head; ``widths`` are in percent."""
    group = nodes.tgroup("", cols=len(titles))
    group.extend(nodes.colspec(colwidth=width) for width in widths)
    group += nodes.thead("", row(*[[nodes.paragraph(title, title)] for title in titles]))
    group += nodes.tbody("", *rows)
    return nodes.table("", group, classes=["from-code", kind, "colwidths-given"])


def row(*cells: list[nodes.Node], ids: tuple[str, ...] = ()) -> nodes.row:
    """A row of cells, each a list of blocks; ``ids`` are what links to it may name."""
    return nodes.row("", *(nodes.entry("", *cell) for cell in cells), ids=list(ids))
