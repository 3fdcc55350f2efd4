"""Code in a text that names something public is a link to its reference, so that writers need no roles."""

from __future__ import annotations

from docutils import nodes
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import ExtensionMetadata

COMMANDS = "reference/cli"
QUIET = (nodes.reference, nodes.title, pending_xref, desc_signature)


class CodeLinks(SphinxPostTransform):
    """A variable, a public class or function, a command: the first of each in a section."""

    default_priority = 5

    def run(self, **options: object) -> None:
        seen: set[tuple[int, str]] = set()
        for node in list(self.document.findall(nodes.literal)):
            section = node
            while section is not None and not isinstance(section, nodes.section):
                section = None if isinstance(section, QUIET) else section.parent
            text = node.astext()
            if section is None or "here" in node["classes"] or (id(section), text) in seen:
                continue
            if (target := self.target(text)) is not None and target[0] != self.env.docname:
                seen.add((id(section), text))
                document, anchor = target
                link = make_refnode(self.app.builder, self.env.docname, document, anchor, node.deepcopy())
                node.replace_self(link)

    def target(self, text: str) -> tuple[str, str] | None:
        """The document and the anchor of what is called so."""
        if (variable := self.env.domains.standard_domain.objects.get(("envvar", text))) is not None:
            return variable
        if text.startswith("dynamo ") and len(words := text.split()) > 1:
            anchor = f"dynamo-{words[1]}"
            return (COMMANDS, anchor) if anchor in self.env.metadata[COMMANDS].get("myst_slugs", {}) else None
        name = text.removeprefix("@").removesuffix("()")
        if name[:1].islower() and name == text:
            return None  # `service` is a word, `@service` is a decorator
        found = self.env.domains.python_domain.objects.get(f"dynamo.runtime.{name}")
        return None if found is None else (found.docname, found.node_id)


def anchors(app: Sphinx, document: nodes.document) -> None:
    """Sections that a directive made can be linked to as page.md#anchor, like those of a text."""
    slugs = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for section in document.findall(nodes.section):
        for anchor in section["ids"]:
            slugs.setdefault(anchor, (section.line, anchor, section.next_node(nodes.title).astext()))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx of the transform."""
    app.add_post_transform(CodeLinks)
    app.connect("doctree-read", anchors)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
