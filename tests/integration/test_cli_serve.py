"""``dynamo serve`` in a process of its own: workers that are killed, drained, stopped, and left alone."""

from __future__ import annotations

import datetime
import json
import os
import pty
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")
pytest.importorskip("msgspec", reason="the extra services is not installed")

from dynamo.core.signals import ECHO_S
from integration.test_cli import BOUND_S, COMMAND, environment, refused, started

HELLO = """
import asyncio, gc, os
from collections.abc import AsyncIterator
from dynamo.runtime import depends, endpoint, service

@service(namespace="demo", workers=2)
class Backend:
    @endpoint
    async def generate(self, prompt: str) -> AsyncIterator[str]:
        print("asked for", prompt)
        for word in prompt.split():
            yield word

    @endpoint
    async def pid(self) -> int:
        return os.getpid()

    @endpoint
    async def loop(self) -> str:
        return type(asyncio.get_running_loop()).__module__

    @endpoint
    async def frozen(self) -> int:
        return gc.get_freeze_count()

    @endpoint
    async def hang(self) -> AsyncIterator[str]:
        yield "hanging"
        await asyncio.Event().wait()

@service(namespace="demo")
class Frontend:
    backend = depends(Backend)

    def __init__(self, mark: str = "!") -> None:
        self.mark = mark

    @endpoint
    async def run(self, prompt: str) -> AsyncIterator[str]:
        async for word in self.backend.generate(prompt):
            yield word + self.mark
"""
BAD = """
import subprocess
from dynamo.runtime import endpoint, on_start, service

@service(namespace="demo")
class Fails:
    @on_start
    async def load(self) -> None:
        subprocess.Popen(["sleep", "20"], stdin=subprocess.DEVNULL)
        raise RuntimeError("no model here")

    @endpoint
    async def generate(self) -> int:
        return 1
"""
LATE_MISTAKE = """workers=2)
class Backend:
    def __init__(self) -> None:
        from dynamo.runtime import ConfigError
        raise ConfigError("no model at /nowhere")
"""
ALL_UP = "up: Backend 2/2, Frontend 1/1"


