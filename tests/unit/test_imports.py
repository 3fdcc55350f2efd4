"""Importing stays cheap: the core loads nothing but its few dependencies, the public face no adapter's."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dynamo.core

SOURCES = Path(dynamo.core.__path__[0]).parent
CORE_MAY_LOAD = {"anyio", "attr", "attrs", "msgpack", "msgspec", "idna", "sniffio", "typing_extensions"}
RUNTIME_MUST_NOT_LOAD = {
    *(
        "aiohttp",
        "cupy",
        "grpc",
        "h2",
        "kubernetes",
        "nats",
        "opentelemetry",
        "prometheus_client",
        "pydantic",
    ),
    *("pytest", "uvloop", "watchfiles", "yaml", "zmq"),
}
REPEATS = 5


def fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(*modules: str) -> set[str]:
    """``sys.modules`` of a fresh process after importing ``modules``."""
    return set(
        json.loads(
            fresh_process(f"import json, sys, {', '.join(modules)}; print(json.dumps([*sys.modules]))")
        )
    )


def top_level(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def modules_under(package: str) -> list[str]:
    folder = SOURCES / package
    return sorted(
        ".".join(("dynamo", package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in folder.rglob("*.py")
    )


def test_the_core_loads_only_its_dependencies() -> None:
    modules = modules_under("core")
    assert "dynamo.core.ports.discovery" in modules
    loaded = loaded_by(*modules)
    in_every_process = loaded_by("sys")  # what .pth files of the environment bring
    third_party = top_level(loaded) - top_level(in_every_process) - sys.stdlib_module_names - {"dynamo"}
    assert third_party <= CORE_MAY_LOAD
    assert [
        name for name in loaded if name.startswith("dynamo.") and not name.startswith("dynamo.core")
    ] == []


def test_the_public_face_loads_no_adapter() -> None:
    loaded = loaded_by("dynamo.runtime")
    assert top_level(loaded) & RUNTIME_MUST_NOT_LOAD == set()
    assert [name for name in loaded if name.startswith("dynamo.adapters.")] == []


def test_only_three_packages_are_required() -> None:
    required = [Requirement(line) for line in requires("dynamo-runtime-py") or ()]
    assert {one.name for one in required if one.marker is None} == {"anyio", "attrs", "msgpack"}


def test_dynamo_is_a_namespace_package_and_every_part_is_typed() -> None:
    assert not (SOURCES / "__init__.py").exists()
    parts = [folder for folder in SOURCES.iterdir() if folder.is_dir() and folder.name != "__pycache__"]
    assert parts
    assert [part.name for part in parts if not (part / "py.typed").exists()] == []


def test_how_long_importing_takes_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import time; start, worked = time.perf_counter(), time.process_time(); import dynamo.runtime; "
        "print(time.perf_counter() - start, time.process_time() - worked)"
    )
    times = [tuple(map(float, fresh_process(code).split())) for _ in range(REPEATS)]
    wall_ms, cpu_ms = (statistics.median(each) * 1000 for each in zip(*times, strict=True))
    with capsys.disabled():
        print(
            f"\nimport dynamo.runtime: {wall_ms:.0f} ms, {cpu_ms:.0f} ms of CPU (medians of {REPEATS})",
            end=" ",
        )
    assert min(times)[0] < 5  # no figure to meet, but an import that waits for something
