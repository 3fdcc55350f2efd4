"""The command as people run it: in a process of its own, against real workers, on a terminal and piped."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

COMMAND = (sys.executable, "-W", "error", "-m", "dynamo.cli")
WORKER = Path(__file__).with_name("cli_worker.py")
GENERATE = "demo.backend.generate"
BOUND_S = 30
HANGING = json.dumps({"count": 1, "hang": True, "tag": "ctrl-c"})


def environment(discovery: str, **more: str) -> dict[str, str]:
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DYN_", "ETCD_", "NATS_")) and name not in ("NO_COLOR", "FORCE_COLOR")
    }
    return {**plain, "DYN_DISCOVERY_BACKEND": discovery, "TERM": "xterm", "COLUMNS": "120", **more}


class Deployment:
    """One worker and where to find it."""

    def __init__(self, root: Path) -> None:
        self.discovery = f"file://{root}"
        self.env = environment(self.discovery)
        self.worker, self.instance_id = self.start("worker-1")

    def start(self, name: str, **env: str) -> tuple[subprocess.Popen[str], int]:
        worker = subprocess.Popen(
            [sys.executable, str(WORKER), name],
            env={**self.env, **env}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert worker.stdout is not None
        word, instance_id = worker.stdout.readline().split()
        assert word == "serving"
        return worker, int(instance_id)

    def end(self, worker: subprocess.Popen[str]) -> None:
        worker.kill()
        worker.communicate(timeout=BOUND_S)

    def run(self, *arguments: str, input: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env={**self.env, **env}, text=True, input=input,
            capture_output=True, timeout=BOUND_S, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployed = Deployment(tmp_path_factory.mktemp("discovery"))
    try:
        yield deployed
    finally:
        deployed.end(deployed.worker)


@contextmanager
def started(arguments: Sequence[str], env: dict[str, str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command that runs on; ended by force if the test leaves it running, or after the bound."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env=env, text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )  # fmt: skip
    bound = threading.Timer(BOUND_S, process.kill)
    bound.start()
    try:
        yield process
    finally:
        bound.cancel()
        process.kill()
        process.communicate()


def on_a_terminal(arguments: Sequence[str], env: dict[str, str]) -> tuple[int, str]:
    """Run to the end on a pseudo-terminal; the exit code and all that was written."""
    ours, theirs = pty.openpty()
    with started(arguments, env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        try:
            while part := os.read(ours, 65536):
                text += part
        except OSError:  # EIO: the last one closed its side
            pass
        finally:
            os.close(ours)
        return process.wait(), text.decode()


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on stderr, with these words in it, and nothing else."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


# ls


def test_ls_piped_is_one_line_an_instance(deployment: Deployment) -> None:
    done = deployment.run("ls")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    endpoint, instance_id, phase, name, addresses, age_s, requests = line.split("\t")
    assert (endpoint, int(instance_id), phase, name) == (
        GENERATE, deployment.instance_id, "ready", "worker-1",
    )  # fmt: skip
    assert "tcp://127.0.0.1:" in addresses
    assert (int(age_s) < BOUND_S * 4, requests) == (True, "-")


def test_ls_shows_the_requests_that_a_status_server_tells(deployment: Deployment) -> None:
    pytest.importorskip("aiohttp", reason="the extra telemetry is not installed")
    pytest.importorskip("prometheus_client", reason="the extra telemetry is not installed")
    worker, instance_id = deployment.start("counted", DYN_SYSTEM_PORT="0")
    try:
        for _ in range(2):
            deployment.run("call", GENERATE, '{"count": 1}', "--instance", "counted")
        listed = {one["instance_id"]: one for one in json.loads(deployment.run("ls", "--json").stdout)}
        assert (listed[instance_id]["requests"], listed[instance_id]["inflight_requests"]) == (2, 0)
        assert listed[deployment.instance_id]["requests"] is None
        assert "  2 req  " in on_a_terminal(["ls"], {**deployment.env, "NO_COLOR": "1"})[1]
    finally:
        deployment.end(worker)


def test_ls_json_is_an_array(deployment: Deployment) -> None:
    (instance,) = json.loads(deployment.run("ls", "demo.backend", "--json").stdout)
    assert (instance["endpoint"], instance["name"]) == ("generate", "worker-1")
    assert json.loads(deployment.run("ls", "demo.back", "--json").stdout) == []


def test_ls_of_nothing_says_where_it_looked(deployment: Deployment) -> None:
    done = deployment.run("ls", "nowhere")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing is served under nowhere.*.*" in done.stderr


def test_ls_on_a_terminal_is_a_tree_in_colour_unless_no_color_is_set(deployment: Deployment) -> None:
    code, text = on_a_terminal(["ls"], deployment.env)
    assert code == 0
    assert "\x1b[" in text
    assert "└── " in text
    _, text = on_a_terminal(["ls"], {**deployment.env, "NO_COLOR": "1"})
    assert "worker-1" in text
    assert "\x1b[3" not in text


def test_ls_watch_tells_each_change_until_interrupted(deployment: Deployment) -> None:
    with started(["ls", "--watch", "--json"], deployment.env) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        assert (first["change"], first["name"]) == ("added", "worker-1")
        worker, instance_id = deployment.start("worker-2")
        assert json.loads(watching.stdout.readline())["instance_id"] == instance_id
        deployment.end(worker)
        last = json.loads(watching.stdout.readline())
        assert (last["change"], last["name"]) == ("removed", "worker-2")
        watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=BOUND_S)
        assert (watching.returncode, errors.strip()) == (130, "dynamo: interrupted")


def test_ls_watch_draws_on_a_terminal(deployment: Deployment) -> None:
    ours, theirs = pty.openpty()
    with started(["ls", "-w"], deployment.env, stdin=theirs, stdout=theirs, stderr=theirs) as watching:
        os.close(theirs)
        text = b""
        while b"1 endpoint, 1 instance" not in text:
            text += os.read(ours, 65536)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=BOUND_S) == 130
    os.close(ours)
    assert b"worker-1" in text


# call


def test_call_prints_text_as_it_is_and_json_on_request(deployment: Deployment) -> None:
    done = deployment.run("call", GENERATE, '{"count": 2}')
    assert (done.returncode, done.stdout, done.stderr) == (0, "word-0\nword-1\n", "")
    assert deployment.run("call", GENERATE, '{"count": 1}', "--json").stdout == '"word-0"\n'
    assert deployment.run("call", GENERATE, '{"count": 1, "maps": true}').stdout == '{"number": 0}\n'


def test_call_reads_a_file_and_the_standard_input(deployment: Deployment, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text('{"count": 1}')
    assert deployment.run("call", GENERATE, "--file", str(file)).stdout == "word-0\n"
    assert deployment.run("call", GENERATE, "-", input='{"count": 1}').stdout == "word-0\n"


@pytest.mark.parametrize("spelling", ["worker-1", "{0}", "{0:#x}"])
def test_call_asks_the_instance_that_is_named(deployment: Deployment, spelling: str) -> None:
    instance = spelling.format(deployment.instance_id)
    done = deployment.run("call", GENERATE, '{"count": 1}', "--instance", instance)
    assert (done.returncode, done.stdout) == (0, "word-0\n")
    refused(deployment.run("call", GENERATE, "{}", "--instance", "nobody", "--timeout", "0.5"), 1, "nobody")


def test_call_streams_and_ctrl_c_cancels_the_handler(deployment: Deployment) -> None:
    with started(["call", GENERATE, HANGING], deployment.env) as calling:
        assert calling.stdout is not None
        assert calling.stdout.readline() == "word-0\n"  # before the answer has ended
        calling.send_signal(signal.SIGINT)
        _, errors = calling.communicate(timeout=BOUND_S)
        assert (calling.returncode, errors.strip()) == (130, "dynamo: interrupted")
    assert deployment.worker.stdout is not None
    assert deployment.worker.stdout.readline() == "cancelled ctrl-c\n"


def test_call_whose_reader_left_ends_without_a_word(deployment: Deployment) -> None:
    with started(["call", GENERATE, '{"count": 100000}'], deployment.env) as calling:
        assert calling.stdout is not None
        assert calling.stdout.readline() == "word-0\n"
        calling.stdout.close()
        assert calling.stderr is not None
        assert calling.stderr.read() == ""
        assert calling.wait(timeout=BOUND_S) == 1


def test_call_ends_at_its_deadline(deployment: Deployment) -> None:
    done = deployment.run(
        "call", GENERATE, '{"count": 0, "hang": true, "tag": "deadline"}', "--timeout", "0.5"
    )
    refused(done, 1, "DeadlineError", GENERATE)
    assert deployment.worker.stdout is not None
    assert deployment.worker.stdout.readline() == "cancelled deadline\n"


def test_what_the_handler_raised_is_one_line(deployment: Deployment) -> None:
    done = deployment.run("call", GENERATE, '{"count": 0, "fail": true}')
    refused(done, 1, "the handler raised KeyError", "no such")


# doctor


def test_doctor_names_what_each_setting_came_from_and_hides_secrets(deployment: Deployment) -> None:
    secrets = {"DYN_AUTH_TOKEN": "hush-hush", "DYN_NAMESPACE": "mine"}
    done = deployment.run("doctor", "--request-plane", "tcp", **secrets)
    assert done.stderr == ""
    assert "hush" not in done.stdout
    for words in (
        f"discovery_backend = {deployment.discovery} (DYN_DISCOVERY_BACKEND)",
        "request_plane = tcp (--request-plane)",
        "namespace = mine (DYN_NAMESPACE)",
        "auth_token = (hidden) (DYN_AUTH_TOKEN)",
        "lists 1 endpoint, 1 instance",
        "request plane: tcp opens",
    ):
        assert words in done.stdout


def test_doctor_dials_an_instance_of_each_endpoint(deployment: Deployment, tmp_path: Path) -> None:
    done = deployment.run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "an instance of 1 of 1 endpoints takes calls from here" in done.stdout
    done = deployment.run("doctor", DYN_AUTH_TOKEN="hush-hush")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    for words in (f"{GENERATE}: instance {deployment.instance_id} cannot be called", "DYN_AUTH_TOKEN"):
        assert words in line


def test_doctor_says_what_to_do_about_each_thing_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = environment(f"file://{tmp_path}/file", DYN_TCP_TLS_KEY_PATH="/no/key", DYN_KEEPALIVE="3")
    done = subprocess.run(
        [*COMMAND, "doctor", "--json"],
        env=env, text=True, capture_output=True, timeout=BOUND_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    findings = json.loads(done.stdout)
    troubles = {(one["topic"], one["level"]): one for one in findings if one["level"] != "ok"}
    assert "/no/key" in troubles["settings", "wrong"]["text"]
    assert troubles["settings", "note"]["remedy"] == "did you mean DYN_KEEPALIVE_S?"
    assert "mem (one process), file" in troubles["discovery", "wrong"]["remedy"]


def test_doctor_reports_a_bad_value_and_an_unknown_adapter(deployment: Deployment) -> None:
    done = deployment.run("doctor", DYN_KEEPALIVE_S="soon")
    assert (done.returncode, done.stderr) == (1, "")
    assert "wrong  settings: DYN_KEEPALIVE_S='soon'" in done.stdout
    done = deployment.run("doctor", "--discovery", "etcdd://user:pw@host")
    assert done.returncode == 1
    assert "wrong  adapters: discovery etcdd" in done.stdout
    assert "pw" not in done.stdout


def test_doctor_on_a_terminal_ends_with_a_verdict(deployment: Deployment) -> None:
    code, text = on_a_terminal(["doctor"], {**deployment.env, "NO_COLOR": "1"})
    assert code == 0
    assert text.rstrip().endswith("nothing is wrong")


# bench


def test_bench_prints_rates_and_a_table_of_latencies(deployment: Deployment) -> None:
    done = deployment.run("bench", GENERATE, '{"count": 2}', "-c", "4", "-n", "50")
    assert (done.returncode, done.stderr) == (0, "")
    head, rates, names, *rows = done.stdout.splitlines()
    assert head.startswith(f"{GENERATE}: 50 requests, 4 at a time, ")
    assert rates.endswith(" items/s, 0 failed")
    assert names.split() == ["p50", "p90", "p99", "max"]
    assert [row.split("\t")[0] for row in rows] == ["latency", "first item"]


def test_bench_counts_errors_by_class(deployment: Deployment) -> None:
    done = deployment.run("bench", GENERATE, '{"count": 1, "fail": true}', "-c", "2", "-n", "6", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert (report["finished"], report["failed"], report["times"]) == (6, 6, {})
    assert {name: count for name, (count, _) in report["errors"].items()} == {"RemoteError(KeyError)": 6}


def test_bench_draws_its_progress_on_a_terminal(deployment: Deployment) -> None:
    code, text = on_a_terminal(["bench", GENERATE, "{}", "-n", "200", "-c", "2"], deployment.env)
    assert code == 0
    assert "200 requests, 2 at a time" in text
    assert "/200" in text  # the bar's


def test_bench_of_nobody_fails_once(deployment: Deployment) -> None:
    refused(
        deployment.run("bench", "demo.backend.nobody", "{}", "--timeout", "0.5"), 1, "demo.backend.nobody"
    )


def test_bench_interrupted_reports_what_it_has(deployment: Deployment) -> None:
    arguments = ["bench", GENERATE, '{"count": 1}', "-c", "1", "-n", "1000000"]
    ours, theirs = pty.openpty()
    with started(arguments, deployment.env, stderr=theirs) as bench:
        os.close(theirs)
        text = b""
        while b"0 failed" not in text or b" 0/s" in text.rpartition(b"\r")[2]:
            text += os.read(ours, 65536)
        bench.send_signal(signal.SIGINT)
        assert bench.stdout is not None
        shown = bench.stdout.read()
        assert bench.wait(timeout=BOUND_S) == 130
    os.close(ours)
    assert "latency\t" in shown


# Mistakes


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["sl"], ["No such command 'sl'"]),
        (["ls", "--jsn"], ["--jsn", "dynamo ls --help"]),
        (["ls", "a.b.c.d"], ["a.b.c.d", "namespace.component.endpoint"]),
        (["ls", "--discovery", "fiel"], ["fiel", "did you mean 'file'"]),
        (["ls", "--discovery", "mem"], ["--discovery=mem", "one process only"]),
        (["call", GENERATE], ["--file", "standard input"]),
        (["call", GENERATE, "{", "-f", "x"], ["once"]),
        (["call", GENERATE, "hi"], ["not JSON", "'\"hi\"'"]),
        (["call", GENERATE, "--file", "/no/such/file"], ["/no/such/file", "No such file"]),
        (["call", "backend", "{}"], ["backend", "namespace.component.endpoint"]),
        (["call", GENERATE, "{}", "--timeout", "0"], ["--timeout"]),
        (["call", GENERATE, "{}", "--request-plane", "tpc"], ["tpc", "did you mean"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    deployment: Deployment, arguments: list[str], words: list[str]
) -> None:
    refused(deployment.run(*arguments), 2, *words)


def test_a_bad_variable_is_named(deployment: Deployment) -> None:
    refused(deployment.run("ls", DYN_KEEPALIVE_S="soon"), 2, "DYN_KEEPALIVE_S", "soon")


def test_a_command_is_no_second_status_server(deployment: Deployment) -> None:
    """The variables of a worker's shell must not make a call fight the worker for its port."""
    done = deployment.run("call", GENERATE, '{"count": 1}', DYN_SYSTEM_PORT="1")
    assert (done.returncode, done.stdout) == (0, "word-0\n")


