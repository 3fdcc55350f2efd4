"""A table of three columns or more is a list of cards on a phone: each cell then says which column it is of.

The labels are in the page for good; site.css shows them where the screen is narrow.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.typing import ExtensionMetadata

COLUMNS = 3


class StackedTables(SphinxTransform):
    """Marks the table as ``stacked`` and puts the column's title into each of its cells but the first."""

    default_priority = 800

    def apply(self, **options: object) -> None:
        for table in self.document.findall(nodes.table):
            head, body = table.next_node(nodes.thead), table.next_node(nodes.tbody)
            if head is None or body is None or len(head[0]) < COLUMNS or "from-code" in table["classes"]:
                continue
            table["classes"].append("stacked")
            titles = [entry.astext() for entry in head[0]]
            for line in body:
                for title, entry in zip(titles[1:], line[1:], strict=False):
                    if title and entry.astext() and isinstance(first := entry.next_node(), nodes.paragraph):
                        first.insert(0, nodes.inline("", f"{title}: ", classes=["column"]))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx of the transform."""
    app.add_transform(StackedTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
