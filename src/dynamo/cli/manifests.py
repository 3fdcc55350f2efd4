"""``dynamo manifests``: what a cluster has to be told to run a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dynamo.cli.kubernetes import PARTS

WITHOUT_PODS = PARTS[:3]


def _workload(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """``SERVICE`` or ``SERVICE=REPLICAS``, once or more often."""
    from dynamo.cli.kubernetes.rendering import Workload

    if not isinstance(value, str):
        return value and tuple(_workload(ctx, parameter, one) for one in value)
    service, separator, replicas = value.partition("=")
    if not service.isidentifier():
        raise click.BadParameter(f"{value!r}: expected the name of a service, or one such as Backend=2")
    if separator and not replicas.isdecimal():
        raise click.BadParameter(f"{value!r}: {replicas!r} is no number of replicas")
    return Workload(service=service, replicas=int(replicas) if separator else 1)


@click.command(
    "manifests",
    short_help="Print what Kubernetes needs to run a deployment.",
    epilog="""\b
Examples:
  dynamo manifests kubernetes hello:Frontend --worker Backend=2 \\
      --image registry.example.com/hello:1.0 | kubectl apply -f -
  dynamo manifests kubernetes --namespace team      what pods of your own need
  dynamo manifests kubernetes --only crd | kubectl apply -f -
  dynamo manifests kubernetes hello:Frontend --worker Backend \\
      --image hello:1 -- -f hello.yaml

\b
Parts, in the order in which they are printed:
  crd        the custom resource in which workers register; once per cluster,
             by an administrator
  rbac       the ServiceAccount, and the Role that it needs
  discovery  the Service that tells which pods are ready
  worker     a Deployment for each --worker
  frontend   a Deployment, and the Service in front of it

The image has 'dynamo-runtime-py[cli,kubernetes,services,telemetry]' and MODULE,
in its working directory.
""",
)
@click.argument("backend", type=click.Choice(["kubernetes"]), metavar="kubernetes")
@click.argument("target", required=False, metavar="[MODULE:SERVICE]")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARG...]")
@click.option("--image", metavar="IMAGE", help="What the pods run.")
@click.option(
    "--worker", "workers", multiple=True, callback=_workload, metavar="SERVICE[=REPLICAS]",
    help="A service that the others call, in pods of its own; once for each: the image is not looked into.",
)  # fmt: skip
@click.option(
    "--frontend", callback=_workload, metavar="SERVICE[=REPLICAS]",
    help="The service that answers HTTP. Default: SERVICE of MODULE:SERVICE.",
)  # fmt: skip
@click.option("--no-frontend", is_flag=True, help="Workers only.")
@click.option(
    "--name", default="dynamo", show_default=True, metavar="NAME",
    help="What everything is called, or begins with; also the DYN_NAMESPACE of the pods.",
)  # fmt: skip
@click.option("--namespace", default="default", show_default=True, metavar="NAME", help="Kubernetes' own.")
@click.option(
    "--shutdown-timeout", type=click.IntRange(min=0), default=30, show_default=True, metavar="SECONDS",
    help="How long calls under way may take when a pod is deleted; its grace period follows.",
)  # fmt: skip
@click.option(
    "--only",
    metavar="PART[,PART]...",
    help=f"Some of {', '.join(PARTS)}. Without MODULE:SERVICE: all but the pods.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Write a file for each part there, instead of printing all.",
)  # fmt: skip
def command(
    backend: str,
    target: str | None,
    arguments: tuple[str, ...],
    image: str | None,
    workers: tuple[Any, ...],
    frontend: Any,
    no_frontend: bool,
    name: str,
    namespace: str,
    shutdown_timeout: int,
    only: str | None,
    output: Path | None,
) -> None:
    """Print manifests of MODULE:SERVICE, as for `dynamo serve`, ready for kubectl apply."""
    from dynamo.cli.kubernetes.rendering import Manifests, Workload
    from dynamo.core.errors import ConfigError

    parts = _parts(only)
    if target is not None and not all(map(str.isidentifier, target.replace(":", ".").split("."))):
        raise click.UsageError(f"{target!r}: expected module:Service, such as hello:Frontend")
    if no_frontend and frontend is not None:
        raise click.UsageError("give --frontend or --no-frontend, not both")
    if target is not None and frontend is None and not no_frontend:
        frontend = Workload(service=target.partition(":")[2])
    if target is None and only is None and not (image or workers or frontend):
        parts = WITHOUT_PODS
    if {"worker", "frontend"} & set(parts):
        if target is None or ":" not in target:
            raise click.UsageError("what should the pods run? give MODULE:SERVICE, such as hello:Frontend")
        if not image:
            raise click.UsageError(f"which image has {target.partition(':')[0]}? give --image")
    if not workers and "worker" in parts and (only is not None or no_frontend):
        raise click.UsageError("which workers? give --worker SERVICE, once for each")
    documents = Manifests(
        name=name,
        namespace=namespace,
        image=image,
        target=target,
        workers=workers,
        frontend=frontend,
        finish_s=shutdown_timeout,
        arguments=arguments,
    ).documents(parts)
    if frontend is not None and not workers and only is None:
        click.echo(
            f"no --worker: these run {frontend.service} alone; if it depends on other services, "
            "give --worker SERVICE for each",
            err=True,
        )
    if output is None:
        click.echo("---\n".join(documents.values()), nl=False)
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        for part, text in documents.items():
            path = output / f"{part}.yaml"
            path.write_text(text, "utf-8")
            click.echo(path)
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}") from error


def _parts(only: str | None) -> tuple[str, ...]:
    if only is None:
        return PARTS
    chosen = {part.strip() for part in only.split(",")}
    if unknown := sorted(chosen - set(PARTS)):
        raise click.UsageError(f"--only: no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in chosen)
