"""A thousand open streams over one HTTP/2 connection: windows bound what they hold, sleepers stop nobody."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from integration.http2_sleepers import ITEM_BYTES, ITEMS
from integration.http2_worker import BOUND_S

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MIB = 2**20
WINDOW_BYTES = 256 * 1024  # the default
STREAM_BYTES = 24 * 1024  # that an open call costs on both sides together, with nothing in it


async def figures(scenario: str) -> dict[str, int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "integration.http2_sleepers", scenario),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    async with asyncio.timeout(2 * BOUND_S):
        output, _ = await process.communicate()
    assert process.returncode == 0
    found: dict[str, int] = json.loads(output)
    print(
        f"\n{found['streams']} streams on one connection: {found['made'] / MIB:.1f} MiB were made for who "
        f"sleeps, {found['grown'] / MIB:.1f} MiB resident"
    )
    return found


async def test_one_sleeping_reader_holds_its_window_and_the_others_go_on() -> None:
    found = await figures("one")
    assert found["made"] <= 2 * WINDOW_BYTES
    held = STREAM_BYTES + ITEMS * ITEM_BYTES  # by each of the others, at most
    assert found["grown"] < found["streams"] * held + 4 * WINDOW_BYTES


async def test_a_thousand_sleeping_readers_hold_their_windows_and_no_more() -> None:
    found = await figures("all")
    assert found["made"] <= found["streams"] * (found["window"] + 2 * ITEM_BYTES)
    assert found["grown"] < found["streams"] * STREAM_BYTES + 1.5 * found["made"]


async def test_who_grants_all_and_reads_nothing_makes_a_worker_keep_windows_and_no_more() -> None:
    found = await figures("outsider")
    assert found["made"] < found["streams"] * found["window"] + 16 * MIB  # what the system's buffers took
    assert found["grown"] < found["streams"] * (STREAM_BYTES + 2 * found["window"])
