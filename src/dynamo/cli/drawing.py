"""What discovery lists, for a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from dynamo.cli.counting import Counts, Requests
from dynamo.cli.showing import one_line
from dynamo.core.model import EndpointId, Instance, Phase

if TYPE_CHECKING:
    from rich.console import Group

    from dynamo.cli.listing import Table

THOUSANDS = 10_000  # from here on requests are shown in thousands
RIGHT = (False, False, False, True, True)  # which columns are numbers


def _brief(addresses: tuple[str, ...]) -> str:
    """Without Unix sockets where there are others: only this host dials them, and their names fill a line."""
    others = [address for address in addresses if not address.startswith("unix://")]
    return one_line(" ".join(others or addresses))


def picture(table: Table, counts: Counts, title: str) -> Group:
    """What ``--watch`` draws; the state comes first, since a long tree is cut at the terminal's last line."""
    from rich.console import Group
    from rich.text import Text

    instances = table.instances()
    state = Text(f"{title}: {counted(instances)}; Ctrl-C ends", style="dim")
    if table.stale is not None:
        state = Text(
            f"discovery is away, this is what was last seen: {one_line(table.stale)}", style="yellow"
        )
    return Group(state, *([tree(instances, counts)] if instances else []))


def counted(instances: Iterable[Instance]) -> str:
    instances = list(instances)
    endpoints = len({one.endpoint_id for one in instances})
    draining = sum(one.phase is Phase.DRAINING for one in instances)
    tail = f", {draining} draining" if draining else ""
    return f"{_plural(endpoints, 'endpoint')}, {_plural(len(instances), 'instance')}{tail}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def tree(instances: Iterable[Instance], counts: Counts) -> Group:
    """Namespace, component, endpoint, and the instances in columns that line up through the whole tree."""
    from rich.console import Group
    from rich.text import Text
    from rich.tree import Tree

    instances = list(instances)
    columns = _columns(instances, counts)
    roots: list[Tree] = []
    namespaces: dict[str, Tree] = {}
    components: dict[tuple[str, str], Tree] = {}
    endpoints: dict[EndpointId, Tree] = {}
    for one in instances:
        if (root := namespaces.get(one.namespace)) is None:
            root = namespaces[one.namespace] = Tree(Text(one.namespace, style="bold"), guide_style="dim")
            roots.append(root)
        if (component := components.get((one.namespace, one.component))) is None:
            component = components[one.namespace, one.component] = root.add(Text(one.component))
        if (endpoint := endpoints.get(one.endpoint_id)) is None:
            endpoint = endpoints[one.endpoint_id] = component.add(Text(one.endpoint, style="cyan"))
        cells = [(f"{text}  ", style) for text, style in next(columns)]
        endpoint.add(Text.assemble(*cells, _brief(one.addresses), overflow="fold"))
    return Group(*roots)


def _columns(instances: list[Instance], counts: Counts) -> Iterator[list[tuple[str, str]]]:
    """For each instance its cells, as wide as the widest of their column; a column of nothing is left out."""
    rows = [
        (
            (one.phase.value, "green" if one.phase is Phase.READY else "yellow"),
            (one_line(one.name or ""), ""),
            (str(one.instance_id), "dim"),
            (brief_age(age_of(one)), ""),
            (brief_requests(counts.of(one)), "cyan"),
        )
        for one in instances
    ]
    widths = [max(len(row[column][0]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = zip(row, widths, RIGHT, strict=True)
        yield [
            (f"{text:>{width}}" if right else f"{text:<{width}}", style)
            for (text, style), width, right in cells
            if width
        ]


def age_of(one: Instance) -> int | None:
    """In seconds, by this host's clock; another host's may be ahead of it."""
    return None if one.started is None else max(0, int(time.time()) - one.started)


def brief_age(seconds: int | None) -> str:
    if seconds is None:
        return ""
    for limit, unit, name in ((120, 1, "s"), (120 * 60, 60, "m"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds // unit}{name}"
    return f"{seconds // 86400}d"


def brief_requests(seen: Requests | None) -> str:
    """How many in all, and how many more run now."""
    if seen is None:
        return ""
    now = f" +{seen.inflight:,}" if seen.inflight else ""
    total = f"{seen.total:,}" if seen.total < THOUSANDS else f"{seen.total // 1000:,}k"
    return f"{total} req{now}"
