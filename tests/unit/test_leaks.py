"""The leak check sees each kind of thing that can be left behind, and waits for what is on its way out."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest

from dynamo.testing.leaks import no_leaks

pytestmark = pytest.mark.anyio


async def test_a_block_that_cleans_up_passes(tmp_path: Path) -> None:
    async with no_leaks():
        await asyncio.create_task(asyncio.sleep(0))
        (tmp_path / "file").write_text("closed")
        await asyncio.to_thread(lambda: None)


async def test_a_task_left_running_is_named() -> None:
    with pytest.raises(AssertionError, match=r"task .*left-behind"):
        async with no_leaks(patience_s=0.05):
            task = asyncio.create_task(asyncio.Event().wait(), name="left-behind")
    task.cancel()


async def test_an_open_socket_is_named() -> None:
    opened = socket.socket()
    opened.close()
    with pytest.raises(AssertionError, match=r"descriptor \d+ -> socket"):
        async with no_leaks(patience_s=0.05):
            opened = socket.socket()
    opened.close()


async def test_a_descriptor_reopened_under_the_same_number_is_seen(tmp_path: Path) -> None:
    first = os.open(tmp_path / "first", os.O_CREAT)
    with pytest.raises(AssertionError, match="second"):
        async with no_leaks(patience_s=0.05):
            os.close(first)
            second = os.open(tmp_path / "second", os.O_CREAT)
            assert second == first
    os.close(second)


async def test_a_thread_left_running_is_named() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-behind")
    try:
        with pytest.raises(AssertionError, match="thread left-behind"):
            async with no_leaks(patience_s=0.05):
                thread.start()
    finally:
        stop.set()
        thread.join()


async def test_what_is_on_its_way_out_is_waited_for() -> None:
    async with no_leaks():
        leaving = asyncio.create_task(asyncio.sleep(0.05))
        assert not leaving.done()


async def test_the_error_of_the_block_is_what_is_seen() -> None:
    with pytest.raises(ValueError, match="the cause"):
        async with no_leaks(patience_s=0.0):
            task = asyncio.create_task(asyncio.Event().wait())
            raise ValueError("the cause")
    task.cancel()
