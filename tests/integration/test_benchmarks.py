"""The programs of benchmarks/ run, and what they write is whole; how fast anything is shows elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SYSTEMS = (
    "ceiling",
    "ours tcp",
    "ours spelling",
    "ours unix",
    "ours mem",
    "ours fallback",
    "ours nats",
    "grpc.aio",
)
BOUND_S = 55


def run(folder: Path, program: str, *options: str) -> str:
    """What it printed. Its output goes below ``folder``, where it runs."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / program, *options],
        cwd=folder, capture_output=True, text=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written(folder: Path, name: str) -> Any:
    return json.loads((folder / "build/bench" / name).read_text())


@pytest.mark.slow
def test_every_system_does_every_kind_of_load_that_it_can(tmp_path: Path) -> None:
    shapes = (
        "1 x 1",
        "1 x 100 sleep(0)",
        "paced 64",
        "payload 16 MiB up",
        "duplex 64 x 100",
        "storm 64",
        "connect",
    )
    chosen = [part for shape in shapes for part in ("--shape", shape)]
    chosen += [part for system in SYSTEMS for part in ("--system", system)]
    printed = run(tmp_path, "request_plane.py", "--seconds", "0.01", "--rounds", "1", *chosen)
    assert "did not do" not in printed
    rows = written(tmp_path, "request_plane.json")
    missing = {(shape, system) for shape in shapes for system in SYSTEMS} - {
        (row["shape"], row["system"]) for row in rows
    }
    assert missing == {
        ("duplex 64 x 100", "ceiling"),
        ("duplex 64 x 100", "ours spelling"),
        ("payload 16 MiB up", "ceiling"),
        ("storm 64", "ceiling"),
    }
    assert all(row["value"] > 0 for row in rows if row["metric"] in ("requests/s", "items/s", "MB/s"))

    # A run without the wheel has nothing to be compared with: here one of ours stands in for it.
    stands_in = [{**row, "system": "dynamo"} for row in rows if row["system"] == "ours fallback"]
    (tmp_path / "build/bench/request_plane.json").write_text(json.dumps(rows + stands_in))
    run(tmp_path, "plot.py")
    shutil.copy(ROOT / "docs/performance.md", tmp_path / "docs")
    run(tmp_path, "page.py")
    page = (tmp_path / "docs/performance.md").read_text()
    assert "![Times better" in page
    assert "| 1 x 1 | requests/s | " in page
    assert "| 1 x 1 | requests/s | ours tcp | dynamo | >= 5 | " in page
    for kind in ("png", "svg"):
        assert (tmp_path / f"docs/pictures/request_plane.{kind}").stat().st_size > 1000


def test_ten_thousand_streams_stay_open(tmp_path: Path) -> None:
    run(tmp_path, "request_plane.py", "--shape", "idle 10000", "--system", "ours mem")
    (resident,) = (row for row in written(tmp_path, "request_plane.json") if row["metric"] == "resident MiB")
    assert 10 < resident["value"] < 1024


def test_a_program_that_cannot_start_is_shown_with_what_it_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/request_plane.py", "--system", "ours tcp", "--shape", "1 x 1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=BOUND_S, check=False,
        env={"DYN_WINDOW_BYTES": "many"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "the client of ours tcp" in done.stderr
    assert "DYN_WINDOW_BYTES" in done.stderr


def test_a_peer_that_dies_of_one_load_costs_that_shape_only(tmp_path: Path) -> None:
    peer, wheel = tmp_path / "peer.py", tmp_path / "python"
    peer.write_text(
        """
import json, signal, sys
if "worker" in sys.argv[1]:
    signal.pause()
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    if json.loads(line)["load"] == "storm":
        sys.exit()
    print(json.dumps({"metrics": {"connect ms": 1.0}}), flush=True)
"""
    )
    wheel.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{peer}" "$@"\n')
    wheel.chmod(0o755)
    options = ("--shape", "storm 64", "--shape", "connect", "--seconds", "0.01", "--rounds", "1")
    chosen = ("--wheel", str(wheel), "--system", "dynamo", "--system", "ours mem")
    printed = run(tmp_path, "request_plane.py", *options, *chosen)
    assert "dynamo did not do storm 64: the client of dynamo ended" in printed
    measured = {(row["shape"], row["system"]) for row in written(tmp_path, "request_plane.json")}
    assert measured >= {("storm 64", "ours mem"), ("connect", "ours mem"), ("connect", "dynamo")}
    assert ("storm 64", "dynamo") not in measured


def test_the_routing_table_is_measured(tmp_path: Path) -> None:
    printed = run(tmp_path, "routing.py", "--seconds", "0.001", "--rounds", "1")
    rows = written(tmp_path, "routing.json")
    assert {row["shape"] for row in rows} == {f"{count} instances" for count in (1, 10, 100, 1000, 5000)}
    for strategy in ("round_robin", "random", "direct", "power_of_two", "least_loaded"):
        assert f"pick {strategy} " in printed


def test_leaving_is_measured(tmp_path: Path) -> None:
    printed = run(tmp_path, "cancellation.py", "--calls", "1", "--transport", "tcp")
    assert printed.count("\ntcp ") == 8


def test_limits_are_measured(tmp_path: Path) -> None:
    run(tmp_path, "limits.py", "--transport", "mem")
    rows = written(tmp_path, "limits.json")["rows"]
    assert [row["overrun_bytes"] <= row["bound_bytes"] for row in rows] == [True] * 3


def test_what_being_watched_costs_is_measured(tmp_path: Path) -> None:
    printed = run(tmp_path, "scrape.py", "--seconds", "0.05", "--rounds", "2", "--endpoints", "2")
    assert "wanted: < 2% of requests/s: " in printed
    found = written(tmp_path, "scrape.json")
    assert all(row["requests/s"] > 0 for rows in found["ways"].values() for row in rows)
    assert found["scrape"]["page_bytes"] > 1000


def test_a_deployment_in_etcd_is_measured(tmp_path: Path) -> None:
    run(tmp_path, "etcd_scale.py", "--instances", "20", "--changes", "5", "--idle", "0.1")
    found = written(tmp_path, "etcd.json")
    assert 0 < found["changes_seen"] <= 5
    assert 0 < found["change_p50_ms"] <= found["change_p99_ms"]
