"""File discovery among real processes: killed, stopped, forked, short of disk, on a disk that hosts share."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from dynamo.adapters.discovery.file import FileDiscovery, open_file, tree
from dynamo.adapters.discovery.file.layout import Layout
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, ConflictError, LeaseLostError, UnavailableError
from dynamo.core.health import Status
from dynamo.core.model import Instance
from dynamo.core.ports.discovery import Put, Removed, Snapshot, Stale
from dynamo.testing.discovery import (
    ENDPOINT,
    INCARNATION,
    OTHER,
    SCOPE,
    an_instance,
    by_key,
    descriptors,
    following,
    lease_for,
    live_now,
    settles,
)
from dynamo.testing.discovery_owner import OwnerProcess

pytestmark = pytest.mark.anyio

TTL_S = 1.0
ONE, TWO = an_instance(1), an_instance(2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
async def owners() -> AsyncIterator[AsyncExitStack]:
    """What is pushed here is killed in the end."""
    async with AsyncExitStack() as stack:
        yield stack


async def an_owner(owners: AsyncExitStack, url: str, *instances: Instance, **env: str) -> OwnerProcess:
    owner = await OwnerProcess.start(url, *instances, env=env)
    owners.push_async_callback(owner.kill)
    return owner


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[FileDiscovery]:
    async with open_file(url, Settings.from_env({}, **settings)) as discovery:
        yield discovery


def local(root: Path, ttl_s: float = 10) -> str:
    return f"file://{root}?ttl_s={ttl_s}"


def shared(root: Path, ttl_s: float = TTL_S) -> str:
    return f"file://{root}?shared=1&ttl_s={ttl_s}"


def files(root: Path) -> list[Path]:
    """Every file below; folders may vanish while it looks."""
    return sorted(Path(folder, name) for folder, _, names in os.walk(root) for name in names)


# One host


async def test_a_killed_owner_is_gone_at_once_whatever_the_ttl(root: Path, owners: AsyncExitStack) -> None:
    async with opened(local(root, ttl_s=3600)) as client, following(client) as follower:
        owner = await an_owner(owners, local(root, ttl_s=3600), ONE, an_instance(1, OTHER))
        async with asyncio.timeout(5):
            await follower.until(lambda live: len(live) == 2)
        await owner.kill()
        async with asyncio.timeout(5):
            await follower.until(lambda live: not live)
            while files(root):
                await asyncio.sleep(0.02)


async def test_a_stopped_owner_is_alive(root: Path, owners: AsyncExitStack) -> None:
    url = local(root, ttl_s=0.3)
    async with opened(url) as client:
        owner = await an_owner(owners, url, ONE)
        async with following(client) as follower:
            owner.pause()
            with anyio.move_on_after(1.5):
                pytest.fail(f"unexpected: {await follower.next()}")
            owner.resume()
            with anyio.move_on_after(0.7):
                pytest.fail(f"unexpected: {await follower.next()}")
            assert follower.live == by_key(ONE)


async def test_a_restarted_owner_replaces_the_dead_one_without_waiting(
    root: Path, owners: AsyncExitStack
) -> None:
    successor = an_instance(1, incarnation=INCARNATION + 1)
    async with opened(local(root)) as client, following(client) as follower:
        owner = await an_owner(owners, local(root), ONE, an_instance(1, OTHER))
        await follower.until(lambda live: len(live) == 2)
        await owner.kill()
        began = time.monotonic()
        await an_owner(owners, local(root), successor)
        async with asyncio.timeout(5):
            await follower.until(lambda live: live == by_key(successor))
        assert time.monotonic() - began < 5
        first = next(i for i, change in enumerate(follower.changes) if change == Put(instance=successor))
        assert Removed(endpoint_id=ENDPOINT, instance_id=1) in follower.changes[:first]


async def test_a_conflict_names_the_process_that_holds_the_id(root: Path, owners: AsyncExitStack) -> None:
    owner = await an_owner(owners, local(root), ONE)
    rival = an_instance(1, incarnation=INCARNATION + 1)
    async with opened(local(root, ttl_s=0.3)) as client:
        with pytest.raises(ConflictError, match=rf"process {owner.pid} on .*alive after 0\.3 s"):
            async with lease_for(client, rival):
                pass


@pytest.mark.parametrize("part", ["", "leases", "services"])
async def test_a_deleted_root_is_stale_and_then_whole_again(
    part: str, root: Path, owners: AsyncExitStack
) -> None:
    async with opened(local(root)) as client, following(client) as follower:
        await an_owner(owners, local(root), ONE)
        await an_owner(owners, local(root), TWO)
        async with lease_for(client, an_instance(3)) as lease:
            await lease.put(an_instance(3))
            everybody = by_key(ONE, TWO, an_instance(3))
            async with asyncio.timeout(5):
                await follower.until(lambda live: live == everybody)
            follower.changes.clear()
            (root / part).rename(root.with_name("rubbish"))
            shutil.rmtree(root.with_name("rubbish"))
            async with asyncio.timeout(10):
                snapshot = await follower.snapshot()
                # Our own thread has put ours back by now; other processes may be late on a busy machine.
                assert an_instance(3) in snapshot.instances
                await follower.until(lambda live: live == everybody)
            kinds = [type(change) for change in follower.changes]
            assert kinds[:2] == [Stale, Snapshot]
            assert Removed not in kinds


async def test_a_deleted_lease_file_and_a_changed_record_are_put_right(root: Path) -> None:
    async with opened(local(root)) as client, lease_for(client, ONE) as lease:
        await lease.put(ONE)
        record, lease_file = sorted(files(root), reverse=True)
        lease_file.unlink()
        record.write_bytes(b"garbage")
        async with asyncio.timeout(5):
            while not (lease_file.exists() and record.read_bytes().startswith(b"{")):
                await asyncio.sleep(0.02)
        assert await live_now(client) == by_key(ONE)
        lease_file.write_bytes(b"garbage")  # by an editor that keeps the inode
        async with asyncio.timeout(5):
            while lease_file.read_bytes() == b"garbage":
                await asyncio.sleep(0.02)
        rival = an_instance(1, incarnation=INCARNATION + 1)
        async with opened(local(root, ttl_s=0.2)) as other:
            assert await live_now(other) == by_key(ONE)
            with pytest.raises(ConflictError):
                async with lease_for(other, rival):
                    pass


async def test_an_id_that_another_process_took_by_force_is_lost(root: Path) -> None:
    async with opened(local(root)) as client:
        async with lease_for(client, ONE) as lease:
            await lease.put(ONE)
            ours, theirs = root / "leases" / "1", root / "leases" / "theirs"
            with theirs.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                theirs.rename(ours)
                async with asyncio.timeout(5):
                    assert "another process took" in await lease.lost()
                with pytest.raises(LeaseLostError):
                    await lease.put(ONE)
                assert ours.exists()
        async with lease_for(client, ONE) as lease:
            await lease.put(ONE)
            assert await live_now(client) == by_key(ONE)


async def test_garbage_is_reported_once_and_foreign_things_not_at_all(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = root / "services" / "contract" / "worker" / "generate"
    folder.mkdir(parents=True)
    (folder / "1.json").write_bytes(b'{"namespace": "contr')
    (folder / "2.json").write_bytes(b"")
    (folder / "3.json").mkdir()
    (folder / "4.json").symlink_to("1.json")
    os.mkfifo(folder / "5.json")
    (folder / "notes.txt").write_text("mine")
    (root / "services" / "README").write_text("mine")
    (root / "services" / "linked").symlink_to(folder)
    async with opened(local(root)) as client, lease_for(client, TWO) as lease:
        await lease.put(an_instance(2, OTHER))
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert await live_now(client) == by_key(an_instance(2, OTHER))
        reported = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
        assert sum("1.json cannot be read" in text for text in reported) == 1
        assert all(".json cannot be read" in text for text in reported)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [b"[" * 4096, b"7", b'{"incarnation": 7}', b"\xff"])
@pytest.mark.parametrize("url", [local, shared])
async def test_a_lease_file_that_says_nothing_of_use_harms_nobody(
    root: Path, url: Callable[[Path], str], content: bytes
) -> None:
    (root / "leases").mkdir(parents=True)
    with (root / "leases" / "9").open("wb") as foreign:
        foreign.write(content)
        foreign.flush()
        fcntl.flock(foreign, fcntl.LOCK_EX)  # whoever wrote it is alive
        async with opened(url(root)) as client, lease_for(client, ONE) as lease:
            await lease.put(ONE)
            async with asyncio.timeout(5):
                assert await live_now(client) == by_key(ONE)


async def test_a_place_that_is_taken_by_something_else_is_named(root: Path) -> None:
    folder = root / "services" / "contract" / "worker"
    (folder / "generate" / "1.json").mkdir(parents=True)
    (root / "elsewhere").mkdir()
    (folder / OTHER.name).symlink_to(root / "elsewhere")  # watches would pass it over
    async with opened(local(root)) as client, lease_for(client, ONE) as lease:
        with pytest.raises(UnavailableError, match=r"cannot write .*/generate/1\.json: Is a directory"):
            await lease.put(ONE)
        with pytest.raises(UnavailableError, match=rf"cannot write .*/worker/{OTHER.name}: Not a directory"):
            await lease.put(an_instance(1, OTHER))
        assert list((root / "elsewhere").iterdir()) == []
        (folder / "generate" / "1.json").rmdir()
        (folder / OTHER.name).unlink()
        await lease.put(ONE)
        await lease.put(an_instance(1, OTHER))
        assert await live_now(client) == by_key(ONE, an_instance(1, OTHER))


async def test_removing_thousands_of_dead_owners_holds_up_nobody(root: Path) -> None:
    leases = root / "leases"
    leases.mkdir(parents=True)
    for number in range(2, 6000):
        (leases / f"{number:x}").touch()
    async with opened(local(root)) as client, lease_for(client, ONE) as lease, following(client):
        while len(os.listdir(leases)) > 5500:
            await lease.put(ONE)  # raises if it is not answered in 5 s
            await asyncio.sleep(0.01)


async def test_leftovers_of_a_lost_lease_go_when_the_next_one_does_not_renew_them(root: Path) -> None:
    both = by_key(ONE, an_instance(1, OTHER))
    async with opened(local(root)) as client:
        async with lease_for(client, ONE) as lease:
            for instance in both.values():
                await lease.put(instance)
            saved = {path: path.read_bytes() for path in (root / "services").rglob("*.json")}
        async with lease_for(client, ONE) as lease:
            for path, content in saved.items():  # as if the first lease could not clean up
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            await lease.put(ONE)
            async with following(client) as follower:
                assert follower.live == both
                async with asyncio.timeout(6):
                    await follower.until(lambda live: live == by_key(ONE))


async def test_a_hundred_clients_of_one_process_share_a_thread_and_an_inotify_instance(root: Path) -> None:
    before, threads = descriptors(), threading.active_count()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(opened(local(root))) for _ in range(100)]
        watches = [await stack.enter_async_context(following(client)) for client in clients]
        lease = await stack.enter_async_context(lease_for(clients[0], ONE))
        await lease.put(ONE)
        async with asyncio.timeout(5):
            for follower in watches:
                await follower.until(lambda live: live == by_key(ONE))
        assert sum("inotify" in name for name in descriptors() - before) <= 1
        assert threading.active_count() - threads <= 2
    await settles(lambda: len(descriptors()) > len(before) and descriptors() - before)
    await settles(lambda: threading.active_count() > threads)


@pytest.mark.parametrize("why", ["no watchfiles", "no file events"])
async def test_no_file_events_are_no_loss(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """Without the package, and when the user's inotify instances are spent."""

    def spent(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    if why == "no watchfiles":
        monkeypatch.setitem(sys.modules, "watchfiles._rust_notify", None)
    else:
        monkeypatch.setattr("watchfiles._rust_notify.RustNotify", spent)
    caplog.set_level(logging.DEBUG, "dynamo")
    async with (
        opened(local(root)) as mine,
        opened(f"{local(root)}&events=0") as theirs,
        following(mine) as follower,
    ):
        async with lease_for(theirs, ONE) as lease:
            await lease.put(ONE)
            async with asyncio.timeout(5):
                await follower.until(lambda live: live == by_key(ONE))
    assert why in caplog.text


async def test_a_temporary_file_of_a_process_that_died_writing_goes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "IDLE_S", 0.3)
    async with opened(local(root)) as client, lease_for(client, ONE) as lease, following(client):
        await lease.put(ONE)
        (root / "leases" / "abc-1.tmp").write_text("half of")
        async with asyncio.timeout(5):
            while (root / "leases" / "abc-1.tmp").exists():
                await asyncio.sleep(0.02)
        assert await live_now(client) == by_key(ONE)


