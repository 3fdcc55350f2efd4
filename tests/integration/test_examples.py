"""Each example does what its text says, run as its reader runs it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from integration.examples import BOUND_S, EXAMPLES, on_stage

SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_index_names_every_example() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text())
    there = {path.name for path in EXAMPLES.iterdir() if path.name[0] not in "_." and path.suffix != ".md"}
    assert there == {link.partition("/")[0] for link in links if not link.startswith(("..", "http"))}


@pytest.mark.parametrize(
    "page", [EXAMPLES.parent / "README.md", EXAMPLES / "README.md"], ids=["root", "examples"]
)
def test_a_readme_links_to_what_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    assert links
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_quickstart_is_the_readmes_first_example(tmp_path: Path) -> None:
    first = SNIPPET.search((EXAMPLES.parent / "README.md").read_text())
    assert first is not None
    assert (EXAMPLES / "quickstart.py").read_text() == first[1]
    with on_stage(".", tmp_path) as stage:
        assert stage.run("quickstart.py") == "TOKENS TRAVEL ONE BY ONE "


# failover


def test_an_answer_goes_on_elsewhere_when_its_worker_dies(tmp_path: Path) -> None:
    with on_stage("failover", tmp_path) as stage:
        first, second = re.findall(r"^(worker-\d): (.*)$", stage.run("failover.py"), re.MULTILINE)
        assert {first[0], second[0]} == {"worker-1", "worker-2"}
        assert first[1] + second[1] == (
            "A worker may die in the middle of a sentence, and whoever asked need not notice, "
            "because another one goes on with the words that are missing."
        )


# embedding


@pytest.mark.parametrize("script", ["aiohttp_app.py", "fastapi_app.py"])
def test_an_http_client_that_leaves_cancels_the_worker(tmp_path: Path, script: str) -> None:
    with on_stage("embedding", tmp_path, DYN_INSTANCE_WAIT_S="1") as stage:
        worker = stage.start("worker.py")
        app = stage.start(script, "0", merged=True)
        port = int(app.line(r"[Rr]unning on http://127\.0\.0\.1:(\d+)")[1])
        stage.wait_for("demo.backend.generate")
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:

            def ask(prompt: str) -> http.client.HTTPResponse:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/generate", json.dumps({"prompt": prompt}), headers)
                return connection.getresponse()

            whole = ask("one two three")
            assert (whole.status, whole.read()) == (200, b"one\ntwo\nthree\n")
            left = ask("never " * 10_000)
            assert left.readline() == b"never\n"
            connection.close()
            assert int(worker.line(r"^cancelled after (\d+) words$")[1]) < 100
            stage.end(worker)
            refused = ask("anybody there?")
            assert (refused.status, b"demo.backend.generate" in refused.read()) == (503, True)


# static_mode


def test_static_mode_needs_no_discovery_service(tmp_path: Path) -> None:
    text = (EXAMPLES / "static_mode" / "deployment.yaml").read_text()
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (first, second)]
    declared = text.replace(":7001", f":{ports[0]}").replace(":7002", f":{ports[1]}")
    assert text.count(":700") == len(ports)
    (tmp_path / "deployment.yaml").write_text(declared)
    env = {"DYN_DISCOVERY_BACKEND": "static", "DYN_STATIC_FILE": str(tmp_path / "deployment.yaml")}
    with on_stage("static_mode", tmp_path, **env) as stage:
        workers = {str(one.process.pid): one for one in (stage.start("worker.py"), stage.start("worker.py"))}
        for port in ports:
            until_listening(port)
        answers = stage.run("caller.py").splitlines()
        assert [re.sub(r" \(\d+\)", "", answer) for answer in answers] == [
            f"answer number {number}" for number in range(1, 5)
        ]
        assert Counter(re.findall(r"\((\d+)\)$", "\n".join(answers), re.MULTILINE)) == dict.fromkeys(
            workers, 2
        )
        killed, left = workers
        workers[killed].process.kill()
        workers[killed].process.wait()
        assert re.findall(r"\((\d+)\)$", stage.run("caller.py"), re.MULTILINE) == [left] * 4
        stage.end(workers[left])


def until_listening(port: int) -> None:
    deadline = time.monotonic() + BOUND_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


# duplex_chat


def test_both_sides_of_a_conversation_may_speak_at_once(tmp_path: Path) -> None:
    with on_stage("duplex_chat", tmp_path) as stage:
        worker, caller = stage.start("worker.py", "30"), stage.start("caller.py")  # it pauses for 30 s
        caller.stdin.write("I am tired\n")
        caller.stdin.flush()
        caller.word("^How$")
        caller.stdin.write("My cat snores\n")
        caller.stdin.flush()
        caller.word("^--$")
        caller.word("^Tell$")
        caller.stdin.close()  # who hangs up hears the sentence to its end, at once
        assert caller.process.stdout is not None
        assert caller.process.stdout.read() == "me more about your cat. \n"
        assert (caller.process.wait(), caller.errors()) == (0, "")
        stage.end(worker)
