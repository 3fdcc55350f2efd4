"""Links are cut, reset, stalled, slowed and swallow what is sent, while calls arrive at a steady rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from chaos.load import Load
from dynamo.core.errors import StreamBrokenError
from dynamo.testing.proxy import FaultProxy
from matrix.deployment import Pair, deployed, pairs, reserved

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    # Only what is declared, with a port, can be declared to lie elsewhere, where the proxy listens.
    pytest.mark.parametrize("pair", pairs(lambda pair: pair.separate and pair.ports and not pair.dynamic)),
]

Tell = Callable[[object], None]

RATE_PER_S = 100.0
WORK_S = 0.02
DEADLINE_S = 5.0
KEEPALIVE_S = 0.5


@asynccontextmanager
async def under_load(
    pair: Pair, folder: Path, *, idempotent: bool
) -> AsyncIterator[tuple[Load, FaultProxy, FaultProxy]]:
    """Workers ``one`` and ``two``, each behind a link of its own, and a load on both."""
    async with AsyncExitStack() as stack:
        scheme, ports = pair.request_plane, stack.enter_context(reserved(2))
        links = [await stack.enter_async_context(FaultProxy("127.0.0.1", port)) for port in ports]
        deployment = await stack.enter_async_context(
            deployed(
                pair,
                folder,
                "one",
                addresses=[f"{scheme}://127.0.0.1:{port}#{number}" for number, port in enumerate(ports, 1)],
                seen_at=[f"{scheme}://{link.address}#{number}" for number, link in enumerate(links, 1)],
                keepalive_s=KEEPALIVE_S,
                connect_timeout_s=1.0,
            )
        )
        await deployment.start("two")  # the first one has the first address now
        client = await deployment.client("echo")
        load = Load(client, {"pause_s": WORK_S}, RATE_PER_S, DEADLINE_S, idempotent)
        async with load:
            await load.answered_by("one", "two")
            await load.steady()
            yield load, links[0], links[1]
            await load.answered_by("one", "two")
            await load.steady()
        load.check()


@pytest.mark.parametrize("fault", ["cut", "reset"])
async def test_broken_links_fail_no_idempotent_call(
    pair: Pair, tmp_path: Path, tell: Tell, fault: str
) -> None:
    async with under_load(pair, tmp_path, idempotent=True) as (load, first, second):
        for _ in range(5):
            for link in (first, second):
                getattr(link, fault)()
                await load.answered(10)  # not a time, in which a busy machine gets none through
        broken_at = time.monotonic()
        for link in (first, second):  # both at once
            getattr(link, fault)()
        await load.steady()
    tell(f"{load}; recovered {load.recovery_s(broken_at) * 1e3:.0f} ms after the last {fault}")
    assert load.failed == []
    assert first.connections > 5


async def test_a_broken_link_fails_only_the_calls_on_it(pair: Pair, tmp_path: Path, tell: Tell) -> None:
    async with under_load(pair, tmp_path, idempotent=False) as (load, first, _):
        broken_at = time.monotonic()
        first.reset()
        await load.steady()
    assert first.connections > 1
    tell(f"{load}; recovered {load.recovery_s(broken_at) * 1e3:.0f} ms after the reset")
    for call in load.failed:
        assert isinstance(call.error, StreamBrokenError)
        assert abs(call.due_at - broken_at) < 0.2


async def test_a_worker_that_refuses_connections_is_stepped_over(
    pair: Pair, tmp_path: Path, tell: Tell
) -> None:
    async with under_load(pair, tmp_path, idempotent=True) as (load, first, _):
        refused_at = time.monotonic()
        first.refuse()
        first.cut()
        await load.answered_by("two")
        await load.steady()
        recovery_s = load.recovery_s(refused_at)
        first.heal()
    tell(f"{load}; recovered {recovery_s * 1e3:.0f} ms after the refusal")
    assert load.failed == []


async def test_a_black_hole_is_noticed_by_its_silence(pair: Pair, tmp_path: Path, tell: Tell) -> None:
    async with under_load(pair, tmp_path, idempotent=True) as (load, first, _):
        swallowed_at = time.monotonic()
        first.black_hole()
        await load.answered_by("two")
        await load.steady()
        recovery_s = load.recovery_s(swallowed_at)
        await asyncio.sleep(4 * KEEPALIVE_S)  # long enough for the link to be given up
        first.heal()
    tell(
        f"{load}; recovered {recovery_s * 1e3:.0f} ms after the black hole (DYN_KEEPALIVE_S={KEEPALIVE_S:g})"
    )
    assert load.failed == []
    assert recovery_s < 6 * KEEPALIVE_S


async def test_a_short_stall_fails_no_call(pair: Pair, tmp_path: Path, tell: Tell) -> None:
    async with under_load(pair, tmp_path, idempotent=False) as (load, first, second):
        stalled_at = time.monotonic()
        first.stall()
        second.stall()
        await asyncio.sleep(KEEPALIVE_S * 0.9)
        first.heal()
        second.heal()
        await load.steady()
    tell(f"{load}; recovered {load.recovery_s(stalled_at) * 1e3:.0f} ms after a stall of both links")
    assert load.failed == []


async def longest_s(load: Load, links: Sequence[FaultProxy], slow: Callable[[FaultProxy], None]) -> float:
    """Of the calls that came while the links were slow, for a second."""
    began_at = time.monotonic()
    for link in links:
        slow(link)
    await asyncio.sleep(1.0)
    for link in links:
        link.heal()
    await load.steady()
    return max(call.after_s for call in load.ended if call.due_at >= began_at)


async def test_slow_links_make_calls_slower_and_fail_none(pair: Pair, tmp_path: Path, tell: Tell) -> None:
    async with under_load(pair, tmp_path, idempotent=False) as (load, *links):
        delayed_s = await longest_s(load, links, lambda link: link.delay(0.1))
        throttled_s = await longest_s(load, links, lambda link: link.throttle(4_000))  # less than calls need
    tell(f"{load}; {delayed_s:.2f} s with 100 ms each way, {throttled_s:.2f} s with 4 kB/s")
    assert load.failed == []
    assert delayed_s > 0.2
    assert throttled_s > 0.2
