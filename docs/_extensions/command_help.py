"""The directive ``commands``: what ``--help`` of the command and of each of its commands prints."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from dynamo.cli.app import dynamo

COLUMNS = 100  # as wide as the command's help grows


def helps() -> Iterator[tuple[str, str]]:
    """Each command's name in full and the text of its help."""
    top = _context(dynamo, "dynamo", None)
    yield "dynamo", dynamo.get_help(top)
    for name in dynamo.list_commands(top):
        command = dynamo.get_command(top, name)
        assert command is not None
        yield f"dynamo {name}", command.get_help(_context(command, name, top))


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(
        command, info_name=name, parent=parent, terminal_width=COLUMNS, **command.context_settings
    )


class Commands(SphinxDirective):
    """``commands``, without arguments: a section each."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        for name, text in helps():
            anchor = re.sub(r"\W+", "-", name)
            section = nodes.section("", nodes.title(name, "", nodes.literal(name, name)), ids=[anchor])
            section += nodes.literal_block(
                text, f"$ {name} --help\n{text}", language="text", classes=["terminal"]
            )
            sections.append(section)
        return sections


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx of the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
