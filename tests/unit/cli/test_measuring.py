"""The arithmetic of ``dynamo bench``."""

from __future__ import annotations

import pytest

from dynamo.cli.measuring import Load, quantiles
from dynamo.core.errors import DeadlineError, RemoteError


@pytest.mark.parametrize(
    "count,expected",
    [
        (1, {"p50": 1, "p90": 1, "p99": 1, "max": 1}),
        (10, {"p50": 5, "p90": 9, "p99": 10, "max": 10}),
        (1000, {"p50": 500, "p90": 900, "p99": 990, "max": 1000}),
    ],
)
def test_quantiles_are_times_that_were_measured(count: int, expected: dict[str, int]) -> None:
    assert quantiles([float(one) for one in range(count, 0, -1)]) == expected


def test_errors_are_counted_by_class_most_frequent_first_with_the_first_message() -> None:
    load = Load(requests=9, concurrency=1)
    load._fail(DeadlineError("slow"))
    for number in range(3):
        load._fail(RemoteError(f"bad {number}", type_name="KeyError"))
    report = load.report()
    assert list(report.errors.items()) == [
        ("RemoteError(KeyError)", (3, "bad 0")),
        ("DeadlineError", (1, "slow")),
    ]
    assert (report.finished, report.failed, report.times) == (4, 4, {})
