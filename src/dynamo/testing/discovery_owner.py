"""An owner of registrations in a process of its own, to be killed, stopped and resumed.

``python -m dynamo.testing.discovery_owner URL RECORD...`` registers what the records (the codec's JSON) say
under one lease, prints ``registered``, and holds it until its input ends; a lost lease is taken again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from dynamo.core import registry
from dynamo.core.codec import decode_instance, encode_instance
from dynamo.core.config import Settings
from dynamo.core.errors import DynamoError
from dynamo.core.model import Instance


class OwnerProcess:
    """Such a process, seen from the test that started it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, url: str, *instances: Instance, env: Mapping[str, str] | None = None
    ) -> OwnerProcess:
        """Start one and wait until the instances, all of one id, are registered. ``env`` adds to ours."""
        records = [encode_instance(instance).decode() for instance in instances]
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "dynamo.testing.discovery_owner", url, *records],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )
        owner = cls(process)
        assert process.stdout is not None
        said = await asyncio.to_thread(process.stdout.readline)
        if said != b"registered\n":
            await owner.kill()
            raise RuntimeError(f"the owner of {url} ended with {process.returncode} instead of registering")
        return owner

    @property
    def pid(self) -> int:
        return self._process.pid

    def pause(self) -> None:
        """SIGSTOP: the process stands still, and holds what it holds."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    async def leave(self) -> int:
        """Let it end its lease; return its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return await self._wait()

    async def kill(self) -> None:
        """SIGKILL, also if it is paused; a second time is fine."""
        self._process.kill()
        await self._wait()

    async def _wait(self) -> int:
        status = await asyncio.to_thread(self._process.wait, 10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return status


async def _hold(url: str, instances: list[Instance]) -> None:
    one = instances[0]
    async with registry.discovery.open(url, Settings.from_env()) as discovery:
        while True:
            try:
                async with discovery.lease(instance_id=one.instance_id, incarnation=one.incarnation) as lease:
                    for instance in instances:
                        await lease.put(instance)
                    print("registered", flush=True)  # noqa: T201 - it is what the test waits for
                    print("lost", await lease.lost(), file=sys.stderr, flush=True)  # noqa: T201
            except DynamoError as error:
                print(error, file=sys.stderr, flush=True)  # noqa: T201
                await asyncio.sleep(0.1)


async def _main(url: str, records: list[str]) -> None:
    holding = asyncio.create_task(_hold(url, [decode_instance(record) for record in records]))
    until_input_ends = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({holding, until_input_ends}, return_when=asyncio.FIRST_COMPLETED)
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2:]))
