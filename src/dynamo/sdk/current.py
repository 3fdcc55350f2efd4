"""The request that a service method works on, for the calls that it makes."""

from __future__ import annotations

from contextvars import ContextVar

from dynamo.core.context import Context

CURRENT: ContextVar[Context | None] = ContextVar("dynamo_current_context", default=None)


def current_context() -> Context | None:
    """The context of the request that the running service method answers; None outside of one.

    Calls through ``depends`` take it by themselves. Tasks that the method starts have it too.
    """
    return CURRENT.get()
