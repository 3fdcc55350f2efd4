"""The registrations on the disk, read again only where something changed. Synchronous; for the tree's thread.

A folder whose modification time stands still is not listed again, a file whose signature stands still not
read again. Both times move in ticks of the file system's clock, so two changes may look like one: what is
new is therefore looked at once more after ``settle_s``, and everything when ``whole`` is asked for. No time
on the disk is compared with ours.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Container
from pathlib import Path

from attrs import frozen

from dynamo.adapters.discovery.file.layout import NOT_OURS, RECORD, Layout, read_regular, signature
from dynamo.core.codec import decode_instance
from dynamo.core.errors import BadPayloadError
from dynamo.core.model import NAME, EndpointId, Instance, InstanceKey

log = logging.getLogger(__name__)


@frozen
class _Seen:
    """``since`` is when this state was first seen, ``read_at`` when it was last looked into."""

    state: object
    since: float
    read_at: float

    def settled(self, settle_s: float) -> bool:
        return self.read_at - self.since > settle_s


@frozen
class _Folder(_Seen):
    names: tuple[str, ...]


@frozen
class _File(_Seen):
    instance: Instance | None


class Records:
    """All registrations under one root."""

    def __init__(self, layout: Layout, settle_s: float) -> None:
        self._layout, self._settle_s = layout, settle_s
        self._folders: dict[str, _Folder] = {}
        self._files: dict[str, _File] = {}

    def scan(self, now: float, *, whole: bool = False) -> dict[InstanceKey, Instance]:
        """Bring what we know up to date; return what can be read. Raises OSError: the disk is away."""
        scan = _Scan(self, now, whole)
        scan.walk(str(self._layout.services), ())
        self._folders, self._files = scan.folders, scan.files
        return {file.instance.key: file.instance for file in scan.files.values() if file.instance is not None}

    def ids(self) -> set[int]:
        """The instance ids that have a file, readable or not, as of the last scan."""
        return {int(os.path.basename(path)[:-5], 16) for path in self._files}

    def remove_all(self, instance_id: int, keep: Container[EndpointId] = ()) -> None:
        """Remove the registrations of an id, as of the last scan, and folders left empty. Raises OSError."""
        name = f"{os.sep}{instance_id:x}.json"
        for path in [path for path in self._files if path.endswith(name)]:
            namespace, component, endpoint = Path(path).parts[-4:-1]
            if EndpointId(namespace=namespace, component=component, name=endpoint) in keep:
                continue
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            del self._files[path]
            self._layout.prune(Path(path))


class _Scan:
    """One pass: what it finds, beside what the pass before it knew."""

    def __init__(self, records: Records, now: float, whole: bool) -> None:
        self.folders: dict[str, _Folder] = {}
        self.files: dict[str, _File] = {}
        self._before_folders, self._before_files = records._folders, records._files
        self._settle_s = records._settle_s
        self._now, self._whole = now, whole

    def walk(self, path: str, names: tuple[str, ...]) -> None:
        try:
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode):
                if names:
                    return  # somebody's file or link
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            folder, fresh = self._folder(path, status.st_mtime_ns, len(names) == 3)
            self.folders[path] = folder
            for name in folder.names:
                below = f"{path}{os.sep}{name}"
                if len(names) < 3:
                    self.walk(below, (*names, name))
                elif fresh or self._whole or below not in self._before_files:
                    self._file(below, (*names, name))
                else:
                    self.files[below] = self._before_files[below]
        except FileNotFoundError:
            if names:
                return  # gone since its parent was listed
            raise
        except PermissionError as error:  # a folder that we may list and not enter is noticed at its files
            if not names:
                raise
            before = self._before_folders.get(path)
            if before is None or before.state is not None:
                log.warning("passed over: %s", error)
            self.folders[path] = _Folder(None, self._now, self._now, ())

    def _folder(self, path: str, modified: int, leaf: bool) -> tuple[_Folder, bool]:
        """The folder as it is now, and whether it was listed again."""
        before = self._before_folders.get(path)
        if before is not None and before.state == modified:
            if before.settled(self._settle_s) and not self._whole:
                return before, False
            since = before.since
        else:
            since = self._now
        fits: Callable[[str], object] = RECORD.fullmatch if leaf else NAME.fullmatch
        names = tuple(name for name in os.listdir(path) if fits(name))
        return _Folder(modified, since, self._now, names), True

    def _file(self, path: str, names: tuple[str, ...]) -> None:
        before = self._before_files.get(path)
        try:
            state = signature(os.lstat(path))
            same = before is not None and before.state == state
            if before is not None and same and before.settled(self._settle_s):
                self.files[path] = before
                return
            instance = self._read(path, names, known_bad=before is not None and before.instance is None)
        except FileNotFoundError:
            return
        since = before.since if before is not None and same else self._now
        self.files[path] = _File(state, since, self._now, instance)

    def _read(self, path: str, names: tuple[str, ...], *, known_bad: bool) -> Instance | None:
        """What the file says; None, and one line in the log, if it says nothing of use. Raises OSError."""
        try:
            instance = decode_instance(read_regular(path)[0])
            said = (
                instance.namespace,
                instance.component,
                instance.endpoint,
                f"{instance.instance_id:x}.json",
            )
            if said != names:
                raise BadPayloadError(f"it is the record of {instance}")
            return instance
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in NOT_OURS:
                raise
            if not known_bad:
                log.warning("%s cannot be read and is passed over: %s", path, error)
            return None
