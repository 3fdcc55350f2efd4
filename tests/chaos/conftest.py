"""Figures that the tests tell are printed at the end of the session, passed tests' too."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[object], None]:
    """Print one line at the end of the session, under the test's name."""
    return lambda line: record_property("told", str(line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = [
        (report.nodeid.partition("::")[2], line)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for name, line in report.user_properties
        if name == "told"
    ]
    if told:
        terminalreporter.section("under load")
        for test, line in told:
            terminalreporter.line(f"{test}\n    {line}")
