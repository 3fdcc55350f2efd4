"""``dynamo doctor``: what is configured, installed, reachable and in conflict, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dynamo.cli.options import where
from dynamo.cli.showing import as_json as to_json
from dynamo.cli.showing import console, one_line

if TYPE_CHECKING:
    from dynamo.cli.findings import Finding

MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "wrong": ("✗", "bold red")}


@click.command(
    "doctor",
    short_help="What is configured, and what is wrong.",
    epilog="""\b
Examples:
  dynamo doctor
  dynamo doctor --discovery file:///shared/dynamo
  dynamo doctor | grep ^wrong            piped: one line a finding

Exit code 1 if anything is wrong; a note alone is not.
""",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON array of findings.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True,
    metavar="SECONDS", help="For each backend's answer.",
)  # fmt: skip
@where
def command(as_json: bool, timeout: float, discovery: str | None, request_plane: str | None) -> int:
    """Check this environment; secrets are not shown."""
    import asyncio

    from dynamo.cli.checks import examine

    findings = asyncio.run(examine(discovery, request_plane, timeout_s=timeout))
    if as_json:
        rows = ",\n  ".join(to_json(finding.described()) for finding in findings)
        click.echo(f"[\n  {rows}\n]")
    else:
        _show(findings)
    return 1 if any(finding.level == "wrong" for finding in findings) else 0


def _show(findings: list[Finding]) -> None:
    out = console()
    if not out.is_terminal:
        for one in findings:
            remedy = f"; {one_line(one.remedy)}" if one.remedy else ""
            click.echo(f"{one.level:5}  {one.topic}: {one_line(one.text)}{remedy}")
        return
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    topic = ""
    for one in findings:
        if one.topic != topic:
            topic = one.topic
            out.print(Text(topic, style="bold"))
        mark, style = MARKS[one.level]
        grid = Table.grid(padding=(0, 1))
        grid.add_row(Text(mark, style=style), Text(one_line(one.text)))
        if one.remedy:
            grid.add_row("", Text(f"→ {one_line(one.remedy)}", style="cyan"))
        out.print(Padding(grid, (0, 0, 0, 2)))
    wrong = sum(one.level == "wrong" for one in findings)
    summary = (
        "nothing is wrong" if not wrong else f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong"
    )
    out.print(Text(summary, style=MARKS["wrong" if wrong else "ok"][1]))
