"""``dynamo serve``: a service and all that it depends on, each worker in a process of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from dynamo.cli.options import settings, where


@click.command(
    "serve",
    short_help="Run a service and all that it depends on.",
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  dynamo serve hello:Frontend --discovery file
  dynamo serve hello:Frontend -f config.yaml --Backend.workers=3
  dynamo serve hello:Frontend --service-name Backend     that one alone
  dynamo serve hello:Frontend -f config.yaml --dry-run   only check it
  dynamo serve hello:Frontend --reload                   while you write it

A worker that ends is started again, after a pause that grows while it keeps ending. Ctrl-C (or SIGTERM)
drains all, callers before those they call, and exits with 0; a second Ctrl-C stops at once, with 130.

--reload watches the Python files in the folder of MODULE, or of its outermost package, and the file of -f.
A save replaces the workers, which have five seconds for the calls that they have; where it cannot be
imported you are told, and what runs is kept until it can.

Where DYN_SYSTEM_PORT or DYN_TCP_RPC_PORT is set, each worker takes the next port from there.
""",
)
@click.argument("target", metavar="MODULE:SERVICE")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED, metavar="[--SERVICE.KEY=VALUE]...")
@click.option(
    "-f", "--file", "file", type=click.Path(path_type=Path), metavar="PATH", help="Configuration (YAML)."
)
@click.option("--service-name", metavar="NAME", help="Run this one of the services alone.")
@click.option(
    "--http-port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="PORT",
    help="Where @api methods answer over HTTP; a second service with such methods gets the next port, and so "
    "on. 0 for any that is free.",
)
@click.option(
    "--http-host",
    metavar="HOST",
    help="On which address; loopback where discovery stays on this host, else all.",
)
@click.option("--reload", is_flag=True, help="Replace the workers when their code or configuration changes.")
@click.option("--dry-run", is_flag=True, help="Check the services and their configuration; run nothing.")
@where
def command(
    target: str,
    overrides: tuple[str, ...],
    file: Path | None,
    service_name: str | None,
    http_port: int,
    http_host: str | None,
    reload: bool,
    dry_run: bool,
    discovery: str | None,
    request_plane: str | None,
) -> int:
    """Run SERVICE of MODULE, found from the current directory, with supervised workers."""
    import asyncio

    from dynamo.cli.deployment import Deployment
    from dynamo.cli.http_ports import check_free, check_status_ports
    from dynamo.cli.planning import Root, planned
    from dynamo.cli.showing import printable
    from dynamo.cli.supervising import supervise
    from dynamo.core.errors import ConfigError, MissingExtraError
    from dynamo.core.observing import Observing

    chosen = settings(discovery, request_plane)
    deployment = Deployment(
        target=target,
        file=None if file is None else str(file),
        overrides=overrides,
        discovery=discovery,
        request_plane=request_plane,
        service_name=service_name,
        http_port=http_port,
        http_host=http_host,
    )
    plan, services = planned(deployment)
    for field in ("discovery_backend", "request_plane"):
        if getattr(chosen, field).partition("://")[0] == "mem":
            raise ConfigError(
                f"{chosen.source(field)}=mem: each worker is a process of its own, "
                "and mem stays within one; use --discovery file --request-plane tcp"
            )
    if dry_run:
        for one in services:
            namespace = one.namespace or chosen.namespace
            options = "".join(f" {name}={value!r}" for name, value in one.options.items())
            count = "1 worker" if one.workers == 1 else f"{one.workers} workers"
            click.echo(f"{one.name}: {count}{' with' if options else ''}{printable(options)}")
            for method in one.service.methods:
                click.echo(f"  {namespace}.{one.name}.{method.name}")
        return 0
    if reload and find_spec("watchfiles") is None:
        raise MissingExtraError(
            "--reload needs the package 'watchfiles': pip install 'dynamo-runtime-py[file]'"
        )
    Observing(chosen, None)  # what its settings ask for loads, or says what to install
    check_free(plan.deployment.http_ports, http_host, chosen)
    check_status_ports(sum(plan.workers.values()), chosen)
    root = Root.of(deployment) if reload else None
    return asyncio.run(supervise(plan, chosen, root=root))
