"""What the requests of one client share: whom to call, how to dial, and which are under way."""

from __future__ import annotations

import itertools
import secrets
from asyncio import get_running_loop
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, NoInstancesError
from dynamo.core.health import Health, Status
from dynamo.core.membership import Membership
from dynamo.core.peers import Peer, Way
from dynamo.core.ports.request_plane import RequestPlane
from dynamo.core.ports.telemetry import EndpointTelemetry, Side, Telemetry
from dynamo.core.registry import request_plane as known_planes

if TYPE_CHECKING:
    from dynamo.core.exchange import Exchange

Dial: TypeAlias = Callable[[str], RequestPlane | None]
"""The plane for an address, by its scheme; None where no adapter dials it."""


class Outbound:
    """One per client; belongs to the loop that it was made on."""

    __slots__ = (
        "_dial", "_id_numbers", "_id_prefix", "active", "closed", "endpoint", "instance_wait_s", "loop",
        "membership", "peers", "telemetry", "variables",
    )  # fmt: skip

    def __init__(
        self, membership: Membership, dial: Dial, settings: Settings, telemetry: Telemetry | None
    ) -> None:
        self.endpoint = str(membership.endpoint_id)
        self.membership = membership
        self.peers = membership.peers
        self.instance_wait_s = settings.instance_wait_s
        self.loop = get_running_loop()
        self.telemetry: EndpointTelemetry | None = (
            None if telemetry is None else telemetry.endpoint(membership.endpoint_id, Side.CLIENT)
        )
        self.variables = copy_context()  # for timers, which would else copy those of each caller
        self.active: set[Exchange] = set()
        self.closed = False
        self._dial = dial
        self._id_prefix = secrets.token_hex(8)
        self._id_numbers = itertools.count(1)

    def on_its_loop(self) -> bool:
        """True on the loop that it was made on; False on another, in no loop, and in a forked child."""
        try:
            return get_running_loop() is self.loop
        except RuntimeError:
            return False

    def request_id(self) -> str:
        """Unique: 64 random bits of this client in hex, a dash, and its count of requests in hex."""
        return f"{self._id_prefix}-{next(self._id_numbers):x}"

    def resolve(self, peer: Peer, first: int = 0) -> Way | None:
        """How to dial ``peer``: its first address, from number ``first`` on, that has an adapter here."""
        addresses = peer.instance.addresses
        for number in range(first, len(addresses)):
            if (plane := self._plane(addresses[number])) is not None:
                peer.way = (plane, addresses[number], number)
                peer.answers_before_way = peer.answers
                return peer.way
        peer.way = None
        return None

    def next_way(self, peer: Peer, failed: Way) -> Way | None:
        """After ``failed``: the same address if another adapter dials it now, else the next one."""
        way = self.resolve(peer, failed[2])
        return way if way is None or way[0] is not failed[0] else self.resolve(peer, failed[2] + 1)

    def _plane(self, address: str) -> RequestPlane | None:
        try:
            return self._dial(address)
        except ConfigError:  # a known adapter that cannot be used here, such as an extra not installed
            return None

    def set_unreachable(self, peer: Peer, refused: Exception | None) -> None:
        """No address of ``peer`` can be dialled; ``refused`` is what the last plane said that was asked."""
        schemes = {address.partition("://")[0] for address in peer.instance.addresses}
        self.peers.set_unreachable(
            peer,
            f"{peer.instance} cannot be dialled from here: it listens on "
            f"{', '.join(sorted(schemes)) or 'no address'}, this process dials "
            f"{', '.join(known_planes.schemes()) or 'nothing'}"
            + (f" ({refused})" if refused is not None else "")
            + "; set DYN_REQUEST_PLANE alike on both sides, or install the adapter",
        )

    def failed(self, peer: Peer, failures_before: int) -> None:
        """``peer`` failed, and no other way to it is left to try: route past it for a while."""
        peer.way = None
        self.membership.availability.failed(peer, failures_before, partial(self._probe, peer))

    async def _probe(self, peer: Peer) -> Health:
        """Up if it can be reached at any of its addresses."""
        health = Health(status=Status.DOWN, detail="no address of it can be dialled")
        for address in peer.instance.addresses:
            if (plane := self._plane(address)) is not None:
                health = await plane.check(address)
                if health.ok:
                    break
        return health

    async def nobody(self, wanted: str, last: Exception | None) -> NoInstancesError:
        """The error for a request that did not find ``wanted`` in time, with all that helps to see why."""
        membership = self.membership
        return NoInstancesError(
            f"no {wanted} after {self.instance_wait_s:g} s (DYN_INSTANCE_WAIT_S): "
            f"{membership.describe()}; {await membership.others()}. "
            + (f"The last attempt failed: {last}. " if last is not None else "")
            + "Start a worker that serves it, or check the name, and DYN_DISCOVERY_BACKEND on both sides"
        )
