"""``dynamo ls``: what is served, from discovery's first snapshot, or live."""

from __future__ import annotations

import click

from dynamo.cli.completing import endpoint_paths
from dynamo.cli.options import settings, where


@click.command(
    "ls",
    short_help="What is served, and where.",
    epilog="""\b
Examples:
  dynamo ls
  dynamo ls demo.backend                 one component
  dynamo ls '*.backend' --json           as JSON, for programs
  dynamo ls --watch                      as it changes, until Ctrl-C
  dynamo ls | grep draining              piped: one line an instance

Piped, a line has tabs between its fields: endpoint, id, phase, name, addresses, age in seconds,
requests; - is unknown.
Requests are known of processes that have a status server (DYN_SYSTEM_PORT): all are asked at once,
for a second at most, and again every two seconds with --watch.
""",
)
@click.argument("path", required=False, shell_complete=endpoint_paths)
@click.option("--json", "as_json", is_flag=True, help="A JSON array; with --watch one JSON object a change.")
@click.option("--watch", "-w", is_flag=True, help="Follow the changes.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=5.0, show_default=True,
    metavar="SECONDS", help="For discovery's first answer.",
)  # fmt: skip
@where
def command(
    path: str | None,
    as_json: bool,
    watch: bool,
    timeout: float,
    discovery: str | None,
    request_plane: str | None,
) -> None:
    """List namespaces, components, endpoints and their live instances.

    PATH narrows it: namespace, namespace.component or namespace.component.endpoint; * stands for any.
    """
    import asyncio

    from dynamo.cli.listing import list_once, scope_of, watch_on

    scope, chosen = scope_of(path), settings(discovery, request_plane)
    action = watch_on if watch else list_once
    asyncio.run(action(chosen, scope, as_json=as_json, timeout_s=timeout))