class Folder:
    """Where a user stands who has written ``hello.py``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = environment(f"file://{path}/discovery", PWD=str(path), DYN_DRAIN_GRACE_S="0.1")
        (path / "hello.py").write_text(HELLO)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=self.env, cwd=self.path, text=True, capture_output=True, timeout=BOUND_S, check=False,
        )  # fmt: skip

    def pid_of(self, instance: int) -> int:
        done = self.run("call", "demo.Backend.pid", "{}", "--instance", str(instance))
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def backends(self) -> list[int]:
        listed = json.loads(self.run("ls", "demo.Backend.pid", "--json").stdout)
        return [one["instance_id"] for one in listed]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path)


def until(serving: subprocess.Popen[str], words: str) -> list[str]:
    """The lines up to the one with these words."""
    assert serving.stdout is not None
    lines: list[str] = []
    for line in serving.stdout:
        lines.append(line.rstrip("\n"))
        if words in line:
            return lines
    pytest.fail(f"no {words!r} in {lines}")


def test_json_lines_for_a_collector_of_logs(folder: Folder) -> None:
    (folder.path / "talk.py").write_text(
        "import logging\nfrom dynamo.runtime import endpoint, on_start, service\n"
        "@service(namespace='demo')\nclass Talk:\n    @on_start\n    async def start(self):\n"
        "        print('a line', flush=True)\n"
        "        try:\n            1 / 0\n        except ZeroDivisionError:\n"
        "            logging.getLogger('talk').exception('it said %r', 'no')\n"
        "    @endpoint\n    async def say(self) -> str:\n        return 'yes'\n"
    )
    with started(["serve", "talk:Talk"], {**folder.env, "DYN_LOGGING_JSONL": "1"}) as serving:
        lines = until(serving, "up: Talk 1/1")
        if not any("it said" in line for line in lines):  # it comes by another pipe
            lines += until(serving, "it said")
        told = [json.loads(line) for line in lines]
    for one in told:
        datetime.datetime.fromisoformat(one.pop("time"))
    assert {"level": "INFO", "target": "output", "message": "a line", "worker": "Talk/0"} in told
    (failure,) = (one for one in told if one["target"] == "talk")
    assert (failure["level"], failure["message"], failure["worker"]) == ("ERROR", "it said 'no'", "Talk/0")
    assert "ZeroDivisionError" in failure["exception"]
    up = {"level": "INFO", "target": "output", "message": "up: Talk 1/1", "worker": "dynamo"}
    assert up in told


def test_a_killed_worker_comes_back_and_ctrl_c_drains_all(folder: Folder) -> None:
    with started(["serve", "hello:Frontend", "--Frontend.mark=?"], folder.env) as serving:
        until(serving, ALL_UP)
        done = folder.run("call", "demo.Frontend.run", '{"prompt": "hi there"}')
        assert (done.returncode, done.stdout) == (0, "hi?\nthere?\n"), done.stderr
        asked = until(serving, "asked for")[-1]
        assert asked.split(" | ")[0].strip() in ("Backend/0", "Backend/1")
        loop = folder.run("call", "demo.Backend.loop", "{}").stdout
        assert loop.startswith("asyncio" if find_spec("uvloop") is None else "uvloop")
        assert int(folder.run("call", "demo.Backend.frozen", "{}").stdout) > 0  # left to no collection
        first, second = map(folder.pid_of, folder.backends())
        os.kill(first, signal.SIGKILL)
        until(serving, "ended with SIGKILL; again in 0.5 s")
        until(serving, ALL_UP)
        pids = {folder.pid_of(instance) for instance in folder.backends()}
        assert second in pids
        assert first not in pids
        serving.send_signal(signal.SIGINT)
        lines = until(serving, "draining: Backend 0/2, Frontend 0/1")
        assert serving.wait(timeout=BOUND_S) == 0
        assert [line for line in lines if "Backend 2/2, Frontend 0/1" in line]  # callers go first
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert folder.backends() == []


def test_a_worker_that_fails_is_started_again_though_its_child_holds_its_output(folder: Folder) -> None:
    (folder.path / "bad.py").write_text(BAD)
    with started(["serve", "bad:Fails"], folder.env) as serving:
        lines = until(serving, "Fails/0 ended with exit code 1; again in 0.5 s")
        told = [line for line in lines if line.startswith("Fails/0 | ")]
        assert "Fails failed" in told[0]
        assert "in load" in told[2]  # its own code, and not the way there
        assert told[-1] == "Fails/0 | RuntimeError: no model here"
        until(serving, "Fails/0 ended with exit code 1; again in 1 s")
        serving.send_signal(signal.SIGINT)
        assert serving.wait(timeout=BOUND_S) == 0


def test_a_second_ctrl_c_stops_at_once(folder: Folder) -> None:
    with started(["serve", "hello:Frontend", "--Backend.workers=1"], folder.env) as serving:
        until(serving, "up: Backend 1/1, Frontend 1/1")
        (instance,) = folder.backends()
        pid = folder.pid_of(instance)
        with started(["call", "demo.Backend.hang", "{}"], folder.env) as calling:
            assert calling.stdout is not None
            assert calling.stdout.readline() == "hanging\n"
            began = time.monotonic()
            serving.send_signal(signal.SIGINT)
            until(serving, "draining: Backend 1/1, Frontend 0/1")
            time.sleep(ECHO_S)  # sooner it would be taken for an echo of the first
            serving.send_signal(signal.SIGINT)  # a third one, while Python ends, would kill it
            until(serving, "stopping at once")
            assert serving.wait(timeout=BOUND_S) == 130
            assert time.monotonic() - began < 20  # the drain would take 30 s
            assert not psutil.pid_exists(pid)


def test_workers_whose_supervisor_was_killed_end_by_themselves(folder: Folder) -> None:
    arguments = ["serve", "hello:Frontend", "--service-name", "Backend", "--Backend.workers=1"]
    with started(arguments, folder.env) as serving:
        until(serving, "up: Backend 1/1")
        (instance,) = folder.backends()
        worker = psutil.Process(folder.pid_of(instance))
        serving.kill()
        psutil.wait_procs([worker], timeout=BOUND_S)
        assert not worker.is_running()


def test_saved_code_replaces_the_workers_and_what_does_not_import_keeps_them(folder: Folder) -> None:
    pytest.importorskip("watchfiles", reason="the extra file is not installed")
    hello = folder.path / "hello.py"
    arguments = ["serve", "hello:Backend", "--reload", "--Backend.workers=1", "--http-port=0"]

    def answer() -> str:
        done = folder.run("call", "demo.Backend.generate", '{"prompt": "one two"}')
        assert done.returncode == 0, done.stderr
        return done.stdout

    with started(arguments, folder.env) as serving:
        until(serving, "up: Backend 1/1")
        hello.write_text(HELLO.replace("yield word\n", "yield word.upper() +\n"))
        lines = until(serving, "what runs is kept until it is mended")
        assert "changed: hello.py" in lines[-3]
        assert "importing hello: SyntaxError" in lines[-2]
        assert str(hello) in lines[-2]
        assert answer() == "one\ntwo\n"
        (folder.path / ".venv").mkdir()
        (folder.path / ".venv" / "other.py").touch()  # told of by the next line, if it were
        hello.write_text(HELLO.replace("yield word\n", "yield word.upper()\n"))
        assert "changed: hello.py" in until(serving, "changed:")[-1]
        assert until(serving, "up: Backend 1/1")[0].endswith("restarting: Backend 1/1")
        assert answer() == "ONE\nTWO\n"
        hello.write_text(HELLO.replace("workers=2)\nclass Backend:", LATE_MISTAKE))
        lines = until(serving, "Backend/0 waits for the next change of the code")
        assert any("ConfigError: no model at /nowhere" in line for line in lines)
        hello.write_text(HELLO)
        until(serving, "up: Backend 1/1")
        assert answer() == "one\ntwo\n"
        serving.send_signal(signal.SIGINT)
        assert serving.wait(timeout=BOUND_S) == 0


def test_the_status_line_stays_on_a_terminal(folder: Folder) -> None:
    ours, theirs = pty.openpty()
    arguments = ["serve", "hello:Backend", "--Backend.workers=1"]
    with started(arguments, folder.env, stdin=theirs, stdout=theirs, stderr=theirs) as serving:
        os.close(theirs)
        text = b""
        while b"up: Backend 1/1" not in text:
            text += os.read(ours, 65536)
        serving.send_signal(signal.SIGINT)
        assert serving.wait(timeout=BOUND_S) == 0
    os.close(ours)


def test_a_dry_run_shows_the_plan_and_runs_nothing(folder: Folder) -> None:
    done = folder.run("serve", "hello:Frontend", "--dry-run", "--Frontend.mark=?", "--Backend.workers=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "Backend: 1 worker with workers='1'",
        "  demo.Backend.generate",
        "  demo.Backend.pid",
        "  demo.Backend.loop",
        "  demo.Backend.frozen",
        "  demo.Backend.hang",
        "Frontend: 1 worker with mark='?'",
        "  demo.Frontend.run",
    ]


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["hello"], ["hello", "module:Service"]),
        (["helo:Frontend"], ["no module 'helo' in ", "did you mean 'hello'?"]),
        (["nowhere:Frontend"], ["no module 'nowhere' in ", "run it where nowhere.py is"]),
        (["hello.py:Frontend"], ["without .py: hello:Frontend"]),
        (["hello:Frontnd"], ["Frontnd", "did you mean 'Frontend'"]),
        (["hello:asyncio"], ["asyncio is no service"]),
        (["broken:Service"], ["broken.py:1", "ZeroDivisionError"]),
        (["needy:Service"], ["no_such_package", "not installed"]),
        (["hello:Frontend", "--dryrun"], ["--dryrun", "--Service.key=value"]),
        (["hello:Frontend", "--Frontend.mrk=1"], ["mrk", "did you mean 'mark'"]),
        (["hello:Frontend", "-f", "none.yaml"], ["none.yaml"]),
        (["hello:Frontend", "-f", "pipe"], ["-f pipe: is a pipe, not a file"]),
        (["hello:Frontend", "--service-name", "Back"], ["unknown service 'Back'", "Backend"]),
        (["hello:Frontend", "--discovery", "mem"], ["--discovery=mem", "file"]),
        (["hello:Frontend", "--request-plane", "mem", "--dry-run"], ["--request-plane=mem", "tcp"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(
    folder: Folder, arguments: list[str], words: list[str]
) -> None:
    (folder.path / "broken.py").write_text("1 / 0\n")
    (folder.path / "needy.py").write_text("import no_such_package\n")
    os.mkfifo(folder.path / "pipe")
    refused(folder.run("serve", *arguments), 2, *words)
