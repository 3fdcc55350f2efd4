"""Discovery within one process: ``mem://name``, the reference that the contract is written against.

All clients of one name share a store; plain ``mem://`` is the name ``default``. The store goes when its last
client closes. Records pass through the codec, so that what another backend could not carry fails here too.
Clients may live on loops of different threads. Each pulses while its loop runs; one whose pulse stood still
for a TTL's worth of another's pulses is dead. No clock decides that: a loop that was blocked buries nobody.

=============  ============================
capability
=============  ============================
liveness       ttl: ``?ttl_s=``, else 10 s
dynamic        yes
cross_process  no
cross_host     no
=============  ============================

Errors: UnavailableError while ``MemStore.outage`` is on; the others as in the port.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

from dynamo.adapters.discovery.mem.client import MemDiscovery
from dynamo.adapters.discovery.mem.store import MemStore
from dynamo.adapters.discovery.options import ttl_option
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.model import check_name
from dynamo.core.registry import url_options

__all__ = ["MemDiscovery", "MemStore", "open_mem"]

_stores: weakref.WeakValueDictionary[str, MemStore] = weakref.WeakValueDictionary()
_stores_lock = threading.Lock()


def _in_child() -> None:
    _stores.clear()  # what the parent's runtimes registered is nobody's here
    _stores_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_stores_lock.acquire, after_in_parent=_stores_lock.release, after_in_child=_in_child
    )


def open_mem(url: str, settings: Settings) -> AbstractAsyncContextManager[MemDiscovery]:
    """``mem://name?ttl_s=10``; without a name it is ``default``. Raises ConfigError."""
    parts = urlsplit(url)
    if parts.path.strip("/") or parts.fragment:
        raise ConfigError(f"{url}: expected mem://name")
    ttl_s = ttl_option(url, url_options(url, ("ttl_s",)))
    return _open(check_name("mem store", parts.netloc or "default"), ttl_s)


@asynccontextmanager
async def _open(name: str, ttl_s: float) -> AsyncIterator[MemDiscovery]:
    with _stores_lock:
        store = _stores.get(name)
        if store is None:
            store = _stores[name] = MemStore(name=name)
        client = MemDiscovery(store, ttl_s)
        client.pulse()
    try:
        yield client
    finally:
        client.close()
        with _stores_lock:
            if not store.clients and _stores.get(name) is store:
                del _stores[name]
