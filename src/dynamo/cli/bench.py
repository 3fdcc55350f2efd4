"""``dynamo bench``: load on an endpoint, and how long its answers took."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dynamo.cli.completing import endpoint_paths
from dynamo.cli.options import instance as instance_of
from dynamo.cli.options import payload as payload_of
from dynamo.cli.options import payload_source, runtime, where
from dynamo.cli.showing import as_json as to_json
from dynamo.cli.showing import console, one_line

if TYPE_CHECKING:
    from dynamo.cli.measuring import Load, Report

DRAW_S = 0.2  # between two looks at the progress


@click.command(
    "bench",
    short_help="Load an endpoint, print a table of latencies.",
    epilog="""\b
Examples:
  dynamo bench demo.backend.generate '{"prompt": "hi"}'
  dynamo bench demo.backend.generate '{"prompt": "hi"}' -c 256 -n 100000
  dynamo bench demo.backend.generate -f request.json --timeout 2 --json

The loop is closed: each of the -c callers sends its next request when the answer to the last one
has ended, so a slow worker is asked less. Retries are part of a request's time, and so is dialling
for the first ones. Exit code 1 if a request failed; Ctrl-C prints what there is so far.
""",
)
@click.argument("endpoint", metavar="NAMESPACE.COMPONENT.ENDPOINT", shell_complete=endpoint_paths)
@payload_source
@click.option(
    "-c", "--concurrency", type=click.IntRange(1, 100_000), default=64, show_default=True,
    metavar="N", help="Requests at a time.",
)  # fmt: skip
@click.option(
    "-n", "--requests", type=click.IntRange(1), default=10_000, show_default=True,
    metavar="N", help="Requests in all.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON object; times in seconds.")
@click.option("--instance", metavar="ID|NAME", help="Load this instance and no other.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="For each request."
)
@where
def command(
    endpoint: str,
    payload: str | None,
    file: Path | None,
    concurrency: int,
    requests: int,
    as_json: bool,
    instance: str | None,
    timeout: float | None,
    discovery: str | None,
    request_plane: str | None,
) -> int:
    """Send the same request many times and measure the answers."""
    import asyncio

    from dynamo.cli.awaiting import await_instance
    from dynamo.cli.loops import fastest_loop
    from dynamo.cli.measuring import Load

    request = payload_of(payload, file)
    load = Load(requests=requests, concurrency=concurrency)

    async def run() -> None:
        async with runtime(discovery, request_plane) as ours:
            client = await ours.endpoint(endpoint).client()
            wait_s = ours.settings.instance_wait_s
            await await_instance(
                client, instance_of(instance), wait_s if timeout is None else min(wait_s, timeout)
            )
            async with _progress(load):
                await load.run(client, request, timeout_s=timeout, instance=instance_of(instance))

    try:
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            runner.run(run())
    except KeyboardInterrupt:
        if load.finished:
            _show(load.report(), endpoint, as_json)
        raise
    report = load.report()
    _show(report, endpoint, as_json)
    return 1 if report.failed else 0


@asynccontextmanager
async def _progress(load: Load) -> AsyncIterator[None]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    import asyncio

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("", total=load.requests, rate="")

        async def follow() -> None:
            while True:
                rate = f"{load.rate():,.0f}/s, {load.failed:,} failed"
                progress.update(bar, completed=load.finished, rate=rate, refresh=True)
                await asyncio.sleep(DRAW_S)

        following = asyncio.ensure_future(follow())
        try:
            yield
        finally:
            following.cancel()


def _show(report: Report, endpoint: str, as_json: bool) -> None:
    if as_json:
        click.echo(to_json({"endpoint": endpoint, **report.described()}))
        return
    from rich.table import Table
    from rich.text import Text

    out = console()
    amount = f"{report.finished:,} requests, {report.concurrency:,} at a time, {report.seconds:.2f} s"
    rates = f"{report.requests_per_s:,.0f} requests/s, {report.items_per_s:,.0f} items/s"
    rows = [(name, *map(_time, times.values())) for name, times in report.times.items()]
    names = ("", *next(iter(report.times.values()), {}))
    click.echo(f"{endpoint}: {amount}")
    click.echo(f"{rates}, {report.failed:,} failed")
    if not out.is_terminal:
        for row in (names, *rows) if rows else ():
            click.echo("\t".join(row))
    elif rows:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        for name in names:
            table.add_column(name, justify="right" if name else "left")
        for row in rows:
            table.add_row(*row)
        out.print(table)
    for name, (count, sample) in report.errors.items():
        out.print(Text(f"{count:,} x {name}, such as: {one_line(sample)}", style="red"), soft_wrap=True)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
