"""The directives ``public`` and ``invariants``: the reference of ``dynamo.runtime`` and of the ports.

``public`` takes modules, or names, and documents what ``dynamo.runtime`` has from there, in alphabetical
order. What no page asks for ends the build: a new name appears by itself, or somebody has to say where.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from typing import Any, ClassVar

from docutils import nodes
from marking import paragraph, row, table
from sphinx.addnodes import desc_signature, pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

import dynamo.runtime
from dynamo.runtime import DynamoError, Settings

PUBLIC = "dynamo.runtime"
GIVEN = {  # nobody makes these by hand: their constructors are not part of the interface
    "Client", "Component", "Context", "DuplexStream", "Endpoint", "Namespace", "Peers", "RequestStream",
    "ResponseSender", "ResponseStream", "ServedServices", "UnaryClient",
}  # fmt: skip
INVARIANT = re.compile(r"^([A-Z]\d+) +(.*(?:\n    .*)*)", re.MULTILINE)


def chosen(wanted: list[str]) -> list[str]:
    """The public names that are given, or defined below a module that is given."""
    found: list[str] = []
    for name in dynamo.runtime.__all__:
        module = getattr(getattr(dynamo.runtime, name), "__module__", "")
        if name in wanted or any(f"{module}.".startswith(f"{one}.") for one in wanted):
            found.append(name)
    return found


class Public(SphinxDirective):
    """``public`` in an ``eval-rst`` block."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        lines: list[str] = []
        for name in chosen(" ".join(self.content).split()):
            value = getattr(dynamo.runtime, name)
            kind = "class" if isinstance(value, type) else "function" if callable(value) else "data"
            if getattr(value, "__name__", name) != name or kind == "data":
                lines += [f".. py:data:: {name}", f"   :module: {PUBLIC}", "", *_alias(name, value), ""]
                continue
            lines += [f".. auto{kind}:: {PUBLIC}.{name}"]
            lines += ["   :members:"] if kind == "class" else []
            lines += [f"   :exclude-members: {', '.join(Settings.options())}"] if value is Settings else []
            lines += ["   :show-inheritance:"] if name.endswith("Error") else []
            lines += [""]
        return self.parse_text_to_nodes("\n".join(lines))


def _alias(name: str, value: Any) -> list[str]:
    """A second name of something public, or a type."""
    for other in dynamo.runtime.__all__:
        if other != name and getattr(dynamo.runtime, other) is value:
            return [f"   Another name of :py:class:`~{PUBLIC}.{other}`."]
    return [f"   ``{value}``".replace("typing.", "").replace("collections.abc.", "")]


def invariants(module: str) -> list[tuple[str, str]]:
    """The numbered invariants in the docstring of a port's module."""
    text = importlib.import_module(module).__doc__ or ""
    return [(number, " ".join(words.split())) for number, words in INVARIANT.findall(text)]


class Invariants(SphinxDirective):
    """``invariants`` with a port's module as its argument: their table, which cannot drift from the code."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        rows = [
            row([paragraph(number)], [paragraph(words)], ids=(number.lower(),))
            for number, words in invariants(self.arguments[0])
        ]
        if not rows:
            raise self.error(f"{self.arguments[0]} lists no invariants")
        return [table(["", "What holds"], rows, "invariants", widths=(8, 92))]


def hide_constructor(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """``Client(endpoint_id, *, membership, ...)`` tells a reader nothing: the runtime makes it. Errors take
    what their base takes.
    """
    if what != "class" or not name.startswith(PUBLIC):
        return None
    inherited = issubclass(value, DynamoError) and "__init__" not in vars(value)
    return ("", None) if inherited or name.rpartition(".")[2] in GIVEN else None


def tidy(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """A port's invariants become a table; errors that a docstring names become links."""
    if what == "module" and (found := INVARIANT.search(text := "\n".join(lines))):
        end = [match.end() for match in INVARIANT.finditer(text)][-1]
        head = text[: found.start()].rstrip()
        lines[:] = [*head.splitlines(), "", f".. invariants:: {name}", "", *text[end:].splitlines()]
    elif what != "module":
        lines[:] = [ERROR.sub(rf":py:class:`~{PUBLIC}.\1`", line) for line in lines]


ERRORS = [name for name in dynamo.runtime.__all__ if name.endswith("Error")]
ERROR = re.compile(rf"(?<![\w.`])({'|'.join(ERRORS)})(?![\w`])")


def skip(app: Sphinx, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """A method, a class or one of an enumeration needs no words of its own; a field is in the signature."""
    plain = inspect.isfunction(value) or isinstance(value, (type, property, classmethod, enum.Enum))
    return False if plain and not name.startswith("_") else None


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element
) -> nodes.Node | None:
    """Annotations name where a class is defined; the reference documents where it is public."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    for place in (PUBLIC, "dynamo.core.ports.discovery", "dynamo.core.ports.request_plane"):
        target = f"{place}.{name}"
        domain = env.domains.python_domain
        if target in domain.objects and target != node["reftarget"]:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", target, node, shown)
    inside = node.parent
    while inside is not None and not isinstance(inside, desc_signature):
        inside = inside.parent
    theirs = "." in node["reftarget"] and not node["reftarget"].startswith("dynamo.")
    return None if inside is None and not theirs else shown  # types of others have no page here


def complete(app: Sphinx, env: BuildEnvironment) -> None:
    """Every public name has a place."""
    documented = env.domains.python_domain.objects
    missing = [name for name in dynamo.runtime.__all__ if f"{PUBLIC}.{name}" not in documented]
    if missing:
        raise ExtensionError(
            f"no page of docs/reference/api documents {', '.join(missing)}: add the module to one of them"
        )


def setup(app: Sphinx) -> ExtensionMetadata:
    """Tell Sphinx of the directives and of what autodoc gets wrong."""
    app.add_directive("public", Public)
    app.add_directive("invariants", Invariants)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("autodoc-process-docstring", tidy)
    app.connect("missing-reference", resolve)
    app.connect("env-check-consistency", complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
