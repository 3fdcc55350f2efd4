"""A Kubernetes control plane as one program: built by Go from tests/integration/controlplane, once.

The program stays outside the repository, under a name that holds the hash of what it was made from. Run as a
script this builds it where it is missing, and says where it is. It needs nothing but Python and Go.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parent / "integration/controlplane"
FILES = ("main.go", "go.mod", "go.sum")
# The compiler collects no garbage below a size: with that, without debug symbols, and inlining only what is
# busy, a build takes some 45% less CPU.
ENVIRONMENT = {"CGO_ENABLED": "0", "GOGC": "off", "GOMEMLIMIT": "2GiB"}
# What is started so dies with the thread that started it (PR_SET_PDEATHSIG).
START = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
WITHOUT_GO = (
    "the Kubernetes control plane of the tests needs Go 1.25 or later to be built: "
    "install it from https://go.dev/dl, or name a program that is built in DYNAMO_TEST_CONTROL_PLANE"
)


class MissingGoError(Exception):
    """There is no Go to build with."""


class BuildError(Exception):
    """Go did not build it; the text ends with what Go said."""


def location() -> Path:
    """Where the program is, or will be."""
    if "DYNAMO_TEST_CONTROL_PLANE" in os.environ:
        return Path(os.environ["DYNAMO_TEST_CONTROL_PLANE"])
    made_from = hashlib.sha256(repr((platform.system(), platform.machine(), _arguments())).encode())
    for name in FILES:
        made_from.update((SOURCES / name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dynamo-tests" / f"control-plane-{made_from.hexdigest()[:16]}"


def _arguments() -> tuple[str, ...]:
    """How it is built: parts that do not know their version refuse to work together."""
    module = (SOURCES / "go.mod").read_text()
    version = re.search(r"^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\S*)$", module, re.MULTILINE)
    assert version is not None
    names = zip(("gitVersion", "gitMajor", "gitMinor"), version.groups(), strict=True)
    stamps = (f"-X k8s.io/component-base/version.{name}={value}" for name, value in names)
    plain = ("-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false -l")  # nobody debugs it
    busy = (f"-gcflags={part}=-dwarf=false" for part in ("std", "k8s.io/apimachinery/..."))
    return ("build", *plain, *busy, "-ldflags", " ".join(("-s", "-w", *stamps)))


def program() -> Path:
    """The program, built now where it is missing, which takes minutes; who asks meanwhile waits for it."""
    path = location()
    if path.exists():
        return path
    if "DYNAMO_TEST_CONTROL_PLANE" in os.environ:
        raise BuildError(f"DYNAMO_TEST_CONTROL_PLANE={path}: there is no such file")
    go = shutil.which("go")
    if go is None:
        raise MissingGoError(WITHOUT_GO)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _build(go, path)
    return path


def _build(go: str, path: Path) -> None:
    log, unfinished = path.with_suffix(".log"), path.with_suffix(".new")
    print(f"building {path}: minutes, the first time; what Go says is in {log}", file=sys.stderr, flush=True)
    with log.open("w") as said:
        done = subprocess.run(
            [sys.executable, "-ISc", START, go, *_arguments(), "-o", unfinished, "."],
            cwd=SOURCES, env={**os.environ, **ENVIRONMENT}, stdout=said, stderr=said, check=False,
        )  # fmt: skip
    if done.returncode:
        raise BuildError(f"go build in {SOURCES} ended with {done.returncode}:\n{log.read_text()[-10_000:]}")
    unfinished.replace(path)


def main() -> int:
    try:
        print(program())
    except MissingGoError as error:
        print(error, file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
