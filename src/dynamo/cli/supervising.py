"""``dynamo serve`` while it runs: its workers, the signals that end them, the code that they come from."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import aclosing

from dynamo.cli.crew import Crew, Worker
from dynamo.cli.planning import Plan, Root, planned_anew
from dynamo.cli.printing import Printer
from dynamo.cli.watching import batches
from dynamo.core.config import Settings
from dynamo.core.signals import ECHO_S

USAGE, INTERRUPTED = 2, 130
LEAVE_S = 5.0  # for the calls of workers that make way for new code


async def supervise(plan: Plan, settings: Settings, *, root: Root | None = None) -> int:
    """Run the workers until a signal, or until one finds a mistake in its configuration; the exit code.

    With ``root`` they are replaced when the code there has changed, and mistakes wait for the next change.
    """
    with Printer(json_lines=settings.log_jsonl) as printer:
        return await Supervisor(plan, settings, printer, root).run()


class Supervisor:
    def __init__(self, plan: Plan, settings: Settings, printer: Printer, root: Root | None) -> None:
        self._plan, self._settings, self._printer, self._root = plan, settings, printer, root
        self._stopping, self._killed = asyncio.Event(), asyncio.Event()
        self._first_at = 0.0
        self._code = 0
        self._crew = self._crew_of(plan)

    def _crew_of(self, plan: Plan) -> Crew:
        return Crew(plan.deployment, plan.workers, self._settings, self._printer, mistaken=self._on_mistake)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        following = None if self._root is None else asyncio.create_task(self._follow(self._root))
        self._crew.start()
        try:
            await self._stopping.wait()
            if following is not None:
                following.cancel()
                await asyncio.wait((following,))
            await self._crew.drain(self._killed)
        finally:
            await self._crew.kill()
        return self._code

    def _on_signal(self) -> None:
        now = time.monotonic()
        if not self._stopping.is_set():
            self._first_at = now
            self._printer.say("draining; Ctrl-C again stops at once")
            self._stopping.set()
        elif now - self._first_at > ECHO_S and not self._killed.is_set():
            self._code = INTERRUPTED
            self._printer.say("stopping at once")
            self._killed.set()

    def _on_mistake(self, worker: Worker) -> None:
        if self._root is not None:
            self._printer.say(f"{worker.name} waits for the next change of the code")
        elif not self._stopping.is_set():
            self._code = USAGE
            self._stopping.set()

    async def _follow(self, root: Root) -> None:
        """Replace the workers at each change that can be run; what cannot leaves them as they are."""
        try:
            async with aclosing(batches(root)) as changes:
                async for changed in changes:
                    self._printer.say(f"changed: {changed}")
                    if (plan := await planned_anew(self._plan.deployment, self._printer)) is not None:
                        await self._replace(plan)
                    else:
                        self._printer.say("what runs is kept until it is mended")
        except Exception as error:  # no inotify watch left, say; its class is watchfiles' own affair
            self._printer.say(f"changes of the code are no longer seen: {error}")

    async def _replace(self, plan: Plan) -> None:
        await self._crew.leave(self._killed, LEAVE_S)
        await self._crew.kill()
        self._crew = self._crew_of(plan)
        self._crew.start()
