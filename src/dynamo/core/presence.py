"""This process as others find it: its id, the server that takes its calls, and its registrations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from attrs import frozen

from dynamo.core.errors import ConfigError, ConflictError, UnavailableError
from dynamo.core.lifetime import Held, backoff
from dynamo.core.model import EndpointId
from dynamo.core.ports.discovery import Discovery, Identity
from dynamo.core.ports.request_plane import Accept, RequestPlane, Server
from dynamo.core.ports.telemetry import Telemetry
from dynamo.core.registrations import Registrations

MAX_ADDRESSES = 64  # declared ones that are tried before a process gives up finding a free one
CLOSE_S = 5.0


@frozen(kw_only=True)
class Presence:
    instance_id: int
    server: Server
    registrations: Registrations


async def appear(
    stack: AsyncExitStack,
    held: Held[Presence],
    *,
    discovery: Discovery,
    plane: RequestPlane,
    accept: Accept,
    first: EndpointId,
    drawn_id: int,
    told: Callable[[], bool],
    incarnation: int,
    telemetry: Telemetry | None,
    lost: Callable[[str], None],
) -> Presence:
    """Learn who we are, take calls, and begin to hold a lease; leaving ``stack`` undoes it in the opposite
    order.

    ``first`` is the endpoint that is served first; ``drawn_id`` is used where the backend has no id for us;
    ``told`` says whether somebody was already given it."""
    identity: Identity | None = None
    for _ in range(MAX_ADDRESSES):
        identity = await _identity(discovery, first, held)
        instance_id = drawn_id if identity is None else identity.instance_id
        address = None if identity is None else identity.address
        if instance_id != drawn_id and told():
            raise ConfigError(
                f"connection_id() was asked before the first serve, and answered {drawn_id}, but discovery "
                f"{discovery.capability.scheme!r} makes this process {instance_id}: ask later"
            )
        try:
            server = await stack.enter_async_context(
                plane.serve(accept, instance_id=instance_id, incarnation=incarnation, address=address)
            )
            break
        except ConflictError:
            if address is None:
                raise
            # Another process took the declared address since identity() looked: it has another one for us,
            # or says so.
    else:
        raise ConflictError(
            f"each of {MAX_ADDRESSES} declared addresses was taken by somebody else when it was bound"
        )
    registrations = Registrations(
        discovery, instance_id=instance_id, incarnation=incarnation, telemetry=telemetry, lost=lost
    )
    stack.push_async_callback(registrations.close, CLOSE_S)
    return Presence(instance_id=instance_id, server=server, registrations=registrations)


async def _identity(discovery: Discovery, first: EndpointId, held: Held[Presence]) -> Identity | None:
    delays = backoff()
    while True:
        try:
            identity = await discovery.identity(first)
            held.trouble = None
            return identity
        except UnavailableError as error:
            held.trouble = error
        await asyncio.sleep(next(delays))