# The command itself


def test_help_documents_examples_and_exit_codes(deployment: Deployment) -> None:
    done = deployment.run("--help")
    assert done.returncode == 0
    for word in ("Examples:", "Exit codes:", "130", "NO_COLOR", "_DYNAMO_COMPLETE"):
        assert word in done.stdout


@pytest.mark.parametrize(
    "typed,offered",
    [
        ("dynamo ", ["serve", "ls", "call", "doctor", "bench", "manifests"]),
        ("dynamo do", ["doctor"]),
        ("dynamo call --ti", ["--timeout"]),
        ("dynamo call demo.", [GENERATE]),
        ("dynamo call other.", []),
        ("dynamo ls --discovery file:///nowhere ", []),
        ("dynamo bench --discovery fiel ", []),
    ],
)
def test_a_shell_completes_commands_options_and_endpoints(
    deployment: Deployment, typed: str, offered: list[str]
) -> None:
    *_, last = words = typed.split(" ")
    done = deployment.run(
        _DYNAMO_COMPLETE="bash_complete",
        COMP_WORDS=typed,
        COMP_CWORD=str(len(words) - 1 if last else len(typed.split())),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"plain,{one}" for one in offered]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(deployment: Deployment, shell: str) -> None:
    done = deployment.run(_DYNAMO_COMPLETE=f"{shell}_source")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_DYNAMO_COMPLETE={shell}_complete" in done.stdout


def test_the_version_is_the_distributions(deployment: Deployment) -> None:
    from importlib.metadata import version

    assert deployment.run("--version").stdout == f"dynamo {version('dynamo-runtime-py')}\n"


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, sys; find = u.find_spec;"
        "u.find_spec = lambda name, *rest: None if name in ('click', 'rich') else find(name, *rest);"
        "from dynamo.cli.entry import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    refused(done, 2, "pip install 'dynamo-runtime-py[cli]'")


def test_starting_loads_neither_the_runtime_nor_rich() -> None:
    code = (
        "import sys; from dynamo.cli.app import run; code = run(['--help']);"
        "print(sorted({name for name in sys.modules if name.startswith(('dynamo.core', 'rich'))}), code,"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert done.stderr.strip() == "[] 0"
