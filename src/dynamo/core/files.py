"""Files that somebody names, looked at before they are opened: opening a pipe waits for who writes to it."""

from __future__ import annotations

import os
import stat

from dynamo.core.errors import ConfigError

OTHERS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def other_than_file(path: str | os.PathLike[str]) -> str | None:
    """What is at ``path``, such as "a pipe"; None for a file, and where nothing is. Raises ValueError for
    what can be no path.
    """
    try:
        return OTHERS.get(stat.S_IFMT(os.stat(path).st_mode))
    except OSError:
        return None


def check_file(path: str | os.PathLike[str], shown: str, way_out: str = "") -> None:
    """Raise ConfigError if something other than a file is at ``path``, or could never be.

    ``shown`` is what the message names and ``way_out`` what it adds. Nothing is waited for; that nothing is
    there, or that it may not be read, is for who opens it to find.
    """
    try:
        other = other_than_file(path)
    except ValueError as error:
        raise ConfigError(f"{shown}: no path of a file: {error}{way_out}") from error
    if other is not None:
        raise ConfigError(f"{shown}: is {other}, not a file{way_out}")
