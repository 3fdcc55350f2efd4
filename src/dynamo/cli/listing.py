"""What discovery says, as a tree, as lines and as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import click

from dynamo.cli.counting import Counts, Requests
from dynamo.cli.drawing import age_of, picture, tree
from dynamo.cli.options import TRY
from dynamo.cli.showing import as_json as to_json
from dynamo.cli.showing import console, one_line
from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, UnavailableError
from dynamo.core.model import Instance, InstanceKey, Scope, check_name
from dynamo.core.opening import without_password
from dynamo.core.ports.discovery import Change, Put, Removed, Snapshot, Stale, Watch

ASK_AGAIN_S = 2.0
TICK_S = 1.0  # a terminal that was resized is drawn anew after this


def scope_of(path: str | None) -> Scope:
    """``ns``, ``ns.component`` or ``ns.component.endpoint``; ``*`` and what is left out match any.

    Raises ConfigError.
    """
    parts = path.removeprefix("dyn://").split(".") if path else []
    kinds = ("namespace", "component", "endpoint")
    if len(parts) > len(kinds):
        raise ConfigError(
            f"bad path {path!r}: expected namespace, namespace.component or namespace.component.endpoint"
        )
    names = [
        None if part == "*" else check_name(kind, part) for kind, part in zip(kinds, parts, strict=False)
    ]
    namespace, component, name = (*names, None, None, None)[:3]
    return Scope(namespace=namespace, component=component, name=name)


class Table:
    """The live instances of a scope, kept up by a watch's changes."""

    def __init__(self) -> None:
        self._live: dict[InstanceKey, Instance] = {}
        self.stale: str | None = None
        self.synced = False

    def instances(self) -> list[Instance]:
        """In the order that people look for them."""
        return sorted(self._live.values(), key=lambda one: (one.endpoint_id, one.name or "", one.instance_id))

    def apply(self, change: Change) -> list[tuple[str, Instance]]:
        """Take a change in; what came (+), changed (~) and went (-)."""
        if isinstance(change, Stale):
            self.stale = change.reason
            return []
        before = after = self._live
        match change:
            case Snapshot():
                self.synced, self.stale = True, None
                after = {one.key: one for one in change.instances}
            case Put():
                after = {**self._live, change.instance.key: change.instance}
            case Removed():
                gone = (change.endpoint_id, change.instance_id)
                after = {key: one for key, one in self._live.items() if key != gone}
        self._live = after
        told = [("-", one) for key, one in before.items() if key not in after]
        for key, one in after.items():
            if key not in before:
                told.append(("+", one))
            elif before[key] != one:
                told.append(("~", one))
        return told


async def list_once(settings: Settings, scope: Scope, *, as_json: bool, timeout_s: float) -> None:
    """Print the first snapshot. Raises UnavailableError if there is none in time."""
    table = Table()
    async with _watching(settings, scope) as watch:
        await _first_answer(watch, table, settings, timeout_s)
    instances, out, counts = table.instances(), console(), Counts()
    await counts.ask(instances)
    if as_json:
        rows = ",\n  ".join(to_json(described(one, counts.of(one))) for one in instances)
        click.echo(f"[\n  {rows}\n]" if rows else "[]")
    elif not out.is_terminal:
        for one in instances:
            click.echo(line(one, counts.of(one)))
    elif instances:
        out.print(tree(instances, counts))
    if not instances and not as_json:
        under = "" if scope == Scope() else f" under {scope}"
        click.echo(f"nothing is served{under} in {_place(settings)}", err=True)


async def watch_on(settings: Settings, scope: Scope, *, as_json: bool, timeout_s: float) -> None:
    """Print the first snapshot and then each change, until cancelled."""
    table, out, counts = Table(), console(), Counts()
    async with _watching(settings, scope) as watch:
        told = await _first_answer(watch, table, settings, timeout_s)
        await counts.ask(table.instances())
        asking = asyncio.ensure_future(_keep_asking(counts, table))
        try:
            if out.is_terminal and not as_json:
                what = _place(settings) if scope == Scope() else f"{scope} in {_place(settings)}"
                await _draw(watch, table, counts, what)
            else:
                await _tell(watch, table, counts, told, as_json=as_json)
        finally:
            asking.cancel()


