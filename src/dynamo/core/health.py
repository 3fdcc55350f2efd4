"""Health of a link, an adapter or a runtime: a value, never an exception."""

from __future__ import annotations

import enum

from attrs import frozen


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
