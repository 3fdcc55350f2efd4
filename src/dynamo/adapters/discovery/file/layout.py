"""Where things lie under the root, and how one is written and read. Synchronous; for the tree's thread.

::

    root/services/{namespace}/{component}/{endpoint}/{instance id}.json     a registration, the codec's JSON
    root/leases/{instance id}                                              who is alive; see locks and beats
    root/leases/{instance id}-{incarnation}.tmp                            on its way to one of the above

Ids and incarnations are lower-case hex. What else lies there, symbolic links included, is passed over.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from attrs import field, frozen

from dynamo.core.errors import ConfigError, DynamoError, UnavailableError
from dynamo.core.model import EndpointId

HEX = re.compile(r"[0-9a-f]{1,14}")  # an id below 2^53
TEMPORARY = re.compile(r"([0-9a-f]{1,14})-[0-9a-f]{1,16}\.tmp")
RECORD = re.compile(r"([0-9a-f]{1,14})\.json")
MAX_RECORD_BYTES = 2**20
ATTEMPTS = 20  # at making folders, which others remove when they find them empty

NOT_OURS = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO}  # a link, a folder, a pipe
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})  # waiting mends none of these
NO_DIRECTORY = frozenset({errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL})
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

Signature = tuple[int, int, int]
"""Inode, modification time and size: equal means unchanged, if so for longer than a clock tick."""


def signature(status: os.stat_result) -> Signature:
    """What tells one content of a path from the next."""
    return status.st_ino, status.st_mtime_ns, status.st_size


@frozen
class Layout:
    """The paths of one root. ``source`` names what set it, in messages; ``durable`` syncs before renaming."""

    root: Path
    source: str
    durable: bool = False
    services: Path = field(init=False)
    leases: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "services", self.root / "services")
        object.__setattr__(self, "leases", self.root / "leases")

    def folder(self, endpoint_id: EndpointId) -> Path:
        return self.services / endpoint_id.namespace / endpoint_id.component / endpoint_id.name

    def record(self, endpoint_id: EndpointId, instance_id: int) -> Path:
        return self.folder(endpoint_id) / f"{instance_id:x}.json"

    def lease(self, instance_id: int) -> Path:
        return self.leases / f"{instance_id:x}"

    def temporary(self, instance_id: int, incarnation: int) -> Path:
        return self.leases / f"{instance_id:x}-{incarnation:x}.tmp"

    def error(self, doing: str, error: Exception, *, fatal: frozenset[int] = frozenset()) -> DynamoError:
        """``error`` in our terms: a ConfigError where its number is ``fatal``, else an UnavailableError."""
        if isinstance(error, DynamoError):
            return error
        if not isinstance(error, OSError):
            return UnavailableError(f"cannot {doing} {self.root} ({self.source}): {error}")
        names = (error.filename2, error.filename)  # of a renaming the new one, which we mean
        path = next((os.fspath(name) for name in names if isinstance(name, str | Path)), str(self.root))
        text = f"cannot {doing} {path}: {error.strerror or error} ({self.source}={self.root})"
        if error.errno in NO_LOCKS:
            return ConfigError(
                f"{text}; this disk cannot lock files: declare it as file://{self.root}?shared=1"
            )
        if error.errno in fatal:
            return ConfigError(f"{text}; give a directory that this user may write")
        return UnavailableError(f"{text}; mend it, or give another directory")

    def make(self) -> None:
        """Make the root and its two folders where they are missing. Raises OSError, ConfigError.

        What we make is for its owner alone. A root that was there passes its own permissions on, so that a
        directory which a group shares on purpose stays shared. In a directory where anyone may write, such
        as /tmp, a root that belongs to somebody else is refused: its records could send our requests
        anywhere.
        """
        try:
            os.makedirs(self.root.parent, exist_ok=True)
            os.mkdir(self.root, 0o700)
        except FileExistsError:
            self._check_owner()
        mode = stat.S_IMODE(os.stat(self.root).st_mode)
        for folder in (self.services, self.leases):
            make_folder(folder, mode)

    def _check_owner(self) -> None:
        if not hasattr(os, "geteuid"):
            return
        owner = os.lstat(self.root).st_uid
        if owner != os.geteuid() and os.stat(self.root.parent).st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"{self.root} ({self.source}) belongs to user {owner}, in a directory where anyone could "
                "have made it; set DYN_FILE_KV to a directory of your own"
            )

    def write(self, path: Path, data: bytes, instance_id: int, incarnation: int) -> Signature:
        """Put ``data`` at ``path`` in one step. Raises OSError; then nothing has changed."""
        self._check_folders(path)
        temporary, attempts = self.temporary(instance_id, incarnation), 0
        while True:
            try:
                if attempts:
                    self.make_folders(path)
                written = self._write(temporary, data)
                os.replace(temporary, path)
                return written
            except OSError as error:
                attempts += 1
                if not isinstance(error, FileNotFoundError) or attempts == ATTEMPTS:
                    unlink(temporary)
                    raise

    def _check_folders(self, path: Path) -> None:
        """See that no link leads out of the root, where nobody would look. Raises OSError."""
        for below in reversed(path.relative_to(self.root).parents[:-1]):
            folder = self.root / below
            try:
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
            except FileNotFoundError:
                return

    def _write(self, temporary: Path, data: bytes) -> Signature:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(temporary, flags, 0o600)
        try:
            write_all(descriptor, data)
            self.share(temporary)
            if self.durable:
                os.fsync(descriptor)
            return signature(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def make_folders(self, path: Path) -> None:
        """Make what is missing above ``path``. Raises OSError, ConfigError."""
        self.make()
        mode = stat.S_IMODE(os.stat(self.root).st_mode)
        for folder in reversed(path.relative_to(self.root).parents[:-2]):
            make_folder(self.root / folder, mode)

    def remove(self, endpoint_id: EndpointId, instance_id: int) -> None:
        """Remove a registration, absent or not, and folders left empty. Raises OSError."""
        path = self.record(endpoint_id, instance_id)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self.prune(path)

    def prune(self, path: Path) -> None:
        """Remove the folders above a removed record as far as they are empty."""
        for folder in path.parents[:3]:
            try:
                os.rmdir(folder)
            except OSError:
                return

    def probe(self) -> None:
        """See that the disk takes a file. Raises OSError."""
        temporary = self.leases / f"{os.getpid():x}-0.tmp"
        try:
            self._write(temporary, b"is there room?\n")
        finally:
            unlink(temporary)

    def share(self, path: Path) -> None:
        """Give a file what the root's permissions give to group and others. Raises OSError."""
        if mode := stat.S_IMODE(os.stat(self.root).st_mode) & 0o066:
            os.chmod(path, 0o600 | mode)

    def remove_temporaries(self, instance_id: int) -> None:
        """Remove what an owner that died while writing left. Raises OSError."""
        for name in os.listdir(self.leases):
            if (found := TEMPORARY.fullmatch(name)) and int(found[1], 16) == instance_id:
                unlink(self.leases / name)

    def lease_ids(self) -> tuple[set[int], set[int]]:
        """The ids that have a lease file, and those that have a temporary one. Raises OSError."""
        leases: set[int] = set()
        temporaries: set[int] = set()
        for name in os.listdir(self.leases):
            if HEX.fullmatch(name):
                leases.add(int(name, 16))
            elif found := TEMPORARY.fullmatch(name):
                temporaries.add(int(found[1], 16))
        return leases, temporaries


def make_folder(path: Path, mode: int) -> None:
    """Make one folder with what ``mode`` allows; one that is there is fine. Raises OSError."""
    try:
        os.mkdir(path, mode & 0o777)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise
        return
    if mode & 0o077:
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | (mode & 0o777))


def write_all(descriptor: int, data: bytes) -> None:
    """``os.write`` until all is written. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_regular(path: Path | str) -> tuple[bytes, Signature]:
    """The content of a regular file of at most 1 MiB. Raises OSError; ValueError for what is none."""
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    )  # a pipe must not hold us up
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        data = os.read(descriptor, MAX_RECORD_BYTES + 1)
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError(f"longer than {MAX_RECORD_BYTES} bytes")
        return data, signature(status)
    finally:
        os.close(descriptor)


def unlink(path: Path) -> None:
    """Remove a file if we can."""
    try:
        os.unlink(path)
    except OSError:
        pass
