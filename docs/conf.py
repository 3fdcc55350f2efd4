"""How Sphinx builds the site: strictly, from this checkout, and without the network."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_extensions"))

project = "dynamo-runtime-py"
copyright = "the contributors of dynamo-runtime-py"
release = version = version_of("dynamo-runtime-py")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "settings_table",
    "command_help",
    "public_api",
    "adapter_pages",
    "code_links",
    "stacked_tables",
]
exclude_patterns = ["_*"]
nitpicky = True  # a reference that leads nowhere is an error under `--fail-on-warning`

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4  # links name headings as on GitHub: page.md#the-heading

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88
python_display_short_literal_types = True

highlight_language = "none"  # a block that names no language is no Python

pygments_dark_style = "github-dark"  # furo's own underlines module names, as if they were links

html_theme = "furo"
html_title = f"dynamo-runtime-py {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
