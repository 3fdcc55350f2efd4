"""The demo: runs hello_world as `dynamo serve` does, asks it over HTTP, kills a worker, drains all.

Ends with 0 only if every answer came back whole and nothing is left: no process, no file, no socket.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Timer

HERE = Path(__file__).parent
DYNAMO = (sys.executable, "-m", "dynamo.cli")
SERVE = ("serve", "hello_world:Frontend", "-f", "config.yaml", "--discovery", "file")
WORKERS = 5  # as config.yaml says: two Backends, two Middles, one Frontend
ALL_UP = "up: Backend 2/2, Middle 2/2, Frontend 1/1"
WHOLE = ["Hello", "Ada,", "nice", "to", "meet", "you!"]
ASKED = 20  # answers, while a worker is missing
BOUND_S = 60.0  # for the whole demo


class Demo:
    def __init__(self, folder: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DYN_")}
        store = {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": f"{folder}/store", "TMPDIR": folder}
        mine = {"DYN_SYSTEM_PORT": "0", "DYN_DRAIN_GRACE_S": "0.2"}  # request counts in ls; a short farewell
        self.folder, self.env = Path(folder), {**inherited, **store, **mine}
        self.pids: set[int] = set()
        self.port = 0
        self.serving = subprocess.Popen(
            [*DYNAMO, *SERVE, "--http-port", "0"],
            cwd=HERE, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.bound = Timer(BOUND_S, self.serving.kill)
        self.bound.start()

    def until(self, *patterns: str) -> dict[str, str]:
        """Read what it says until it has said all of these, in any order; its lines by their pattern."""
        found: dict[str, str] = {}
        assert self.serving.stdout is not None
        said = ""
        while len(found) < len(patterns):
            if not (line := self.serving.stdout.readline()):
                raise SystemExit(f"dynamo serve ended with {self.serving.wait()}:\n{said}")
            said += line
            found |= {pattern: line.rstrip() for pattern in patterns if re.search(pattern, line)}
        return found

    def ask(self, name: str = "Ada") -> Iterator[tuple[float, str, dict[str, str]]]:
        """One answer: for each word the seconds that it took, the line as it came, and what it says."""
        began = time.monotonic()
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/greet", json.dumps({"name": name}), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise SystemExit(f"{response.status}: {response.read().decode()}")
            while line := response.readline().decode().rstrip():
                yield time.monotonic() - began, line, json.loads(line)

    def whole(self, _: int = 0) -> list[int]:
        """The workers of one answer, which is whole."""
        words = [word for _, _, word in self.ask()]
        if [word["text"] for word in words] != WHOLE:
            raise SystemExit(f"expected {WHOLE}, got {words}")
        return [int(pid) for pid in re.findall(r"\d+", words[0]["by"])]

    def whole_answers(self, count: int) -> list[list[int]]:
        """The workers of so many answers, ten at a time."""
        with ThreadPoolExecutor(10) as pool:
            return list(pool.map(self.whole, range(count)))

    def meet_all(self, count: int) -> None:
        """Ask until so many workers have answered that were not known before."""
        known = len(self.pids) + count
        while len(self.pids) < known:
            self.pids.update(pid for pids in self.whole_answers(4) for pid in pids)


def title(text: str) -> None:
    print(f"\n{text}", flush=True)


def come_up(demo: Demo) -> None:
    print("$ dynamo", *SERVE, flush=True)
    routes = r"HTTP routes at http://127\.0\.0\.1:(\d+)"
    found = demo.until(ALL_UP, routes)
    print(found[ALL_UP], found[routes], sep="\n", flush=True)
    demo.port = int(found[routes].rpartition(":")[2])
    demo.meet_all(WORKERS)


def stream(demo: Demo) -> None:
    title('POST /greet {"name": "Ada"}')
    arrived: list[float] = []
    for seconds, line, _ in demo.ask():
        arrived.append(seconds)
        print(f"{line}  after {seconds:.2f} s", flush=True)
    if arrived[-1] - arrived[0] < 0.1 * (len(arrived) - 2):
        raise SystemExit("that was no stream: its words came all at once")


def look(demo: Demo) -> None:
    title("$ dynamo ls")
    plain = {} if sys.stdout.isatty() else {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"}
    subprocess.run([*DYNAMO, "ls"], env={**demo.env, **plain}, check=True, timeout=20)


def lose_one(demo: Demo) -> None:
    victim = demo.whole()[-1]
    title(f"$ kill -9 {victim}  # a Backend")
    os.kill(victim, signal.SIGKILL)
    answers = demo.whole_answers(ASKED)
    ended = r"Backend/\d ended with SIGKILL"
    print(demo.until(ended)[ended])
    print(f"{len(answers)} of {ASKED} answers asked for from then on are whole", flush=True)
    print(demo.until(ALL_UP)[ALL_UP], flush=True)
    demo.meet_all(1)
    print("and the new one answers", flush=True)


def drain(demo: Demo) -> None:
    title("Ctrl-C, in the middle of an answer")
    listed = subprocess.run(
        [*DYNAMO, "ls", "--json"], env=demo.env, check=True, capture_output=True, timeout=20
    )
    addresses = {address for one in json.loads(listed.stdout) for address in one["addresses"]}
    answer = demo.ask()
    words = [next(answer)]
    demo.serving.send_signal(signal.SIGINT)
    words += answer
    if [word["text"] for _, _, word in words] != WHOLE:
        raise SystemExit(f"an answer was cut by the drain: {words}")
    ended = "draining: Backend 0/2, Middle 0/2, Frontend 0/1"
    print(demo.until(ended)[ended])
    if (code := demo.serving.wait()) != 0:
        raise SystemExit(f"dynamo serve ended with {code}")
    print("the answer is whole, and dynamo serve ended with 0", flush=True)
    check_nothing_is_left(demo, addresses)


def check_nothing_is_left(demo: Demo, addresses: set[str]) -> None:
    for pid in demo.pids:
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            raise SystemExit(f"process {pid} is left")
    if files := [path for path in demo.folder.rglob("*") if not path.is_dir()]:
        raise SystemExit(f"files are left: {files}")
    ports = [demo.port, *(int(address.rpartition(":")[2]) for address in addresses if address[:3] == "tcp")]
    for port in ports:
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            raise SystemExit(f"somebody still listens on port {port}")
    print(f"nothing is left: none of {len(demo.pids)} processes, no file, no socket")


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing then either
    with tempfile.TemporaryDirectory(prefix="dynamo-demo-") as folder:
        demo = Demo(folder)
        try:
            for step in (come_up, stream, look, lose_one, drain):
                step(demo)
        except KeyboardInterrupt:
            raise SystemExit("interrupted") from None
        finally:
            demo.serving.terminate()
            demo.serving.communicate()
            demo.bound.cancel()


if __name__ == "__main__":
    main()
