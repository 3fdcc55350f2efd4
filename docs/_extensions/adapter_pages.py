"""The directive ``adapters``: what each adapter of an entry-point group says of itself."""

from __future__ import annotations

import sys
from importlib.metadata import distribution

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

DISTRIBUTION = "dynamo-runtime-py"


def modules(group: str) -> dict[str, list[str]]:
    """Our own modules in this group, each with the names that it registers."""
    found: dict[str, list[str]] = {}
    for point in distribution(DISTRIBUTION).entry_points.select(group=group):
        found.setdefault(point.module, []).append(point.name)
    return found


class Adapters(SphinxDirective):
    """``adapters`` with a group as its argument, in an ``eval-rst`` block."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for module, names in modules(self.arguments[0]).items():
            title = ", ".join(names)
            section = nodes.section(
                "", nodes.title(title, title), ids=["-".join([module.split(".")[2], *names])]
            )
            section += self.parse_text_to_nodes(f".. automodule:: {module}\n   :no-index:\n")
            sections.append(section)
        if not sections:
            raise self.error(f"no adapter of {DISTRIBUTION} in {self.arguments[0]} ({sys.executable})")
        return sections


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx of the directive."""
    app.add_directive("adapters", Adapters)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
