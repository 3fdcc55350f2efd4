"""The workers of one plan: each a process that is started again when it ends, until all are to end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import attrs

from dynamo.cli.deployment import Deployment
from dynamo.cli.printing import Printer
from dynamo.core.config import Settings
from dynamo.core.lifetime import ended

PAUSE_S, PAUSE_LIMIT_S = 0.5, 30.0
SETTLED_S = 10.0  # a worker that served for so long begins again with the shortest pause
OUTPUT_S = 1.0  # for its last lines: a process that it started may hold its output open for ever
POLL_S = 0.2
CLOSING_S = 20.0  # for what a drained worker does after its calls: hooks, adapters
USAGE = 2
PORTS = {"system_port": "DYN_SYSTEM_PORT", "tcp_port": "DYN_TCP_RPC_PORT"}


@attrs.define(eq=False)
class Worker:
    """``process`` is the present one; ``since`` is when it began to serve, or None."""

    service: str
    number: int
    env: dict[str, str]
    process: asyncio.subprocess.Process | None = None
    since: float | None = None
    task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return f"{self.service}/{self.number}"

    def send(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


class Crew:
    """Its workers live in sessions of their own, so that a terminal's Ctrl-C does not reach them.

    ``mistaken`` is told of a worker that found a mistake in its configuration: it is not started again.
    """

    def __init__(
        self,
        deployment: Deployment,
        counts: Mapping[str, int],
        settings: Settings,
        printer: Printer,
        *,
        mistaken: Callable[[Worker], None],
    ) -> None:
        self._text, self._printer, self._mistaken = deployment.to_text(), printer, mistaken
        self._bound_s = settings.graceful_shutdown_timeout_s + settings.drain_grace_s + CLOSING_S
        self._ending = asyncio.Event()
        self._word = "up"
        self._asked: set[asyncio.subprocess.Process] = set()  # to end; a second signal would cut them off
        self._workers: dict[str, list[Worker]] = {}
        index = 0
        for service, count in counts.items():
            mine = self._workers[service] = []
            for number in range(count):
                mine.append(Worker(service, number, _environment(settings, index)))
                index += 1

    @property
    def workers(self) -> list[Worker]:
        return [worker for mine in self._workers.values() for worker in mine]

    def start(self) -> None:
        self._show()
        for worker in self.workers:
            worker.task = asyncio.create_task(self._keep(worker))

    async def drain(self, hurry: asyncio.Event) -> None:
        """End all, callers before those they call, unless ``hurry`` is set; then the rest is for ``kill``."""
        self._end("draining")
        for mine in reversed(self._workers.values()):
            if not hurry.is_set():
                await self._drained(mine, hurry, self._bound_s)

    async def leave(self, hurry: asyncio.Event, bound_s: float) -> None:
        """End all at the same time and within ``bound_s``, to be replaced."""
        self._end("restarting")
        await self._drained(self.workers, hurry, bound_s)

    async def kill(self) -> None:
        """End what is left."""
        self._end(self._word)
        for worker in self.workers:
            worker.send(signal.SIGKILL)
        await asyncio.gather(*_tasks(self.workers), return_exceptions=True)

    def _end(self, word: str) -> None:
        self._ending.set()
        self._word = word
        self._show()

    def _ask_to_end(self, worker: Worker) -> None:
        if worker.process is not None and worker.process not in self._asked:
            self._asked.add(worker.process)
            worker.send(signal.SIGTERM)

    async def _drained(self, workers: list[Worker], hurry: asyncio.Event, bound_s: float) -> None:
        if not workers:
            return
        for worker in workers:
            self._ask_to_end(worker)
        all_ended = asyncio.gather(*_tasks(workers), return_exceptions=True)
        hurried = asyncio.ensure_future(hurry.wait())
        try:
            done, _ = await asyncio.wait(
                (asyncio.shield(all_ended), hurried), timeout=bound_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                late = ", ".join(worker.name for worker in workers if worker.task and not worker.task.done())
                self._printer.say(f"{late} not drained within {bound_s:g} s: killed")
                for worker in workers:
                    worker.send(signal.SIGKILL)
                await ended(all_ended, CLOSING_S)
        finally:
            hurried.cancel()

    async def _keep(self, worker: Worker) -> None:
        """Run it again and again, until the end."""
        pause_s = PAUSE_S
        while not self._ending.is_set():
            try:
                code = await self._run(worker)
            except OSError as error:  # no process, descriptor or memory left
                self._printer.say(f"{worker.name} cannot be started: {error}")
                code = 1
            served_s = 0.0 if worker.since is None else time.monotonic() - worker.since
            was_up, worker.since = worker.since is not None, None
            self._show()
            if self._ending.is_set():
                return
            if code == USAGE and not was_up:  # it said why, and would say it again
                self._mistaken(worker)
                return
            if served_s > SETTLED_S:
                pause_s = PAUSE_S
            self._printer.say(f"{worker.name} ended with {_told(code)}; again in {pause_s:g} s")
            try:
                async with asyncio.timeout(pause_s):
                    await self._ending.wait()
            except TimeoutError:
                pause_s = min(2 * pause_s, PAUSE_LIMIT_S)

    async def _run(self, worker: Worker) -> int:
        """One life of a worker; its exit code."""
        reading, writing = os.pipe()
        loop = asyncio.get_running_loop()
        try:
            worker.process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "dynamo.cli.worker", self._text, worker.service, str(writing),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT, pass_fds=(writing,), start_new_session=True, env=worker.env,
            )  # fmt: skip
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        loop.add_reader(reading, self._on_ready, worker, reading)
        try:
            if self._ending.is_set():  # the signal came while it was started
                self._ask_to_end(worker)
            assert process.stdout is not None
            following = asyncio.create_task(self._printer.follow(worker.name, process.stdout))
            waiting = asyncio.create_task(process.wait())
            try:
                # wait() alone also waits until nobody has the pipes open: see OUTPUT_S.
                while process.returncode is None:
                    await asyncio.wait((waiting,), timeout=POLL_S)
                await asyncio.wait((following,), timeout=OUTPUT_S)
            finally:
                following.cancel()
                waiting.cancel()
            return process.returncode
        finally:
            loop.remove_reader(reading)
            os.close(reading)

    def _on_ready(self, worker: Worker, reading: int) -> None:
        asyncio.get_running_loop().remove_reader(reading)
        if os.read(reading, 1):
            worker.since = time.monotonic()
            self._show()

    def _show(self) -> None:
        up = {
            name: (sum(one.since is not None for one in mine), len(mine))
            for name, mine in self._workers.items()
        }
        self._printer.status(up, self._word)


def _tasks(workers: Iterable[Worker]) -> list[asyncio.Task[None]]:
    return [worker.task for worker in workers if worker.task is not None]


def _environment(settings: Settings, index: int) -> dict[str, str]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "DYN_WORKER_INDEX": str(index)}
    for field, variable in PORTS.items():
        if port := getattr(settings, field):
            env[variable] = str(port + index)
    return env


def _told(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
