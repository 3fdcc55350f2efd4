"""An open load: calls begin at a stated rate, whatever became of those before, each with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from attrs import define, field, frozen

from dynamo.core.errors import DynamoError
from dynamo.runtime import Client

LATE_S = 0.5  # what a loop on a busy machine may add to a deadline
DISTURBED_S = 0.15  # a call that takes longer felt the fault


@frozen
class Ended:
    """One call: when it was due, how long after that it ended, and in what."""

    due_at: float
    after_s: float
    error: BaseException | None
    worker: str | None


@define
class Load:
    """Calls ``client`` with ``request`` at ``rate_per_s`` while the block runs; leaving waits for the rest.

    Time counts from when a call was due, not from when it could be sent, so that a stall shows in every call
    that it held up.
    """

    client: Client
    request: Any
    rate_per_s: float
    deadline_s: float
    idempotent: bool
    ended: list[Ended] = field(factory=list)
    began_at: float = 0.0
    _calls: set[asyncio.Task[None]] = field(factory=set)
    _driver: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.began_at = time.monotonic()
        self._driver = asyncio.create_task(self._drive())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._driver is not None
        self._driver.cancel()
        await asyncio.wait((self._driver,))
        if self._calls:
            await asyncio.wait(self._calls, timeout=self.deadline_s + 10 * LATE_S)
        hanging = len(self._calls)
        for call in list(self._calls):
            call.cancel()
        assert not hanging, f"{hanging} calls did not end {self.deadline_s:g} s after their beginning"

    async def _drive(self) -> None:
        number = 0
        while True:
            due_at = self.began_at + number / self.rate_per_s
            await asyncio.sleep(due_at - time.monotonic())
            call = asyncio.create_task(self._call(due_at))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            number += 1

    async def _call(self, due_at: float) -> None:
        error: BaseException | None = None
        worker = None
        try:
            answer = await self.client.call(
                self.request, timeout_s=self.deadline_s, idempotent=self.idempotent
            )
            worker = answer["worker"]
        except Exception as raised:
            error = raised
        self.ended.append(Ended(due_at, time.monotonic() - due_at, error, worker))

    async def steady(self, count: int = 10) -> None:
        """Wait until so many calls in a row, of those due from now on, were answered quickly."""
        await self._until(
            count, lambda last: all(not call.error and call.after_s < DISTURBED_S for call in last)
        )

    async def answered(self, count: int) -> None:
        """Wait until so many more calls were answered."""
        wanted = len(self.ended) - len(self.failed) + count
        async with asyncio.timeout(self.deadline_s + 20):
            while len(self.ended) - len(self.failed) < wanted:
                await asyncio.sleep(0.02)

    async def answered_by(self, *workers: str) -> None:
        """Wait until exactly these answer the calls that are due from now on."""
        await self._until(20, lambda last: {call.worker for call in last} == set(workers))

    async def _until(self, count: int, right: Callable[[list[Ended]], bool]) -> None:
        now, before = time.monotonic(), len(self.ended)
        async with asyncio.timeout(self.deadline_s + 20):
            while True:
                last = [call for call in self.ended[before:] if call.due_at >= now][-count:]
                if len(last) == count and right(last):
                    return
                await asyncio.sleep(0.02)

    @property
    def failed(self) -> list[Ended]:
        return [call for call in self.ended if call.error is not None]

    @property
    def longest_s(self) -> float:
        return max(call.after_s for call in self.ended)

    def recovery_s(self, fault_at: float) -> float:
        """Seconds from the fault until the last call that felt it had ended; 0 if none did."""
        felt = [
            call.due_at + call.after_s
            for call in self.ended
            if call.due_at + call.after_s > fault_at and (call.error or call.after_s > DISTURBED_S)
        ]
        return max(felt) - fault_at if felt else 0.0

    def check(self) -> None:
        """No call went past its deadline, and every failure is one that the library names."""
        assert self.longest_s <= self.deadline_s + LATE_S
        for call in self.failed:
            assert isinstance(call.error, DynamoError), call

    def __str__(self) -> str:
        times = sorted(call.after_s for call in self.ended)
        failures = Counter(type(call.error).__name__ for call in self.failed)
        return (
            f"{len(self.ended)} calls at {self.rate_per_s:g}/s, deadline {self.deadline_s:g} s: "
            f"{len(self.failed)} failed{f' {dict(failures)}' if failures else ''}, "
            f"p50 {times[len(times) // 2] * 1e3:.1f} ms, longest {times[-1] * 1e3:.0f} ms"
        )
