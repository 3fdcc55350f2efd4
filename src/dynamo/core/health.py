"""Health of a link, an adapter or a runtime: a value, never an exception."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from attrs import frozen

from dynamo.core.model import EndpointId


class Status(enum.Enum):
    UP = "up"
    STALE = "stale"  # the last known state is being served
    DOWN = "down"


@frozen(kw_only=True)
class Health:
    """``detail`` is one line for a person: what was tried, where, and what was seen."""

    status: Status
    detail: str = ""

    @property
    def ok(self) -> bool:
        """True while calls can be served, on the last known state too."""
        return self.status is not Status.DOWN


@frozen(kw_only=True)
class Readiness:
    """Whether traffic should come to a runtime, and how each of its parts stands."""

    ready: bool
    reasons: tuple[str, ...]  # why not
    endpoints: Mapping[EndpointId, Health]
    links: Mapping[str, Health]  # "discovery", "lease", "request_plane": those that are open or being opened
