"""After a failed attempt: whose fault it was, and whether another attempt follows."""

from __future__ import annotations

import copy
import random
from typing import TYPE_CHECKING

import attrs

from dynamo.core.errors import (
    AuthError,
    DrainingError,
    DynamoError,
    OverloadedError,
    Retry,
    UnavailableError,
    UnknownEndpointError,
)
from dynamo.core.peers import Peer

if TYPE_CHECKING:
    from dynamo.core.exchange import Exchange

FIRST_DELAY_S = 0.002  # at most, before the second attempt; doubles from there
LONGEST_DELAY_S = 0.5
MAY_HAVE_RUN = 3  # attempts, in all, that may have reached a handler


class Trouble:
    """What only a request needs whose first attempt did not simply work."""

    __slots__ = ("give_up_at", "last", "may_have_run", "not_before", "tried")

    def __init__(self, give_up_at: float) -> None:
        self.give_up_at = give_up_at  # where there is no deadline
        self.not_before = 0.0  # the next attempt
        self.may_have_run = 0  # attempts
        self.tried: list[Peer] = []  # in this round, which ends when everybody was
        self.last: DynamoError | None = None


def verdict(exchange: Exchange, error: DynamoError, received: int) -> Exception | None:
    """None where another attempt follows, which is then prepared; else what the reader is told.

    The attempt ended with ``error`` after ``received`` items. Puts the instance aside where the failure is
    its own.
    """
    out, peer, request, trouble = exchange.out, exchange.peer, exchange.request, exchange.trouble
    assert peer is not None
    other_way = _blame(exchange, error)
    if error.remote or exchange.stopped or request is None or (exchange.input and exchange.input.taken):
        return error
    now = out.loop.time()
    begun = exchange.answered and not exchange.whole  # items reached the caller
    if trouble is None or (received and begun):
        trouble = exchange.trouble = Trouble(now + out.instance_wait_s)
    payload = request.payload
    if error.retry is Retry.UNKNOWN:
        trouble.may_have_run += 1
        trouble.give_up_at = now + out.instance_wait_s
        if trouble.may_have_run >= MAY_HAVE_RUN:
            return error
        if begun:
            if exchange.resume is None:
                return error
            try:
                payload = exchange.resume()
            except Exception as cannot:
                return cannot
        elif not request.idempotent:
            return error
    elif received or (error.retry is Retry.NEVER and not other_way):
        return error
    elif exchange.timer is None and now >= trouble.give_up_at:
        return _gave_up(exchange, error)
    if not other_way:
        if peer in trouble.tried:
            trouble.tried.clear()
        trouble.tried.append(peer)
    longest_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(exchange.attempts - 1, 10))
    trouble.not_before = now + random.random() * longest_s
    trouble.last = error
    left_s = exchange.timeout_s
    if exchange.timer is not None and left_s is not None:
        left_s = max(0.0, min(left_s, exchange.timer.when() - now))
    exchange.request = attrs.evolve(
        request,
        payload=payload,
        end=request.end or (exchange.input is not None and exchange.input.ended),
        attempt=exchange.attempts + 1,
        timeout_s=left_s,
    )
    return None


def _blame(exchange: Exchange, error: DynamoError) -> bool:
    """Put the peer aside if the failure is its own; True if another address of it is to be tried."""
    out, peer, way = exchange.out, exchange.peer, exchange.way
    assert peer is not None
    if error.remote or isinstance(error, OverloadedError):
        exchange.alive()
    elif error is exchange.broken:
        pass  # its time was over: judged when that happened
    elif isinstance(error, (DrainingError, UnknownEndpointError)) or error.retry is Retry.UNKNOWN:
        out.failed(peer, exchange.failures_before)
    elif isinstance(error, (UnavailableError, AuthError)):
        if peer.way is not way:
            return peer.way is not None  # another call has moved on already
        # A way that never worked may be at fault itself: a Unix socket cannot be reached from another
        # container, say. One that has worked fails because the instance does.
        if peer.answers == peer.answers_before_way and out.next_way(peer, way) is not None:
            return True
        out.failed(peer, exchange.failures_before)
    return False


def _gave_up(exchange: Exchange, error: DynamoError) -> DynamoError:
    last = copy.copy(error)  # of the same class: what the caller does next is the same
    spent = f"{exchange.attempts} attempts in {exchange.out.instance_wait_s:g} s (DYN_INSTANCE_WAIT_S)"
    last.args = (f"{error}; gave up after {spent}",)
    last.__cause__ = error
    return last
