"""The built site: strict, whole, and readable without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attrs
import pytest

import dynamo.runtime
from dynamo.cli.app import COMMANDS
from dynamo.core.config import Settings
from dynamo.core.ports import discovery, request_plane

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}


def build(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    options = ("-qW", "--keep-going", "-d", str(output.with_name("doctrees")))
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(source), str(output)],
        capture_output=True, text=True, check=False, timeout=55,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built() -> tuple[Path, str]:
    """The site, in build/docs, and what the build complained about."""
    output = ROOT / "build" / "docs"
    for left in (output, output.with_name("doctrees")):
        shutil.rmtree(left, ignore_errors=True)
    return output, build(DOCS, output).stderr


@pytest.fixture
def site(built: tuple[Path, str]) -> Path:
    return built[0]


def test_it_is_built_without_a_complaint(built: tuple[Path, str]) -> None:
    assert not built[1]


class Links(HTMLParser):
    """What a page loads, what it links to, and the anchors that it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag in LOADED and LOADED[tag] in values:
            self.loads.append(values[LOADED[tag]])
        elif tag == "link" and values.get("rel") not in ("canonical", "index", "next", "prev", "search"):
            self.loads.append(values["href"])
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])


def pages(site: Path) -> Iterator[tuple[Path, Links]]:
    for page in sorted(site.rglob("*.html")):
        yield page, Links(page)


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    elsewhere = [
        f"{page.relative_to(site)}: {target}"
        for page, links in pages(site)
        for target in links.loads
        if urlsplit(target).netloc
    ]
    assert not elsewhere
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text("utf-8")), sheet


def test_every_link_inside_the_site_leads_somewhere(site: Path) -> None:
    known = {page.resolve(): links for page, links in pages(site)}
    broken: list[str] = []
    for page, links in known.items():
        for target in (*links.links, *links.loads):
            url = urlsplit(target)
            if url.scheme or url.netloc or page.name in ("genindex.html", "search.html"):
                continue
            there = (page.parent / unquote(url.path)).resolve() if url.path else page
            anchors = known[there].anchors if there in known else None
            if not there.exists() or (url.fragment and anchors is not None and url.fragment not in anchors):
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert {f"dynamo.runtime.{name}" for name in dynamo.runtime.__all__} <= documented


def test_every_variable_is_in_the_table(site: Path) -> None:
    links = Links(site / "reference" / "configuration.html")
    names = [name for field in attrs.fields(Settings) for name in field.metadata.get("variables", ())]
    assert {name.lower().replace("_", "-") for name in names} <= links.anchors


def test_every_command_has_its_help(site: Path) -> None:
    page = site / "reference" / "cli.html"
    assert {f"dynamo-{name}" for name in COMMANDS} | {"dynamo"} <= Links(page).anchors
    assert "$ dynamo call --help" in page.read_text("utf-8")


def test_every_page_and_record_is_built(site: Path) -> None:
    sources = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    assert not [path for path in sources if not (site / path).with_suffix(".html").exists()]


@pytest.mark.parametrize("port", [discovery, request_plane], ids=["discovery", "request_plane"])
def test_the_invariants_page_says_what_the_ports_say(port: object) -> None:
    stated = re.findall(r"^([A-Z]\d+) +(.*(?:\n    .*)*)", port.__doc__ or "", re.MULTILINE)
    page = plain((DOCS / "invariants.md").read_text("utf-8"))
    assert stated
    for number, words in stated:
        assert f"| {number} | {plain(words)} |" in page


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("[a](missing.md)", "missing.md"),
        ("[a](index.md#missing)", "missing"),
        ("![a](missing.svg)", "missing.svg"),
        ("{py:class}`dynamo.runtime.Missing`", "Missing"),
    ],
)
def test_a_broken_link_ends_the_build(text: str, complaint: str, tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    ours = (DOCS / "conf.py").read_text("utf-8")
    options = re.search(r"^nitpicky.*?^myst_heading_anchors[^\n]*", ours, re.MULTILINE | re.DOTALL)
    assert options is not None
    (source / "conf.py").write_text(f"extensions = ['myst_parser']\n{options[0]}\n")
    (source / "index.md").write_text(f"# A page\n\n{text}\n")
    done = build(source, tmp_path / "html")
    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_public_name_without_a_page_ends_the_build(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS / '_extensions')!r})\n"
        "extensions = ['sphinx.ext.autodoc', 'public_api']\n"
    )
    (source / "index.rst").write_text("A page\n======\n\n.. public::\n\n   dynamo.core\n")
    done = build(source, tmp_path / "html")
    assert done.returncode != 0
    assert "read_config" in done.stderr
    assert "DistributedRuntime" not in done.stderr


def test_code_that_names_something_public_is_a_link(site: Path) -> None:
    links = Links(site / "contributing.html").links
    assert "reference/configuration.html#dyn-namespace" in links
    assert "reference/api/errors.html#dynamo.runtime.OverloadedError" in links
    assert "reference/api/services.html#dynamo.runtime.service" in links
    assert "reference/cli.html#dynamo-ls" in links