async def _keep_asking(counts: Counts, table: Table) -> None:
    while True:
        await asyncio.sleep(ASK_AGAIN_S)
        await counts.ask(table.instances())


async def _tell(
    watch: Watch, table: Table, counts: Counts, told: list[tuple[str, Instance]], *, as_json: bool
) -> None:
    while True:
        for mark, one in told:
            seen = counts.of(one)
            click.echo(
                to_json({"change": CHANGES[mark], **described(one, seen)})
                if as_json
                else f"{mark} {line(one, seen)}"
            )
        change = await watch.receive()
        told = table.apply(change)
        if isinstance(change, Stale):
            reason = one_line(change.reason)
            click.echo(to_json({"change": "stale", "reason": reason}) if as_json else f"! {reason}")


CHANGES = {"+": "added", "~": "changed", "-": "removed"}


async def _draw(watch: Watch, table: Table, counts: Counts, title: str) -> None:
    from rich.live import Live

    with Live(picture(table, counts, title), console=console(), auto_refresh=False) as live:
        while True:
            try:
                table.apply(await asyncio.wait_for(watch.receive(), TICK_S))
            except TimeoutError:
                pass
            live.update(picture(table, counts, title), refresh=True)


@asynccontextmanager
async def _watching(settings: Settings, scope: Scope) -> AsyncIterator[Watch]:
    async with AsyncExitStack() as stack:
        try:
            opening = registry.discovery.open(settings.discovery_backend, settings)
            discovery = await stack.enter_async_context(opening)
        except UnavailableError as error:
            raise UnavailableError(f"{error}; start it, or {TRY}, which needs no server") from error
        if not discovery.capability.cross_process:
            raise ConfigError(
                f"{settings.source('discovery_backend')}={settings.discovery_backend}: instances there are "
                "known within one process only, which is not this one; file is for many processes on one host"
            )
        async with discovery.watch(scope) as watch:
            yield watch


async def _first_answer(
    watch: Watch, table: Table, settings: Settings, timeout_s: float
) -> list[tuple[str, Instance]]:
    told: list[tuple[str, Instance]] = []
    try:
        async with asyncio.timeout(timeout_s):
            while not table.synced:
                told += table.apply(await watch.receive())
    except TimeoutError:
        why = f": {table.stale}" if table.stale else ""
        raise UnavailableError(
            f"no answer from discovery {_place(settings)} ({settings.source('discovery_backend')}) "
            f"in {timeout_s:g} s{why}; see 'dynamo doctor'"
        ) from None
    return told


def _place(settings: Settings) -> str:
    url = without_password(settings.discovery_backend)
    return f"{url} ({settings.file_root})" if url in ("file", "file://") else url


def described(one: Instance, seen: Requests | None = None) -> dict[str, Any]:
    """As JSON has it; the incarnation is hex, since it does not fit a JSON reader's integers."""
    return {
        "namespace": one.namespace,
        "component": one.component,
        "endpoint": one.endpoint,
        "instance_id": one.instance_id,
        "incarnation": f"{one.incarnation:x}",
        "phase": one.phase.value,
        "name": one.name,
        "addresses": list(one.addresses),
        "idempotent": one.idempotent,
        "metadata": dict(one.metadata),
        "started": one.started,
        "requests": None if seen is None else seen.total,
        "inflight_requests": None if seen is None else seen.inflight,
    }


def line(one: Instance, seen: Requests | None = None) -> str:
    """Endpoint, id, phase, name, addresses, age in seconds, requests; - where unknown; tabs between them."""
    addresses = ",".join(one.addresses) or "-"
    age_s = age_of(one)
    fields = (
        str(one.endpoint_id),
        str(one.instance_id),
        one.phase.value,
        one.name or "-",
        addresses,
        "-" if age_s is None else str(age_s),
        "-" if seen is None else str(seen.total),
    )
    return "\t".join(map(one_line, fields))
