"""What calls are told whose connection has ended, or takes no more of them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from dynamo.core.errors import DrainingError, DynamoError, UnavailableError

if TYPE_CHECKING:
    from dynamo.adapters.request_plane.http2.connection import Http2Connection


def reason_not_to_open(connection: Http2Connection) -> DynamoError:
    """SAFE: the call was not sent."""
    options = connection.options
    peer = options.peer
    if connection.closed:
        return UnavailableError(f"the connection to {peer} is closed{because(connection.error)}")
    if connection.draining:
        return DrainingError(f"{peer} is draining and takes no new calls")
    bound = f"{options.keepalive_s:g} s (DYN_KEEPALIVE_S)"
    return UnavailableError(f"nothing came from {peer} for {bound}: it is sent no new calls")


def break_calls(connection: Http2Connection, error: DynamoError | None) -> None:
    """The connection ended with ``error``: those that were not sent are SAFE, the others broken."""
    why = str(error or f"the connection to {connection.options.peer} was closed")
    waiting, calls = list(connection.outbox.waiting), list(connection.calls.values())
    connection.outbox.waiting.clear()
    for call in waiting:
        if error is not None and not connection.ready:
            ending = copy.copy(error)
        else:
            ending = UnavailableError(f"{why} (the call was not sent)")
        call.finish(_caused(ending, error))
    for call in calls:
        broken = _caused(call.broken(why), error)
        if connection.dialer:
            call.finish(broken)
        else:
            call.break_off(broken)


def because(error: Exception | None) -> str:
    return "" if error is None else f": {error}"


def _caused(error: DynamoError, cause: DynamoError | None) -> DynamoError:
    error.__cause__ = cause
    return error
