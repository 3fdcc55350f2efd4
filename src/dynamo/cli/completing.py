"""What a shell offers when Tab is pressed where an endpoint belongs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dynamo.core.config import Settings

BOUND_S = 2.0  # for a discovery that is far away or gone


def endpoint_paths(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The endpoints that discovery lists now; none where it does not answer at once, whatever the reason."""
    import asyncio

    from dynamo.cli.options import settings

    try:
        chosen = settings(ctx.params.get("discovery"), ctx.params.get("request_plane"))
        return [path for path in asyncio.run(_listed(chosen)) if path.startswith(incomplete)]
    except Exception:  # a message would land in the line that is being typed
        return []


async def _listed(settings: Settings) -> list[str]:
    import asyncio

    from dynamo.core import registry
    from dynamo.core.model import Scope
    from dynamo.core.ports.discovery import Snapshot

    async with (
        asyncio.timeout(BOUND_S),
        registry.discovery.open(settings.discovery_backend, settings) as discovery,
        discovery.watch(Scope()) as watch,
    ):
        while not isinstance(change := await watch.receive(), Snapshot):
            pass
    return sorted({str(one.endpoint_id) for one in change.instances})
