"""Keeps the workers of ``dynamo serve`` running, shows what they say, and ends them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import attrs

from dynamo.cli.deployment import Deployment
from dynamo.cli.printing import Printer
from dynamo.core.config import Settings
from dynamo.core.lifetime import ended
from dynamo.core.signals import ECHO_S
from dynamo.sdk import PlannedService

PAUSE_S, PAUSE_LIMIT_S = 0.5, 30.0
SETTLED_S = 10.0  # a worker that served for so long begins again with the shortest pause
OUTPUT_S = 1.0  # for its last lines: a process that it started may hold its output open for ever
POLL_S = 0.2
CLOSING_S = 20.0  # for what a drained worker does after its calls: hooks, adapters
USAGE = 2
PORTS = {"system_port": "DYN_SYSTEM_PORT", "tcp_port": "DYN_TCP_RPC_PORT"}


async def supervise(deployment: Deployment, planned: Sequence[PlannedService], settings: Settings) -> int:
    """Run the workers until a signal, or until one finds a mistake in its configuration; the exit code."""
    with Printer() as printer:
        return await Supervisor(deployment, planned, settings, printer).run()


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


class Supervisor:
    """Its workers live in sessions of their own, so that a terminal's Ctrl-C comes here alone."""

    def __init__(
        self,
        deployment: Deployment,
        planned: Sequence[PlannedService],
        settings: Settings,
        printer: Printer,
    ) -> None:
        self._text, self._printer = deployment.to_text(), printer
        self._bound_s = settings.graceful_shutdown_timeout_s + settings.drain_grace_s + CLOSING_S
        self._stopping, self._killed = asyncio.Event(), asyncio.Event()
        self._first_at = 0.0
        self._code = 0
        self._workers: dict[str, list[Worker]] = {}
        index = 0
        for one in planned:
            mine = self._workers[one.name] = []
            for number in range(one.workers):
                mine.append(Worker(one.name, number, _environment(settings, index)))
                index += 1

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        workers = [worker for mine in self._workers.values() for worker in mine]
        self._show()
        try:
            for worker in workers:
                worker.task = asyncio.create_task(self._keep(worker))
            await self._stopping.wait()
            self._show()
            for mine in reversed(self._workers.values()):  # callers before those they call
                await self._drain(mine)
        finally:
            for worker in workers:
                worker.send(signal.SIGKILL)
            await asyncio.gather(*(one.task for one in workers if one.task), return_exceptions=True)
        return self._code

    def _on_signal(self) -> None:
        now = time.monotonic()
        if not self._stopping.is_set():
            self._first_at = now
            self._printer.say("draining; Ctrl-C again stops at once")
            self._stopping.set()
        elif now - self._first_at > ECHO_S and not self._killed.is_set():
            self._code = 130
            self._printer.say("stopping at once")
            self._killed.set()

    async def _drain(self, workers: list[Worker]) -> None:
        if self._killed.is_set() or not workers:
            return
        for worker in workers:
            worker.send(signal.SIGTERM)
        tasks = [worker.task for worker in workers if worker.task is not None]
        all_ended = asyncio.gather(*tasks, return_exceptions=True)
        killed = asyncio.ensure_future(self._killed.wait())
        done, _ = await asyncio.wait(
            (all_ended, killed), timeout=self._bound_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            self._printer.say(f"{workers[0].service} has not drained within {self._bound_s:g} s: killed")
            for worker in workers:
                worker.send(signal.SIGKILL)
            await ended(all_ended, CLOSING_S)
        killed.cancel()

    async def _keep(self, worker: Worker) -> None:
        """Run it again and again, until the end."""
        pause_s = PAUSE_S
        while not self._stopping.is_set():
            try:
                code = await self._run(worker)
            except OSError as error:  # no process, descriptor or memory left
                self._printer.say(f"{worker.name} cannot be started: {error}")
                code = 1
            served_s = 0.0 if worker.since is None else time.monotonic() - worker.since
            was_up, worker.since = worker.since is not None, None
            self._show()
            if self._stopping.is_set():
                return
            if code == USAGE and not was_up:  # it said why, and would say it again
                self._code = USAGE
                self._stopping.set()
                return
            if served_s > SETTLED_S:
                pause_s = PAUSE_S
            self._printer.say(f"{worker.name} ended with {_told(code)}; again in {pause_s:g} s")
            try:
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
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
            if self._stopping.is_set():  # the signal came while it was started
                worker.send(signal.SIGTERM)
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
        self._printer.status(up, draining=self._stopping.is_set())


def _environment(settings: Settings, index: int) -> dict[str, str]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for field, variable in PORTS.items():
        if port := getattr(settings, field):
            env[variable] = str(port + index)
    return env


def _told(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
