"""A closed loop of callers, and the times of their calls."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import attrs
from attrs import frozen

from dynamo.core.client import Client
from dynamo.core.errors import DynamoError, RemoteError

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@frozen(kw_only=True)
class Report:
    """Times in seconds; those of failed requests are not among them. ``errors``: how many, and the first."""

    finished: int
    failed: int
    concurrency: int
    seconds: float
    requests_per_s: float  # that succeeded
    items_per_s: float
    times: dict[str, dict[str, float]]
    errors: dict[str, tuple[int, str]]

    def described(self) -> dict[str, Any]:
        return attrs.asdict(self)


class Load:
    """``concurrency`` callers that share ``requests`` requests."""

    def __init__(self, *, requests: int, concurrency: int) -> None:
        self.requests, self.concurrency = requests, concurrency
        self.failed = self.items = 0
        self._left = requests
        self._times: list[float] = []
        self._first_times: list[float] = []
        self._errors: dict[str, tuple[int, str]] = {}
        self._began = self._ended = 0.0

    @property
    def finished(self) -> int:
        return len(self._times) + self.failed

    def rate(self) -> float:
        """Requests per second that succeeded, until the last one that finished."""
        elapsed = self._ended - self._began
        return len(self._times) / elapsed if elapsed > 0 else 0.0

    async def run(
        self,
        client: Client,
        request: Any,
        *,
        timeout_s: float | None = None,
        instance: int | str | None = None,
    ) -> None:
        """Until all requests are done; what fails is counted."""
        self._began = self._ended = perf_counter()
        async with asyncio.TaskGroup() as callers:
            for _ in range(min(self.concurrency, self.requests)):
                callers.create_task(self._call(client, request, timeout_s, instance))

    async def _call(
        self, client: Client, request: Any, timeout_s: float | None, instance: int | str | None
    ) -> None:
        while self._left > 0:
            self._left -= 1
            items, first, began = 0, 0.0, perf_counter()
            try:
                async with client.stream(request, timeout_s=timeout_s, instance=instance) as answer:
                    async for _ in answer:
                        if not items:
                            first = perf_counter()
                        items += 1
            except DynamoError as error:
                self._fail(error)
            else:
                self._times.append(perf_counter() - began)
                if items:
                    self._first_times.append(first - began)
            self.items += items
            self._ended = perf_counter()

    def _fail(self, error: DynamoError) -> None:
        self.failed += 1
        name = type(error).__name__
        if isinstance(error, RemoteError) and error.type_name:
            name = f"{name}({error.type_name})"
        count, sample = self._errors.get(name, (0, str(error)))
        self._errors[name] = (count + 1, sample)

    def report(self) -> Report:
        """Of what has finished so far."""
        seconds = self._ended - self._began
        measured = {"latency": self._times, "first item": self._first_times}
        return Report(
            finished=self.finished,
            failed=self.failed,
            concurrency=self.concurrency,
            seconds=seconds,
            requests_per_s=self.rate(),
            items_per_s=self.items / seconds if seconds > 0 else 0.0,
            times={name: quantiles(times) for name, times in measured.items() if times},
            errors=dict(sorted(self._errors.items(), key=lambda item: -item[1][0])),
        )


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """By nearest rank: each is a time that was measured."""
    ordered = sorted(times)
    return {name: ordered[max(0, math.ceil(q * len(ordered)) - 1)] for name, q in QUANTILES.items()}