# Forks


async def test_a_forked_child_neither_holds_nor_releases_nor_uses_what_its_parent_has(root: Path) -> None:
    """The parent forks a child that lives on, one that ends normally, and is then killed."""
    script = textwrap.dedent(
        """
        import asyncio, os, sys, time
        from dynamo.adapters.discovery.file import open_file
        from dynamo.core.config import Settings
        from dynamo.core.errors import ClosedError
        from dynamo.testing.discovery import an_instance, lease_for

        def say(text):  # in one write: three processes share the pipe
            os.write(1, text.encode() + b"\\n")

        async def register():
            async with open_file(sys.argv[1], Settings()) as discovery:
                async with lease_for(discovery, an_instance(1)) as lease:
                    await lease.put(an_instance(1))
                    if os.fork() == 0:
                        try:
                            await lease.put(an_instance(1))
                        except ClosedError as error:
                            say(f"refused: {error}")
                        say(f"child {os.getpid()}")
                        time.sleep(60)
                        os._exit(0)
                    if (child := os.fork()) == 0:
                        return  # leaves the blocks
                    os.waitpid(child, 0)
                    say("forked")
                    await asyncio.sleep(60)

        async def main():
            await register()
            os._exit(0)

        asyncio.run(main())
        """
    )
    url = local(root)
    async with opened(url) as client, following(client) as follower:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, url],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        said: dict[bytes, bytes] = {}
        async with asyncio.timeout(15):
            while not {b"refused:", b"child", b"forked"} <= said.keys():
                word, _, rest = (await asyncio.to_thread(process.stdout.readline)).strip().partition(b" ")
                assert word, said
                said[word] = rest
        child = int(said[b"child"])
        try:
            assert b"forked child" in said[b"refused:"]
            async with asyncio.timeout(5):
                await follower.until(lambda live: live == by_key(ONE))
            with anyio.move_on_after(1.0):  # the child that ended has taken nothing with it
                pytest.fail(f"unexpected: {await follower.next()}")
            process.kill()
            async with asyncio.timeout(5):
                await follower.until(lambda live: not live)
            os.kill(child, 0)  # the other one still lives
        finally:
            os.kill(child, 9)
            process.kill()
            await asyncio.to_thread(process.communicate)


