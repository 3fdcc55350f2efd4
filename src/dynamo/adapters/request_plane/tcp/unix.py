"""The Unix-socket fast path beside tcp: a private directory, socket files that the living clear of the dead.

The directory is ``$TMPDIR/dynamo-{uid}``, mode 0700, so that only this user (and root) can connect; both
sides also ask the kernel who the peer is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import cast

from dynamo.adapters.request_plane.tcp.link import Link
from dynamo.core.errors import UnavailableError, UnsupportedError

MAX_PATH = 100  # bytes; sockaddr_un takes 108 on Linux, 104 on macOS


@cache
def boot_id() -> str | None:
    """What tells one boot of one host from all others; None where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def socket_path(incarnation: int) -> str:
    """A free path for this runtime's socket, in a directory that is ours alone. Raises UnsupportedError."""
    if not hasattr(socket, "AF_UNIX") or boot_id() is None:
        raise UnsupportedError("no Unix sockets with a boot id on this system")
    name = f"dynamo-{os.getuid()}/{incarnation:016x}.sock"
    path = f"{tempfile.gettempdir()}/{name}"
    if len(os.fsencode(path)) > MAX_PATH:
        path = f"/tmp/{name}"
    directory = os.path.dirname(path)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        status = os.lstat(directory)
    except OSError as error:
        raise UnsupportedError(f"no directory for Unix sockets: {error}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UnsupportedError(f"{directory} is not a private directory of this user")
    return path


def usable(boot: str, path: str) -> bool:
    """May this process dial it: same boot, the file is here, and it is this user's."""
    if boot != boot_id():
        return False
    try:
        status = os.lstat(path)
    except (OSError, ValueError):  # not there, or no path at all
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_uid == os.getuid()


def same_user(connection: socket.socket) -> bool:
    """Is the process at the other end of this Unix socket ours, by the kernel's word?"""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the directory's mode has to do
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.getuid())


class UnixLink(Link):
    """Says nothing to another user, whom the kernel knows."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if same_user(transport.get_extra_info("socket")):
            super().connection_made(transport)
            return
        self.connected = True
        self.fail(UnavailableError(f"the process at {self.peer} belongs to another user"))
        cast(asyncio.Transport, transport).abort()


def remove(path: str) -> None:
    """Remove our own socket, those of processes that died without doing so, and the directory if empty."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    directory = os.path.dirname(path)
    with contextlib.suppress(OSError):
        for entry in os.scandir(directory):
            if entry.name.endswith(".sock") and _is_dead(entry.path):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        os.rmdir(directory)


def _is_dead(path: str) -> bool:
    """Nobody listens: the kernel refuses at once (a full backlog is EAGAIN, and alive)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
