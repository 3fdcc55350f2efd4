"""The demo: a frontend and three workers in processes of their own, found through a folder, called over TCP.

Ends with 0 only if every answer came back whole, whatever happened to the workers meanwhile, and no
process had anything to complain about.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections import Counter
from pathlib import Path

from attrs import Factory, define
from terminal import named, note, say, shares, title, word

from dynamo.runtime import Client, DistributedRuntime

HERE = Path(__file__).parent
BOUND_S = 20.0  # for whatever is waited for
AT_ONCE = 12  # answers under way while a worker is killed
QUESTIONS = (
    "Whoever is free takes the next request.",
    "Words travel one by one, each as soon as it is made.",
    "No server stands between us, only a folder and a few sockets.",
)
STORY = (
    "A worker may die in the middle of a sentence, and whoever asked need not notice, "
    "because another one goes on with the words that are missing."
)
FAREWELL = "A worker that is told to leave finishes the sentence that it began, and only then goes."


@define
class Answer:
    """What came back for one prompt."""

    workers: list[str] = Factory(list)  # in the order in which they took part
    text: str = ""
    longest_pause_s: float = 0.0
    begun: asyncio.Event = Factory(asyncio.Event)  # several words are here, more are coming


@define
class Demo:
    """The processes, and what the terminal sees of them."""

    frontend: Client
    backend: Client  # only to see who is there
    complaints: Path  # what the processes write to stderr
    processes: dict[str, Process] = Factory(dict)

    async def start(self, name: str, script: str, *arguments: str) -> None:
        with self.complaints.open("ab") as stderr:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, HERE / script, *arguments, stderr=stderr
            )

    async def workers_are(self, *expected: str) -> float:
        """Wait until exactly these workers can be seen; how long it took, in seconds."""
        started = time.monotonic()
        while {instance.name for instance in self.backend.instances()} != set(expected):
            if time.monotonic() - started > BOUND_S:
                raise RuntimeError(
                    f"after {BOUND_S:g} s the workers are {self.backend.instances()}, not {expected}"
                )
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    async def all_answer(self, *expected: str) -> None:
        """Ask until each of these workers has answered: the frontend sees them too."""
        async with asyncio.timeout(BOUND_S):
            silent = set(expected)
            while silent:
                silent -= set((await self.ask("Hello", Answer())).workers)

    async def ask(self, prompt: str, answer: Answer, *, show: bool = False) -> Answer:
        """Stream one answer; it must be the whole prompt."""
        last = time.monotonic()
        async with self.frontend.stream({"prompt": prompt}, timeout_s=BOUND_S) as items:
            async for item in items:
                now = time.monotonic()
                answer.longest_pause_s, last = max(answer.longest_pause_s, now - last), now
                before = answer.workers[-1] if answer.workers else None
                if item["worker"] != before:
                    answer.workers.append(item["worker"])
                answer.text += item["text"]
                if answer.text.count(" ") == 5:
                    answer.begun.set()
                if show:
                    word(item["worker"], item["text"], before)
        if show:
            say()
        if answer.text != prompt:
            raise RuntimeError(f"asked for {prompt!r}, got {answer.text!r}")
        return answer

    async def exit_code(self, name: str) -> int:
        async with asyncio.timeout(BOUND_S):
            return await self.processes[name].wait()

    async def end_all(self) -> None:
        """Leave no process, however the demo ended."""
        left = [process for process in self.processes.values() if process.returncode is None]
        for process in left:
            process.terminate()
        for process in left:
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def come_up(demo: Demo) -> None:
    title("Three workers and a frontend start")
    started = time.monotonic()
    await demo.start("frontend", "frontend.py")
    for name in ("worker-1", "worker-2", "worker-3"):
        await demo.start(name, "worker.py", name)
    await demo.workers_are("worker-1", "worker-2", "worker-3")
    await demo.all_answer("worker-1", "worker-2", "worker-3")
    for name, instance in sorted({str(one.name): one for one in demo.backend.instances()}.items()):
        say(f"  {named(name, f'{name} │')} process {demo.processes[name].pid}, {instance.addresses[-1]}")
    note(f"all found each other within {time.monotonic() - started:.1f} s")


async def take_turns(demo: Demo) -> None:
    title("Requests go round, answers stream")
    seen = [await demo.ask(question, Answer(), show=True) for question in QUESTIONS]
    if len({answer.workers[0] for answer in seen}) != len(QUESTIONS):
        raise RuntimeError("one worker answered twice while another one was free")


async def lose_one(demo: Demo) -> str:
    title(f"kill -9 for the one who answers, while {AT_ONCE} answers are under way")
    answers = [Answer() for _ in range(AT_ONCE)]
    shown = answers[0]
    async with asyncio.TaskGroup() as group:
        for answer in answers:
            group.create_task(demo.ask(STORY, answer, show=answer is shown))
        async with asyncio.timeout(BOUND_S):
            for answer in answers:
                await answer.begun.wait()
        victim = shown.workers[0]
        demo.processes[victim].kill()
    moved = sum(len(answer.workers) > 1 for answer in answers)
    if not moved or len(shown.workers) < 2:
        raise RuntimeError(f"{victim} was killed and nobody went on with its answers")
    pause_s = max(answer.longest_pause_s for answer in answers)
    note(
        f"{AT_ONCE} of {AT_ONCE} answers are whole; {moved} went on elsewhere, longest pause {pause_s:.2f} s"
    )
    if (code := await demo.exit_code(victim)) != -signal.SIGKILL:
        raise RuntimeError(f"{victim} should have been killed, and ended with {code}")
    survivors = sorted({"worker-1", "worker-2", "worker-3"} - {victim})
    await demo.workers_are(*survivors)
    note(f"{victim} is off the list; left are {' and '.join(survivors)}")
    return victim


async def gain_one(demo: Demo, victim: str) -> list[str]:
    title("Another worker comes and gets its share")
    workers = [*sorted({"worker-1", "worker-2", "worker-3"} - {victim}), "worker-4"]
    started = time.monotonic()
    await demo.start("worker-4", "worker.py", "worker-4")
    await demo.workers_are(*workers)
    await demo.all_answer("worker-4")
    note(f"worker-4 answered {time.monotonic() - started:.1f} s after its start")
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(demo.ask(QUESTIONS[0], Answer())) for _ in range(3 * AT_ONCE)]
    counts = Counter(task.result().workers[0] for task in asked)
    shares(counts)
    if set(counts) != set(workers):
        raise RuntimeError(f"{workers} should all have answered")
    return workers


async def drain(demo: Demo, workers: list[str]) -> None:
    title("SIGTERM: drain")
    answer = Answer()
    async with asyncio.TaskGroup() as group:
        group.create_task(demo.ask(FAREWELL, answer, show=True))
        async with asyncio.timeout(BOUND_S):
            await answer.begun.wait()
        for worker in workers:
            demo.processes[worker].terminate()
    if len(answer.workers) != 1:
        raise RuntimeError(f"{answer.workers[0]} did not finish what it had begun")
    await demo.workers_are()
    demo.processes["frontend"].terminate()
    codes = {name: await demo.exit_code(name) for name in [*workers, "frontend"]}
    if any(codes.values()):
        raise RuntimeError(f"every process should have ended with 0: {codes}")
    note(f"{', '.join(workers)} and the frontend ended with 0, and nobody is listed any more")


async def play(complaints: Path) -> None:
    async with DistributedRuntime.from_env() as runtime:
        demo = Demo(
            await runtime.endpoint("demo.frontend.chat").client(),
            await runtime.endpoint("demo.backend.generate").client(),
            complaints,
        )
        try:
            await come_up(demo)
            await take_turns(demo)
            workers = await gain_one(demo, await lose_one(demo))
            await drain(demo, workers)
        finally:
            await demo.end_all()


def main() -> None:
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing then either
    with tempfile.TemporaryDirectory(prefix="dynamo-demo-") as folder:
        os.environ.update(
            DYN_DISCOVERY_BACKEND="file",
            DYN_FILE_KV=f"{folder}/store",
            DYN_REQUEST_PLANE="tcp",
            TMPDIR=folder,
        )
        complaints = Path(folder, "stderr")
        complaints.touch()
        try:
            asyncio.run(play(complaints))
        except KeyboardInterrupt:
            raise SystemExit("interrupted") from None
        except BaseException:
            sys.stderr.write(complaints.read_text())
            raise
        if said := complaints.read_text():
            raise RuntimeError(f"every answer is whole, but the processes complained:\n{said}")
        if left := [path for path in Path(folder, "store").rglob("*") if path.is_file()]:
            raise RuntimeError(f"files were left behind: {left}")
    say(f"\nDone in {time.monotonic() - started:.0f} s. No process and no file is left.")


if __name__ == "__main__":
    main()
