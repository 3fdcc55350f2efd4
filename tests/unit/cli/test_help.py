"""What ``--help`` prints on a narrow terminal."""

from __future__ import annotations

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

from click.testing import CliRunner

from dynamo.cli.app import COMMANDS, dynamo


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_no_line_is_wider_than_80_columns(command: str) -> None:
    shown = CliRunner().invoke(dynamo, [*command.split(), "--help"], terminal_width=80, prog_name="dynamo")
    assert shown.exit_code == 0
    assert [line for line in shown.output.splitlines() if len(line) > 80] == []
    assert "Examples:" in shown.output
