"""The directive ``settings``: every variable that ``Settings`` reads, as a table.

Meanings are the docstrings beside the fields. A field without one ends the build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from docutils import nodes
from marking import paragraph, row, table
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from dynamo.core.config import Settings

UNITS = {  # where the converter's own name says too little
    "adapter": "name or URL",
    "choice": "name",
    "flag": "1 or 0",
    "namespace": "name",
    "port_or_off": "port, -1 is off",
    "positive_seconds": "seconds, above 0",
    "size_bytes": "bytes",
}


@attrs.frozen(kw_only=True)
class Variable:
    """A setting, in words."""

    names: tuple[str, ...]
    option: str
    default: str
    unit: str
    meaning: str


def variables() -> list[Variable]:
    """All settings, in the order in which they are defined."""
    documented = ModuleAnalyzer.for_module(Settings.__module__).find_attr_docs()
    found: list[Variable] = []
    for field in attrs.fields(Settings):
        if "variables" not in field.metadata:
            continue
        if ("Settings", field.name) not in documented:
            raise ExtensionError(f"{Settings.__module__}: no docstring says what Settings.{field.name} means")
        found.append(
            Variable(
                names=field.metadata["variables"],
                option=field.name,
                default=_default(field.default, field.name),
                unit=_unit(field.metadata["convert"]),
                meaning="\n".join(documented["Settings", field.name]).strip(),
            )
        )
    return found


def _unit(convert: Callable[[Any], Any]) -> str:
    name = convert.__qualname__.partition(".")[0]
    return UNITS.get(name, name.replace("_", " "))


def _default(value: object, name: str) -> str:
    match value:
        case None | ():
            return ""
        case bool():
            return "1" if value else "0"
        case int() if name.endswith("_bytes"):
            return f"{value // 2**20} MiB" if value >= 2**20 else f"{value // 2**10} KiB"
        case float():
            return f"{value:g}"
    return str(value)


class SettingsTable(SphinxDirective):
    """``settings``, without arguments."""

    def run(self) -> list[nodes.Node]:
        standard = self.env.domains.standard_domain
        rows: list[nodes.row] = []
        for variable in variables():
            first, *others = variable.names
            ids = tuple(name.lower().replace("_", "-") for name in variable.names)
            for name, anchor in zip(variable.names, ids, strict=True):
                standard.note_object("envvar", name, anchor)
            also = [paragraph(f"also ``{name}``") for name in others]
            default = f"``{variable.default}``" if variable.default else "none"
            rows.append(
                row(
                    [
                        nodes.paragraph("", "", nodes.literal(first, first, classes=["here"])),
                        *also,
                        paragraph(f"``{variable.option}=``"),
                    ],
                    [paragraph(default), paragraph(variable.unit)],
                    [paragraph(variable.meaning)],
                    ids=ids,
                )
            )
        titles = ["Variable, keyword", "Default, value", "Meaning"]
        return [table(titles, rows, "settings", widths=(42, 18, 40))]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx of the directive."""
    app.add_directive("settings", SettingsTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
