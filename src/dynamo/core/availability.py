"""Which instances are put aside, and when they come back.

An instance that refused the connection, broke or timed out is put aside at once, for this runtime alone, with
a back-off that doubles with every failure in a row. When the back-off has passed it is probed, and comes back
if it answers; a changed record and a successful call bring it back too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from dynamo.core.health import Health
from dynamo.core.peers import Peer, Peers

FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 10.0
PROBE_TIMEOUT_S = 10.0  # adapters bound their own probes; this holds for one that does not
PROBES_AT_ONCE = 32  # of one endpoint: a thousand dead instances must not become a thousand connects

Probe: TypeAlias = Callable[[], Awaitable[Health]]


def backoff_s(failures: int, jitter: float) -> float:
    """Seconds aside after so many failures in a row; ``jitter``, 0 to 1, takes away up to half of it."""
    whole = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures - 1, 16))
    return float(whole * (1 - jitter / 2))


class Availability:
    """Puts peers of one table aside and lets them back. Everything but ``aclose`` is synchronous."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._probing: set[asyncio.Task[None]] = set()

    def failed(self, peer: Peer, failures_before: int, probe: Probe) -> None:
        """A call that started when ``peer`` had failed ``failures_before`` times found it failing.

        Calls that were under way together count as one failure: it is one event, whatever the number of its
        victims. One that is aside already, and was tried because nobody else was left, keeps its back-off:
        many calls during one outage must not keep it away for long after that.
        """
        if peer.failures != failures_before:
            return
        if self._peers.aside.get(peer.instance_id) is peer:
            self._peers.end_trial(peer)
        elif self._peers.set_aside(peer):
            peer.failures += 1
            self._wait(peer, probe)

    def answered(self, peer: Peer) -> None:
        """A call was answered: the failures before it are history."""
        peer.failures = 0
        self._peers.restore(peer)

    def _wait(self, peer: Peer, probe: Probe) -> None:
        delay_s = backoff_s(peer.failures, random.random())
        peer.timer = asyncio.get_running_loop().call_later(delay_s, self._probe_soon, peer, probe)

    def _probe_soon(self, peer: Peer, probe: Probe) -> None:
        peer.timer = None
        if len(self._probing) >= PROBES_AT_ONCE:
            self._wait(peer, probe)
            return
        task = asyncio.get_running_loop().create_task(self._probe(peer, probe))
        self._probing.add(task)
        task.add_done_callback(self._probing.discard)

    async def _probe(self, peer: Peer, probe: Probe) -> None:
        failures = peer.failures
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                alive = (await probe()).ok
        except Exception:  # a third party's probe that raises has not found the peer alive
            alive = False
        if peer.failures != failures or self._peers.aside.get(peer.instance_id) is not peer:
            return  # a call, or discovery, has decided meanwhile
        if alive:
            self._peers.restore(peer)  # its failures stay counted until a call is answered
        else:
            peer.failures += 1
            self._wait(peer, probe)

    def stop(self) -> None:
        """Cancel all timers and probes."""
        for peer in self._peers.aside.values():
            if peer.timer is not None:
                peer.timer.cancel()
                peer.timer = None
        for task in self._probing:
            task.cancel()

    async def aclose(self) -> None:
        """Cancel them, and wait until they have ended."""
        self.stop()
        await asyncio.gather(*self._probing, return_exceptions=True)