async def test_after_a_fork_the_child_may_open_its_own(root: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, os, sys
        from dynamo.adapters.discovery.file import open_file
        from dynamo.core.config import Settings
        from dynamo.testing.discovery import an_instance, lease_for, live_now

        async def register(number, others):
            async with open_file(sys.argv[1], Settings()) as discovery:
                async with lease_for(discovery, an_instance(number)) as lease:
                    await lease.put(an_instance(number))
                    assert {key[1] for key in await live_now(discovery)} == {number, *others}
                    if not others:
                        if (child := os.fork()) == 0:
                            asyncio.run(register(2, [1]))
                            os._exit(0)
                        assert os.waitpid(child, 0)[1] == 0
                        assert {key[1] for key in await live_now(discovery)} == {number}

        asyncio.run(register(1, []))
        """
    )
    command = [sys.executable, "-W", "ignore", "-c", script, local(root)]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=30)
    assert result.returncode == 0, result.stderr.decode()
    assert files(root) == []


# Cleaning up


async def test_a_live_owners_files_survive_everybodys_cleaning(root: Path) -> None:
    """Processes take, leave and abandon the same few ids as fast as they can and clean up after others."""
    script = textwrap.dedent(
        """
        import asyncio, os, random, sys, time
        from pathlib import Path
        from dynamo.adapters.discovery.file import open_file, sweeping, tree
        from dynamo.core.config import Settings
        from dynamo.core.errors import ConflictError
        from dynamo.core.model import random_incarnation
        from dynamo.testing.discovery import an_instance, following, lease_for

        root, seed, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
        tree.PROBE_S = tree.IDLE_S = 0.005
        choose = random.Random(seed)
        ends = time.monotonic() + seconds

        async def once(discovery):
            one = an_instance(choose.randint(1, 3), incarnation=random_incarnation())
            try:
                async with lease_for(discovery, one) as lease:
                    await lease.put(one)
                    lease_file = root / "leases" / f"{one.instance_id:x}"
                    record = root / f"services/contract/worker/generate/{one.instance_id:x}.json"
                    inodes = lease_file.stat().st_ino, record.stat().st_ino
                    until = time.monotonic() + choose.random() * 0.05
                    while time.monotonic() < until:
                        if (lease_file.stat().st_ino, record.stat().st_ino) != inodes:
                            sys.exit("another process touched a live owner's file")
                        await asyncio.sleep(0.002)
                    print("held", flush=True)
                    if choose.random() < 0.15:
                        os.kill(os.getpid(), 9)
            except ConflictError:
                pass

        async def main():
            async with open_file(f"file://{root}?ttl_s=0.2&events=0", Settings()) as discovery:
                async with following(discovery):
                    while time.monotonic() < ends:
                        await once(discovery)
        asyncio.run(main())
        """
    )
    ends = time.monotonic() + 6
    held = 0

    def one_after_another(seed: int) -> int:
        held = 0
        while (left := ends - time.monotonic()) > 0.5:
            seed += 100
            result = subprocess.run(
                [sys.executable, "-c", script, str(root), str(seed), str(left)],
                capture_output=True,
                timeout=30,
            )
            assert result.returncode in (0, -9), result.stderr.decode()
            held += result.stdout.count(b"held")
        return held

    held = sum(await asyncio.gather(*(asyncio.to_thread(one_after_another, seed) for seed in range(4))))
    assert held > 5
    async with opened(local(root)) as client:
        assert await live_now(client) == {}
        async with asyncio.timeout(5):
            while files(root):
                await asyncio.sleep(0.05)


# A disk that hosts share: each process here is a host


async def test_hosts_that_share_a_disk_see_each_other_and_a_death_within_the_ttl(
    root: Path, owners: AsyncExitStack
) -> None:
    async with opened(shared(root)) as client, following(client) as follower:
        owner = await an_owner(owners, shared(root), ONE)
        await an_owner(owners, shared(root), TWO)
        async with asyncio.timeout(5):
            await follower.until(lambda live: live == by_key(ONE, TWO))
        await owner.kill()
        began = time.monotonic()
        async with asyncio.timeout(TTL_S * 4 / 3 + 2):
            await follower.until(lambda live: live == by_key(TWO))
        assert time.monotonic() - began > TTL_S / 2  # no lock told us
        async with asyncio.timeout(5):
            while (root / "leases" / "1").exists():
                await asyncio.sleep(0.02)


async def test_a_stopped_host_is_dead_and_comes_back_under_its_id(root: Path, owners: AsyncExitStack) -> None:
    async with opened(shared(root)) as client, following(client) as follower:
        owner = await an_owner(owners, shared(root), ONE)
        async with asyncio.timeout(5):
            await follower.until(lambda live: live == by_key(ONE))
        owner.pause()
        async with asyncio.timeout(TTL_S * 4 / 3 + 2):
            await follower.until(lambda live: not live)
        owner.resume()
        async with asyncio.timeout(5):
            await follower.until(lambda live: live == by_key(ONE))


async def test_clocks_that_differ_or_jump_change_nothing(root: Path, owners: AsyncExitStack) -> None:
    """All times that the disk shows are a day off, one way and the other, again and again."""
    async with opened(shared(root)) as client, following(client) as follower:
        await an_owner(owners, shared(root), ONE)
        async with asyncio.timeout(5):
            await follower.until(lambda live: live == by_key(ONE))
        ends = time.monotonic() + 2.5 * TTL_S
        while time.monotonic() < ends:
            for offset in (86_400, -86_400):
                for path in files(root):
                    try:
                        os.utime(path, (time.time() + offset, time.time() + offset))
                    except FileNotFoundError:  # a beat on its way
                        pass
                await asyncio.sleep(0.05)
        assert await live_now(client) == by_key(ONE)
        assert not [change for change in follower.changes if isinstance(change, Removed | Stale)]


async def test_a_watcher_that_was_stopped_takes_nobody_for_dead(root: Path, owners: AsyncExitStack) -> None:
    """It must look again before it judges: the beats that it missed are no silence of the owner's."""
    script = textwrap.dedent(
        """
        import asyncio, sys
        from dynamo.adapters.discovery.file import open_file
        from dynamo.core.config import Settings
        from dynamo.testing.discovery import following

        async def main():
            async with open_file(sys.argv[1], Settings()) as discovery, following(discovery) as follower:
                await follower.until(lambda live: live)
                print("seen", flush=True)
                while True:
                    print(await follower.next(), flush=True)
        asyncio.run(main())
        """
    )
    await an_owner(owners, shared(root), ONE)
    watcher = subprocess.Popen([sys.executable, "-c", script, shared(root)], stdout=subprocess.PIPE)
    assert watcher.stdout is not None
    try:
        assert await asyncio.to_thread(watcher.stdout.readline) == b"seen\n"
        os.kill(watcher.pid, 19)
        await asyncio.sleep(3 * TTL_S)  # the time that passes is the subject
        os.kill(watcher.pid, 18)
        await asyncio.sleep(2 * TTL_S)
    finally:
        watcher.kill()
        said = await asyncio.to_thread(watcher.communicate)
    assert said[0] == b""


async def test_a_host_that_lost_the_disk_for_longer_than_the_ttl_registers_again(tmp_path: Path) -> None:
    """And nobody who watches sees its instance go: after an outage silence counts from its end."""
    (tmp_path / "disk").mkdir()
    mount = tmp_path / "mount"
    mount.symlink_to(tmp_path / "disk")

    def cut(on: bool) -> None:
        (tmp_path / "fresh").symlink_to(mount if on else tmp_path / "disk")
        (tmp_path / "fresh").rename(mount)

    async with opened(shared(mount / "root")) as mine, following(mine) as follower:
        async with opened(f"file://{tmp_path}/disk/../mount/root?shared=1&ttl_s={TTL_S + 0.01}") as theirs:
            async with lease_for(theirs, ONE) as lease:
                await lease.put(ONE)
                async with asyncio.timeout(5):
                    await follower.until(lambda live: live == by_key(ONE))
                cut(True)
                async with asyncio.timeout(5):
                    assert await lease.lost()
                assert (await mine.check()).status is Status.DOWN
                cut(False)
            async with lease_for(theirs, ONE) as lease:
                await lease.put(ONE)
                await asyncio.sleep(1.5 * TTL_S)  # the time that passes is the subject
                assert await live_now(mine) == by_key(ONE)


async def test_two_hosts_that_want_one_id_conflict(root: Path, owners: AsyncExitStack) -> None:
    await an_owner(owners, shared(root), ONE)
    rival = an_instance(1, incarnation=INCARNATION + 1)
    async with opened(shared(root)) as client:
        began = time.monotonic()
        with pytest.raises(ConflictError):
            async with lease_for(client, rival):
                pass
        assert TTL_S * 0.9 < time.monotonic() - began < TTL_S * 1.25 + 1
        assert await live_now(client) == by_key(ONE)


# A loop that stands still


@pytest.mark.blocks_loop
@pytest.mark.parametrize("url", [local, shared])
async def test_a_blocked_loop_keeps_its_lease(url: Callable[[Path, float], str], root: Path) -> None:
    async with opened(url(root, TTL_S)) as client, lease_for(client, ONE) as lease:
        await lease.put(ONE)
        time.sleep(2.5 * TTL_S)
        assert await live_now(client) == by_key(ONE)
        with anyio.move_on_after(0.5):
            pytest.fail(await lease.lost())


@pytest.mark.blocks_loop
@pytest.mark.parametrize("url", [local, shared])
async def test_a_loop_blocked_past_the_stall_limit_loses_it(
    url: Callable[[Path, float], str], root: Path
) -> None:
    seen: list[bool] = []
    watched = threading.Event()

    def watch_from_elsewhere() -> None:
        async def look() -> None:
            async with opened(url(root, TTL_S)) as other, following(other) as follower:
                async with asyncio.timeout(20):
                    await follower.until(lambda live: bool(live))
                    watched.set()
                    await follower.until(lambda live: not live)
                seen.append(True)

        asyncio.run(look())

    async with opened(url(root, TTL_S), loop_stall_s=1.0) as client, lease_for(client, ONE) as lease:
        await lease.put(ONE)
        watcher = threading.Thread(target=watch_from_elsewhere)
        watcher.start()
        assert await asyncio.to_thread(watched.wait, 20)
        time.sleep(2)
        async with asyncio.timeout(5):
            assert "DYN_LOOP_STALL_S" in await lease.lost()
        watcher.join()
    assert seen


# A disk that hangs


@pytest.mark.parametrize("url", [local, shared])
async def test_a_hung_disk_holds_up_nobody(
    url: Callable[[Path], str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a dead NFS server does it: a call that does not return."""
    monkeypatch.setattr(tree, "HUNG_S", 0.5)
    monkeypatch.setattr(tree, "ANSWER_S", 0.7)
    answers = threading.Event()
    answers.set()
    ids = Layout.lease_ids

    def lease_ids(self: Layout) -> tuple[set[int], set[int]]:
        answers.wait(20)
        return ids(self)

    monkeypatch.setattr(Layout, "lease_ids", lease_ids)
    async with opened(url(root)) as client, following(client) as follower:
        async with lease_for(client, ONE) as lease:
            await lease.put(ONE)
            await follower.until(lambda live: live == by_key(ONE))
            answers.clear()
            async with asyncio.timeout(5):
                assert isinstance(await follower.next(), Stale)
            for attempt in (lease.put(ONE), lease.remove(ENDPOINT)):
                began = time.monotonic()
                with pytest.raises(UnavailableError, match=r"did not answer in 0\.7 s"):
                    await attempt
                assert time.monotonic() - began < 2
            assert (await client.check()).status is Status.DOWN
            async with client.watch(SCOPE) as watch:
                async with asyncio.timeout(5):
                    assert isinstance(await watch.receive(), Stale)
                if "shared" in url(root):
                    async with asyncio.timeout(5):
                        assert await lease.lost()
                answers.set()
                async with asyncio.timeout(5):
                    assert isinstance(await watch.receive(), Snapshot)
            async with asyncio.timeout(5):
                assert isinstance(await follower.next(), Snapshot)
        async with lease_for(client, ONE) as lease:
            await lease.put(ONE)
            answers.clear()
            began = time.monotonic()
        assert time.monotonic() - began < 2  # it is left all the same
        answers.set()
        async with asyncio.timeout(5):
            while await live_now(client):
                pass


# A disk that refuses


def test_a_root_that_is_no_directory_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def start(**settings: str) -> None:
        async with opened("file://", **settings):
            pass

    with pytest.raises(ConfigError, match=r"file/root.*\(file_kv=.*file/root\)"):
        asyncio.run(start(file_kv=str(tmp_path / "file" / "root")))
    with pytest.raises(ConfigError, match="Not a directory"):
        asyncio.run(start(file_kv=str(tmp_path / "file")))


def test_a_root_that_this_user_may_not_write_is_a_config_error_and_can_still_be_read(
    owners_root: Path,
) -> None:
    script = """
        import asyncio, os, sys
        from dynamo.adapters.discovery.file import open_file
        from dynamo.core.config import Settings
        from dynamo.testing.discovery import an_instance, lease_for, live_now

        async def start(root, number):
            settings = Settings.from_env({"DYN_FILE_KV": root})
            async with open_file("file://?events=0", settings) as discovery:
                print("sees", sorted(key[1] for key in await live_now(discovery)))
                async with lease_for(discovery, an_instance(number)) as lease:
                    await lease.put(an_instance(number))
                    await forbid(root)

        async def forbid(root):
            if not allowed:
                return
            os.chmod(root + "/leases", 0o555)
            os.chmod(root + "/services", 0o555)
            if os.geteuid() == 0:
                os.setuid(12345)
            allowed.clear()
            for folder in (root, root + "/new/below"):
                try:
                    await start(folder, 8)
                except Exception as error:
                    print(type(error).__name__, error)

        allowed = [True]
        asyncio.run(start(sys.argv[1], 7))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(owners_root)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    said = result.stdout.splitlines()
    assert said[:2] == ["sees []", "sees [7]"], result.stdout + result.stderr
    assert said[2].startswith("ConfigError cannot write")
    assert f"(DYN_FILE_KV={owners_root})" in said[2]
    assert said[3].startswith("ConfigError cannot make")
    assert f"(DYN_FILE_KV={owners_root}/new/below)" in said[3]


def test_a_folder_whose_files_this_user_may_not_look_at_hides_no_other(owners_root: Path) -> None:
    script = """
        import asyncio, os, sys
        from dynamo.adapters.discovery.file import open_file
        from dynamo.core.config import Settings
        from dynamo.testing.discovery import an_instance, lease_for, live_now

        async def main(root):
            async with open_file(f"file://{root}?events=0", Settings.from_env({})) as discovery:
                async with lease_for(discovery, an_instance(7)) as lease:
                    await lease.put(an_instance(7))
                    foreign = root + "/services/foreign/worker/generate"
                    os.makedirs(foreign)
                    os.mknod(foreign + "/9.json")
                    os.chmod(foreign, 0o644)  # may be listed, not entered
                    if os.geteuid() == 0:
                        os.setuid(12345)
                    async with asyncio.timeout(5):
                        print("sees", sorted(key[1] for key in await live_now(discovery)))

        asyncio.run(main(sys.argv[1]))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(owners_root)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.stdout == "sees [7]\n", result.stderr
    assert result.stderr.count("passed over: [Errno 13]") == 1, result.stderr


@pytest.fixture
def owners_root() -> Iterator[Path]:
    """A root in a place that every user may enter, which pytest's folders are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder, "root")
        root.mkdir(0o755)
        yield root


def test_a_root_of_another_user_in_a_folder_that_anyone_may_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could have been put there to send requests elsewhere."""
    (tmp_path / "root").mkdir()

    async def start() -> None:
        async with opened("file://", file_kv=str(tmp_path / "root")):
            pass

    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    asyncio.run(start())
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigError, match=f"belongs to user {user}.*DYN_FILE_KV"):
        asyncio.run(start())


async def test_what_we_make_is_private_and_a_root_that_was_shared_stays_shared(tmp_path: Path) -> None:
    def modes(root: Path) -> set[str]:
        return {oct(path.stat().st_mode & 0o777) for path in root.rglob("*")} | {
            oct(root.stat().st_mode & 0o777)
        }

    before = os.umask(0o022)
    try:
        async with opened(local(tmp_path / "private")) as client, lease_for(client, ONE) as lease:
            await lease.put(ONE)
            assert modes(tmp_path / "private") == {"0o700", "0o600"}
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared").chmod(0o2770)
        async with opened(local(tmp_path / "shared")) as client, lease_for(client, ONE) as lease:
            await lease.put(ONE)
            assert modes(tmp_path / "shared") == {"0o770", "0o660"}
            folder = (tmp_path / "shared" / "services" / "contract" / "worker" / "generate").stat()
            assert folder.st_mode & 0o2000
    finally:
        os.umask(before)


FULL = """
    import asyncio, os, resource, sys
    from dynamo.adapters.discovery.file import open_file
    from dynamo.core.config import Settings
    from dynamo.core.errors import DynamoError
    from dynamo.testing.discovery import OTHER, an_instance, lease_for, live_now

    root, kind = sys.argv[1:]

    def fill():
        if kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with open(os.path.join(os.path.dirname(root), "filler"), "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                pass

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        if kind != "limit":
            os.unlink(os.path.join(os.path.dirname(root), "filler"))

    async def use(discovery):
        async with lease_for(discovery, an_instance(1)) as lease:
            await lease.put(an_instance(1))
            print("sees", len(await live_now(discovery)), (await discovery.check()).status.value)

    async def main():
        one = an_instance(1)
        settings = Settings.from_env({"DYN_FILE_KV": root})
        fill()
        async with open_file("file://?shared=1&ttl_s=1", settings) as discovery:
            try:
                await use(discovery)
            except DynamoError as error:
                print(type(error).__name__, error)
            free()
            async with lease_for(discovery, one) as lease:
                await lease.put(one)
                fill()
                try:
                    await lease.put(an_instance(1, OTHER))
                except DynamoError as error:
                    print(type(error).__name__, error)
                print((await discovery.check()).status.value)
                print("lost:", await lease.lost())
                free()
            await use(discovery)
    asyncio.run(main())
"""


def full_disks() -> list[str]:
    """A process that may write no further byte everywhere, a small tmpfs where we may mount one."""
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", tempfile.gettempdir()]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ["limit"]
    return ["limit", "tmpfs"]


@pytest.mark.parametrize("kind", full_disks())
def test_a_full_disk_is_unavailable_then_lost_then_well_again(kind: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path / "disk" / "root"), kind]
    (tmp_path / "disk").mkdir()
    if kind == "tmpfs":
        mount = f"mount -t tmpfs -o size=256k none {tmp_path}/disk"
        program = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *program]
    result = subprocess.run(program, capture_output=True, text=True, timeout=40)
    said = result.stdout.splitlines()
    assert len(said) == 5, result.stdout + result.stderr
    reason = "No space left on device" if kind == "tmpfs" else "File too large"
    for line in said[:2]:
        assert line.startswith("UnavailableError cannot write")
        assert reason in line
        assert f"(DYN_FILE_KV={tmp_path}/disk/root)" in line
    assert said[2] == "down"
    assert said[3].startswith("lost: ")
    assert said[4] == "sees 1 up"
