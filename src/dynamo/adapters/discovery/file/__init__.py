"""Discovery through files: many processes on one host, or on hosts that share a disk. No server.

``file://`` keeps its records under ``DYN_FILE_KV`` (default ``$TMPDIR/dynamo_store_kv``), ``file:///path``
under that path. ``?ttl_s=`` is the TTL (10 s), ``?events=0`` leaves file events out.

**On one host** an owner holds a lock on its lease file, which the kernel drops with the process: after
``kill -9`` its registrations are gone when the next watcher looks, 0.25 s later. (At 1,000 instances a look
takes 7 ms of one core; looks are spaced so that they cost 2 % of it at most, a second apart at most.) A
stopped process (SIGSTOP) is alive. A lease has no date of expiry: it is lost if another process takes its
file, if the disk is away for a TTL, or if the loop that owns it stalls for ``DYN_LOOP_STALL_S``. Changes
come by file events where watchfiles is installed (extra ``file``), else by looking.

**On a disk that hosts share**, declared with ``?shared=1``, no lock, no event and no clock is believed:
owners count up every third of the TTL, and one that has not done so for a TTL of the watcher's own
monotonic clock is dead. As a watcher looks every third of the TTL too, a death shows after 4/3 of it at
most. NFS keeps listings for up to a minute: mount it with ``actimeo=1``. A system that has no flock
(Windows) is treated the same.

=============  ==========================================================
capability
=============  ==========================================================
liveness       ttl: ``?ttl_s=``, else 10 s; 4/3 of it with ``?shared=1``
dynamic        yes
cross_process  yes
cross_host     with ``?shared=1``
=============  ==========================================================

=====================================================  ==================
what the disk says                                     error
=====================================================  ==================
may not write, read-only, no directory (at the start)  ConfigError
no locks here                                          ConfigError
anything else: full, away, not answering in 5 s        UnavailableError
=====================================================  ==================

Permissions: what we make is for its owner alone (0700, 0600), as records tell where requests go. Users of a
host who want to share make the root themselves, with a mode that lets them: what lies below takes it over.
In a directory that anyone may write, such as /tmp, a root of another user is refused.

Any process removes what the dead left. Names that differ only in case need a disk that tells them apart.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import unquote, urlsplit

from dynamo.adapters.discovery.file.client import FileDiscovery, capability
from dynamo.adapters.discovery.file.layout import FORBIDDEN, NO_DIRECTORY
from dynamo.adapters.discovery.file.tree import LOCKS, TreeKey, join, leave
from dynamo.adapters.discovery.options import flag_option, ttl_option
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.registry import url_options

__all__ = ["FileDiscovery", "capability", "open_file"]


def open_file(url: str, settings: Settings) -> AbstractAsyncContextManager[FileDiscovery]:
    """``file://`` or ``file:///path``, with options. Raises ConfigError; entering also UnavailableError."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or parts.fragment:
        raise ConfigError(f"{url}: expected an absolute path, such as file:///var/lib/dynamo")
    options = url_options(url, ("shared", "ttl_s", "events"))
    path = unquote(parts.path)
    root, source = (
        (path, "the URL") if path.strip("/") else (str(settings.file_root), settings.source("file_kv"))
    )
    key = TreeKey(
        root=os.path.abspath(os.path.expanduser(root)),
        shared=flag_option(url, options, "shared", False) or not LOCKS,
        ttl_s=ttl_option(url, options),
        events=flag_option(url, options, "events", True),
    )
    return _open(key, source, settings.loop_stall_s)


@asynccontextmanager
async def _open(key: TreeKey, source: str, stall_s: float) -> AsyncIterator[FileDiscovery]:
    tree = join(key, source)
    try:
        try:
            await tree.run(tree.layout.make, "open")
        except OSError as error:
            raise tree.layout.error("make", error, fatal=FORBIDDEN | NO_DIRECTORY) from error
        discovery = FileDiscovery(tree, stall_s)
        discovery.start()
        try:
            yield discovery
        finally:
            discovery.close()
    finally:
        await leave(tree)  # noqa: ASYNC102 - shielded and bounded inside
