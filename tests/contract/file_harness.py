"""Power over a directory tree, for the contract on ``file``."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import quote

from dynamo.adapters.discovery.file import FileDiscovery, open_file
from dynamo.core.config import Settings
from dynamo.core.model import EndpointId, Instance
from dynamo.testing.discovery import DiscoveryHarness
from dynamo.testing.discovery_owner import OwnerProcess


class FileHarness(DiscoveryHarness):
    """The root lies behind a symbolic link, which an outage turns into a loop in one step.

    Each client comes by a link of its own, so that none shares its tree, and its thread, with another, just
    as in a process of its own.
    """

    def __init__(self, folder: Path, options: str) -> None:
        self._folder, self._link = folder / "a disk", folder / "mounted here"
        self._options, self._clients = options, 0
        self._folder.mkdir()
        self._link.symlink_to(self._folder)
        self.root = self._link / "root"
        self.owners: list[OwnerProcess] = []

    def url(self, link: Path) -> str:
        return f"file://{quote(str(link / 'root'))}?{self._options}"

    def client(self) -> AbstractAsyncContextManager[FileDiscovery]:
        self._clients += 1
        link = self._link.with_name(f"client {self._clients}")
        link.symlink_to(self._link)
        return open_file(self.url(link), Settings())

    async def leftovers(self) -> list[str]:
        return [str(Path(folder, file)) for folder, _, files in os.walk(self.root) for file in files]

    async def outage(self, on: bool) -> None:
        fresh = self._link.with_name("fresh link")
        fresh.symlink_to(self._link if on else self._folder)
        fresh.rename(self._link)

    async def expire(self) -> None:
        for lease in (self.root / "leases").iterdir():
            other = {"incarnation": "bad", "beat": 1}
            lease.with_suffix(".new").write_text(json.dumps(other))
            lease.with_suffix(".new").rename(lease)

    async def delete(self, instance: Instance) -> None:
        self.record(instance).unlink()

    def record(self, instance: Instance) -> Path:
        services = self.root / "services"
        folder = services / instance.namespace / instance.component / instance.endpoint
        return folder / f"{instance.instance_id:x}.json"

    async def corrupt(self, endpoint_id: EndpointId) -> None:
        folder = self.root / "services" / endpoint_id.namespace / endpoint_id.component / endpoint_id.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bad.json").write_bytes(b'{"namespace": ')
        (folder / "bad2.json").symlink_to("/etc/hostname")
        (folder / "notes.txt").write_text("not ours")
        os.mkfifo(folder / "bad3.json")

    async def owner(self, instance: Instance) -> Callable[[], Awaitable[None]]:
        owner = await OwnerProcess.start(self.url(self._link), instance)
        self.owners.append(owner)
        return owner.kill

    async def close(self) -> None:
        for owner in self.owners:
            await owner.kill()
