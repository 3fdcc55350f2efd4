"""`nox` alone runs what a contributor needs before a commit; `nox -l` lists the rest.

Sessions share three environments, so that little is installed: `dev` has everything and the working tree;
`plain` has the built wheel without any extra; `demo` has it with the extras of the command and of services.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "none"

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what tests start is to start fast

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml("pyproject.toml")
ELSEWHERE = ("-m", "not soak and not kubernetes")  # what sessions of their own run
CANCELLABLE = re.compile(r"\basync|anyio|BaseException|except:")  # flake8-async reads these only
BUILD = (sys.executable, "tests/control_plane_program.py")


def environment(session: nox.Session, name: str, project: list[str], *groups: str) -> str:
    """The Python of the environment `name`, made on first use and again when what it installs has changed.

    pip compiles nothing: most of it is never imported, and the rest then.
    """
    folder = ROOT / ".nox" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    requirements = nox.project.dependency_groups(PYPROJECT, *groups)
    installed = folder / "installed"
    wanted = hashlib.sha256(
        repr((sys.version, ROOT, project, requirements, PYPROJECT["project"])).encode()
    ).hexdigest()
    if not installed.exists() or installed.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        session.run(sys.executable, "-m", "venv", str(folder))
        session.run(str(python), "-m", "pip", "install", "-q", "--no-compile", *project, *requirements)
        installed.write_text(wanted)
    elif project and "-e" not in project:
        session.run(str(python), "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", *project)
    return str(python)


def dev(session: nox.Session) -> str:
    return environment(session, "dev", ["-e", ".[all]"], "test", "lint", "types", "docs", "bench")


def plain(session: nox.Session) -> str:
    return environment(session, "plain", ["."], "test")


def suite(session: nox.Session, python: str, folder: str, *options: str, loop: str = "asyncio") -> None:
    """Run the tests under `folder`; what follows `--` on nox's command line goes to pytest."""
    session.run(
        *(python, "-m", "pytest", f"tests/{folder}", *options, *session.posargs),
        env={"DYNAMO_TEST_LOOP": loop},
    )


def side_by_side(session: nox.Session, *commands: tuple[str, ...]) -> None:
    """Run commands at the same time; one that fails shows what it said."""
    with ThreadPoolExecutor(len(commands)) as pool:
        for done in [pool.submit(session.run, *command, silent=True) for command in commands]:
            done.result()


@nox.session
def control_plane(session: nox.Session) -> None:
    """Begin to build a control plane of Kubernetes: minutes, the first time; `kubernetes` waits for it."""
    idle = ("nice", "-n19") if shutil.which("nice") else ()
    nowhere = subprocess.DEVNULL  # what goes wrong is told by `kubernetes`, which tries again
    subprocess.Popen([*idle, *BUILD], cwd=ROOT, stdin=nowhere, stdout=nowhere, stderr=nowhere)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, flake8-async for what ruff lacks, and the rule of who may import whom."""
    python = dev(session)
    session.run(python, "-m", "ruff", "check", ".")
    session.run(python, "-m", "ruff", "format", "--check", ".")
    files = [file for part in ("src", "examples", "benchmarks") for file in Path(part).rglob("*.py")]
    concerned = sorted(str(file) for file in files if CANCELLABLE.search(file.read_text(encoding="utf-8")))
    checks = (python, "-m", "flake8_async", "--enable=ASYNC101,ASYNC102,ASYNC103")
    side_by_side(session, (*checks, *concerned[::2]), (*checks, *concerned[1::2]))
    session.run(
        python, "-c", "from importlinter.cli import lint_imports_command as check; check()", "--no-logo"
    )


@nox.session
def types(session: nox.Session) -> None:
    """mypy strict over sources, benchmarks and tests; pyright too, but only over those of tests/typing."""
    python = dev(session)
    side_by_side(session, (python, "-m", "mypy"), (python, "-m", "pyright"))


@nox.session
def tests(session: nox.Session) -> None:
    """Unit tests: the core, the wire and the tools, without another process."""
    suite(session, dev(session), "unit", "-n2")


@nox.session
def contract(session: nox.Session) -> None:
    """What every adapter promises: with uvloop and msgspec, then from the wheel with asyncio and msgpack."""
    suite(session, dev(session), "contract", "-n4", *ELSEWHERE, loop="uvloop")
    extras = (f"--ignore-glob=*_{name}*" for name in ("etcd", "http2", "kubernetes", "nats"))
    suite(session, plain(session), "contract", "-n4", *extras)


@nox.session
def matrix(session: nox.Session) -> None:
    """One end-to-end scenario suite over every discovery x request plane pair, in separate processes."""
    suite(session, dev(session), "matrix", "-n4", "--dist=worksteal", *ELSEWHERE)


@nox.session
def integration(session: nox.Session) -> None:
    """Programs as users write them, in processes of their own."""
    suite(session, dev(session), "integration", "-n3", "--dist=worksteal", *ELSEWHERE)


@nox.session
def chaos(session: nox.Session) -> None:
    """Faults of every kind while a load runs."""
    suite(session, dev(session), "chaos", "-n3", "--dist=worksteal", *ELSEWHERE)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, which its tests build into build/docs, where a broken link is an error; and every snippet."""
    suite(session, dev(session), "docs", "-n2", "--dist=loadfile")


@nox.session
def kubernetes(session: nox.Session) -> None:
    """What needs a control plane of Kubernetes, from four folders: on a real one, which Go builds."""
    python = dev(session)
    session.run(*BUILD)
    folders = ("tests/matrix", "tests/integration", "tests/chaos")
    suite(session, python, "contract", *folders, "-n2", "-m", "kubernetes and not soak")


@nox.session
def demo(session: nox.Session) -> None:
    """Three services in five processes answer HTTP; one is killed and comes back: from the built wheel."""
    wheel = environment(session, "demo", [".[cli,file,services,telemetry]"])
    session.run(wheel, "examples/hello_world/demo.py", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """The long form of what the default sessions run in seeded subsets."""
    session.run(dev(session), "-m", "pytest", "-m", "soak", "tests", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """This library beside Dynamo's wheel, grpc.aio and a bare protocol; meant for a quiet machine.

    `nox -s bench -- full` measures all shapes, and runs all programs of benchmarks/; see its README.
    """
    python, wheel = dev(session), environment(session, "dynamo", [], "bench-dynamo")
    session.run(python, "benchmarks/request_plane.py", "--wheel", wheel, *session.posargs)
    session.run(python, "benchmarks/routing.py")
    if "full" in session.posargs:
        session.run(python, "benchmarks/cancellation.py")
        session.run(python, "benchmarks/limits.py")
        session.run(python, "benchmarks/scrape.py")


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Which lines the unit and contract tests reach."""
    python = dev(session)
    session.run(python, "-m", "coverage", "erase")
    session.run(python, "-m", "coverage", "run", "-m", "pytest", "-q", "tests/unit", "tests/contract")
    session.run(python, "-m", "coverage", "combine", "-q")
    session.run(python, "-m", "coverage", "report")
