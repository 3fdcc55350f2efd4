"""Streams that run all the time; one that ends is followed by the next."""

from __future__ import annotations

import asyncio
import time
from typing import Self

from attrs import define, field, frozen

from dynamo.core.errors import StreamBrokenError
from dynamo.runtime import Client


@frozen
class Broken:
    """One that a fault broke: when, and whose items had come."""

    at: float
    worker: str | None


@define
class Streams:
    """``count`` streams of ``client`` at a time, each of ``items`` numbered items."""

    client: Client
    count: int
    items: int
    pause_s: float
    deadline_s: float
    whole: int = 0
    broken: list[Broken] = field(factory=list)
    wrong: list[str] = field(factory=list)  # items that were lost or came twice, errors other than a break
    _tasks: list[asyncio.Task[None]] = field(factory=list)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self.count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _run(self) -> None:
        request = {"items": self.items, "pause_s": self.pause_s}
        while True:
            numbers: list[int] = []
            worker = None
            try:
                async with self.client.stream(request, timeout_s=self.deadline_s) as items:
                    async for item in items:
                        numbers.append(item["number"])
                        worker = item["worker"]
                self._look(numbers, self.items)
                self.whole += 1
            except StreamBrokenError as error:
                self._look(numbers, error.received)
                self.broken.append(Broken(time.monotonic(), worker))
            except Exception as error:
                self.wrong.append(repr(error))
                await asyncio.sleep(self.pause_s)  # it may come at once, again and again

    def _look(self, numbers: list[int], count: int) -> None:
        if numbers != list(range(count)):
            self.wrong.append(f"{count} items were told, {len(numbers)} came: {numbers[-3:]}")
