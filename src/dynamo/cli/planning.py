"""What is to be run, found out by importing it: here, or in a process of its own for code that has changed.

``python -m dynamo.cli.planning DEPLOYMENT`` writes the plan as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
from attrs import frozen

from dynamo.cli.deployment import Deployment
from dynamo.cli.http_ports import http_ports
from dynamo.cli.printing import Printer
from dynamo.cli.showing import one_line
from dynamo.core.errors import DynamoError
from dynamo.sdk import PlannedService

PLAN_S = 120.0  # importing a model's libraries takes its time


@frozen(kw_only=True)
class Plan:
    """``workers``: how many of each service, dependencies first."""

    deployment: Deployment
    workers: Mapping[str, int]


@frozen(kw_only=True)
class Root:
    """Where the code of a deployment is, and its configuration."""

    folder: Path
    config: Path | None = None

    @classmethod
    def of(cls, deployment: Deployment) -> Root:
        """Of one that was planned in this process: the folder of its module, or of the outermost package."""
        outermost = sys.modules[deployment.target.partition(":")[0].partition(".")[0]]
        package: Sequence[str] = getattr(outermost, "__path__", ())
        file = outermost.__file__
        folder = next(iter(package), None) or os.path.dirname(file or "")
        config = None if deployment.file is None else Path(os.path.abspath(deployment.file))
        return cls(folder=Path(os.path.abspath(folder)), config=config)


def planned(deployment: Deployment) -> tuple[Plan, tuple[PlannedService, ...]]:
    """Import the services and check their configuration. Raises ConfigError."""
    graph = deployment.graph()
    graph.check()
    name = deployment.service_name
    services = graph.services if name is None else (graph[name],)
    deployment = attrs.evolve(deployment, http_ports=http_ports(services, deployment.http_port))
    return Plan(deployment=deployment, workers={one.name: one.workers for one in services}), services


async def planned_anew(deployment: Deployment, printer: Printer) -> Plan | None:
    """The plan for the code as it is now; None, and a line about it, if there is something wrong with it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dynamo.cli.planning", deployment.to_text(),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(PLAN_S):
            told, said = await process.communicate()
    except TimeoutError:
        printer.say(f"{deployment.target} was not imported within {PLAN_S:g} s")
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    for line in said.decode(errors="replace").splitlines():
        printer.say(line)
    if process.returncode:
        if not said:
            printer.say(f"importing {deployment.target} ended with exit code {process.returncode}")
        return None
    plan = json.loads(told)
    return Plan(deployment=Deployment.from_text(plan["deployment"]), workers=plan["workers"])


def main() -> int:
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the program prints while it is imported is not the plan
    try:
        plan, _ = planned(Deployment.from_text(sys.argv[1]))
    except DynamoError as error:
        print(one_line(str(error)), file=sys.stderr)  # noqa: T201
        return 2
    with told:
        json.dump({"deployment": plan.deployment.to_text(), "workers": plan.workers}, told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
