"""The lines of many workers on one output, with a status line that stays below them on a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import click

from dynamo.cli.logs import as_json
from dynamo.cli.showing import console, one_line, printable

COLOURS = ("cyan", "magenta", "green", "blue", "yellow")
CHUNK_BYTES = 65536
LINE_BYTES = 65536  # a longer line is printed in parts


class Printer:
    """Entered for as long as there is something to print; ``json_lines``: for a collector of logs."""

    def __init__(self, *, json_lines: bool = False) -> None:
        from rich.live import Live
        from rich.text import Text

        self._out = console()
        self._width, self._services, self._last = 0, list[str](), ""
        self._json_lines = json_lines
        self._live = None
        if self._out.is_terminal and not json_lines:
            self._live = Live(Text(), console=self._out, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    async def follow(self, name: str, stream: asyncio.StreamReader) -> None:
        """Print what comes, line by line, until the stream ends."""
        rest = b""
        while part := await stream.read(CHUNK_BYTES):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._line(name, line)
            if len(rest) >= LINE_BYTES:
                self._line(name, rest)
                rest = b""
        if rest:
            self._line(name, rest)

    def say(self, text: str) -> None:
        """A line of our own."""
        self._line("dynamo", text.encode())

    def status(self, up: Mapping[str, tuple[int, int]], word: str) -> None:
        """How many workers of each service serve, of how many; ``word`` is ``up`` or what they do instead."""
        from rich.text import Text

        self._services = list(up)
        self._width = max(map(len, (*(f"{name}/{wanted - 1}" for name, (_, wanted) in up.items()), "dynamo")))
        counts = ", ".join(f"{name} {now}/{wanted}" for name, (now, wanted) in up.items())
        text = f"{word}: {counts}"
        if text == self._last:
            return
        self._last = text
        if self._live is None:
            self.say(text)
        else:
            all_up = all(now == wanted for now, wanted in up.values())
            style = "bold green" if all_up and word == "up" else "bold yellow"
            self._live.update(Text(text, style=style, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _line(self, name: str, line: bytes) -> None:
        if self._json_lines:
            click.echo(as_json(name, line.decode(errors="replace").rstrip("\r")))
            return
        text = printable(line.decode(errors="replace").rstrip("\r"))
        prefix = f"{one_line(name):{self._width}} | "
        if self._live is None:
            click.echo(prefix + text)
            return
        from rich.text import Text

        service = name.partition("/")[0]
        known = service in self._services
        style = COLOURS[self._services.index(service) % len(COLOURS)] if known else "dim"
        self._out.print(Text.assemble((prefix, style), text), soft_wrap=True)
