"""``dynamo call``: one request to an endpoint, its answer as it comes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from dynamo.cli.completing import endpoint_paths
from dynamo.cli.options import instance as instance_of
from dynamo.cli.options import payload as payload_of
from dynamo.cli.options import payload_source, runtime, where
from dynamo.cli.showing import as_json as to_json
from dynamo.cli.showing import printable

LEAST_S = 0.001  # of a deadline that waiting has used up


@click.command(
    "call",
    short_help="Call an endpoint, print its answer as it streams.",
    epilog="""\b
Examples:
  dynamo call demo.backend.generate '{"prompt": "hi"}'
  dynamo call demo.backend.generate '"hi"' --instance worker-1 --timeout 5
  dynamo call demo.backend.generate --file request.json --json | jq .
  echo '{"prompt": "hi"}' | dynamo call demo.backend.generate -

Text is printed as it is, other items as JSON, one a line; with --json all are JSON.
""",
)
@click.argument("endpoint", metavar="NAMESPACE.COMPONENT.ENDPOINT", shell_complete=endpoint_paths)
@payload_source
@click.option("--json", "as_json", is_flag=True, help="Every item as one line of JSON.")
@click.option("--instance", metavar="ID|NAME", help="Ask this instance and no other.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="For the whole call."
)
@where
def command(
    endpoint: str,
    payload: str | None,
    file: Path | None,
    as_json: bool,
    instance: str | None,
    timeout: float | None,
    discovery: str | None,
    request_plane: str | None,
) -> None:
    """Send one request (JSON) and print the items of the answer. Ctrl-C cancels the call at the worker."""
    import asyncio

    from dynamo.cli.awaiting import await_instance

    request = payload_of(payload, file)

    async def call() -> None:
        async with runtime(discovery, request_plane) as ours:
            began, wanted = time.monotonic(), instance_of(instance)
            client = await ours.endpoint(endpoint).client()
            wait_s = ours.settings.instance_wait_s
            await await_instance(client, wanted, wait_s if timeout is None else min(wait_s, timeout))
            left_s = None if timeout is None else max(LEAST_S, timeout - (time.monotonic() - began))
            async with client.stream(request, instance=wanted, timeout_s=left_s) as items:
                async for item in items:
                    _show(item, as_json)

    asyncio.run(call())


def _show(item: Any, as_json: bool) -> None:
    if as_json or not isinstance(item, str):
        click.echo(to_json(item))
    elif sys.stdout.isatty():
        click.echo(printable(item))
    else:
        click.echo(item)
