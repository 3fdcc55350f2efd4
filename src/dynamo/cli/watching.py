"""Changes of a program's code, for ``dynamo serve --reload``."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from dynamo.cli.planning import Root

QUIET_MS = 100  # a checkout or a formatter writes many files: wait until it pauses for so long
BESIDE = frozenset(
    {"__pycache__", "node_modules", "site-packages"}
)  # folders of code that is not the program's


async def batches(root: Root) -> AsyncGenerator[str]:
    """What changed, in a few words, each time that something has."""
    from watchfiles import awatch

    outside = [root.config] if root.config is not None and not root.config.is_relative_to(root.folder) else []
    watch = awatch(
        root.folder, *outside, watch_filter=lambda _, path: is_code(path, root), step=QUIET_MS, recursive=True
    )
    async with aclosing(watch) as found:
        async for batch in found:
            yield told({path for _, path in batch}, root)


def told(paths: set[str], root: Root) -> str:
    """One name and how many more."""
    name = os.path.relpath(min(paths), root.folder)
    return name if len(paths) == 1 else f"{name} and {len(paths) - 1} more"


def is_code(path: str, root: Root) -> bool:
    """Python files and the configuration; nothing hidden, no cache, no virtual environment."""
    file = Path(path)
    if file == root.config:
        return True
    if file.suffix != ".py" or not file.is_relative_to(root.folder):
        return False
    inside = file.relative_to(root.folder)
    if any(part.startswith(".") or part in BESIDE for part in inside.parts):
        return False
    return not any((root.folder / folder / "pyvenv.cfg").exists() for folder in inside.parents[:-1])
