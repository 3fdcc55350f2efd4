"""The code blocks of the pages, and what the comment before one says about it: docs/contributing.md."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from attrs import field, frozen

ROOT = Path(__file__).parents[2]

FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n+)?"
    r"(?P<indent> *)(?P<fence>```+|~~~+)(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=indent)(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"(?P<kind>file|not run|prints|background)(?:: (?P<words>.+))?")


@frozen
class Block:
    """One block of code on a page. Raises ValueError for a mark that means nothing, or lacks its word."""

    place: str
    language: str
    code: str
    mark: str
    words: str

    @property
    def runs(self) -> bool:
        """Whether it is a program or commands, and not only shown."""
        return not self.mark and self.language in ("python", "sh", "console")


@frozen
class Page:
    """A page's name and its blocks."""

    name: str
    blocks: tuple[Block, ...] = field(repr=False)

    @property
    def is_story(self) -> bool:
        """Whether later blocks build on earlier ones: they share a folder, and run in order."""
        return any(
            block.mark in ("file", "background", "prints")
            or (block.runs and block.language in ("sh", "console"))
            for block in self.blocks
        )


def read(name: str, text: str) -> Page:
    """The page in ``text``; a MyST directive is no block."""
    return Page(name, tuple(_blocks(name, text)))


def _blocks(name: str, text: str) -> Iterator[Block]:
    for found in FENCE.finditer(text):
        language = found["language"].strip()
        if language.startswith("{"):
            continue
        place = f"{name}:{text.count(chr(10), 0, found.start('fence')) + 1}"
        indent = len(found["indent"])
        code = "".join(line[indent:] for line in found["code"].splitlines(keepends=True))
        mark = MARK.fullmatch(found["mark"] or "")
        if found["mark"] is not None and mark is None:
            raise ValueError(f"{place}: no mark is called {found['mark']!r}: see docs/contributing.md")
        kind, words = (mark["kind"], mark["words"] or "") if mark is not None else ("", "")
        if kind in ("file", "not run") and not words:
            raise ValueError(f"{place}: {kind!r} needs {'a name' if kind == 'file' else 'a reason'}")
        if language not in CHECKS and kind not in ("file", "not run"):
            raise ValueError(f"{place}: nobody can check {language!r}: name the file, or why it is not run")
        if not kind and "pip install" in code:
            raise ValueError(f"{place}: it would change this environment: mark it as not run")
        yield Block(place, language, code, kind, words)


def pages() -> list[Page]:
    """The README and all of docs."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [read(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths]


def check(block: Block) -> None:
    """Raise what its language's own reader raises: run or not, a block must be valid."""
    CHECKS.get(block.language, _nothing)(block.code)


def _nothing(code: str) -> None:
    """Text may say anything."""


def _python(code: str) -> None:
    compile(code, "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def _shell(code: str) -> None:
    done = subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SyntaxError(done.stderr)


def _console(code: str) -> None:
    for command, _ in commands(code):
        _shell(command)


def commands(code: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that the page shows below it."""
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)\n?((?:(?!\$ ).*\n?)*)", code, re.MULTILINE)
    if not found or not code.startswith("$ "):
        raise SyntaxError("a console block begins with '$ ' and a command")
    return found


CHECKS: Mapping[str, Callable[[str], Any]] = {
    "": _nothing,
    "text": _nothing,
    "python": _python,
    "sh": _shell,
    "console": _console,
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}
