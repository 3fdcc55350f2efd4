"""How the demo looks: each worker in a color of its own where the terminal has colors, else plain text."""

from __future__ import annotations

import os
import sys
from collections import Counter

COLORED = sys.stdout.isatty() and "NO_COLOR" not in os.environ
COLORS = {"worker-1": "36", "worker-2": "33", "worker-3": "35", "worker-4": "32"}


def paint(text: str, color: str) -> str:
    return f"\x1b[{color}m{text}\x1b[0m" if COLORED else text


def say(text: str = "", *, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def title(text: str) -> None:
    say(f"\n{paint(text, '1')}")


def note(text: str) -> None:
    say(f"  {paint(text, '2')}")


def named(worker: str, text: str) -> str:
    return paint(text, COLORS.get(worker, "0"))


def word(worker: str, text: str, before: str | None) -> None:
    """The next word of an answer; ``before`` is the worker of the word before it, None at the start."""
    if worker != before:
        margin = "  " if before is None else paint(" ✂\n  ", "31")
        say(f"{margin}{named(worker, f'{worker} │')}{'' if text.startswith(' ') else ' '}", end="")
    say(named(worker, text), end="")


def shares(counts: Counter[str]) -> None:
    """A bar for each worker, as long as its share."""
    for worker, count in sorted(counts.items()):
        say(f"  {named(worker, f'{worker} │ ' + '▇' * count)} {count}")
