"""From keys and values to instances: the thread's end of one watch."""

from __future__ import annotations

import logging
from typing import Any

from dynamo.adapters.discovery.etcd.feed import Listener
from dynamo.adapters.discovery.etcd.keys import decode, parse
from dynamo.core.errors import BadPayloadError
from dynamo.core.model import Instance, Scope
from dynamo.core.watching import ConflatingWatch

log = logging.getLogger(__name__)


class Scoped(Listener):
    """Feeds ``watch`` with what can be read and is in ``scope``."""

    def __init__(self, scope: Scope, watch: ConflatingWatch) -> None:
        self._scope, self._watch = scope, watch
        self._unreadable: set[bytes] = set()  # told once, while it is there

    def reset(self, found: dict[bytes, Any]) -> None:
        self._unreadable &= found.keys()
        read = (self._read(kv) for kv in found.values())
        self._watch.reset(tuple(instance for instance in read if instance is not None))

    def changed(self, key: bytes, kv: Any | None) -> None:
        parsed = parse(key)
        if parsed is None or not self._scope.covers(parsed[0]):
            return
        if kv is None:
            self._unreadable.discard(key)
        instance = None if kv is None else self._read(kv)
        if instance is None:
            self._watch.remove(*parsed)
        else:
            self._watch.put(instance)

    def stale(self, reason: str) -> None:
        self._watch.stale(reason)

    def _read(self, kv: Any) -> Instance | None:
        parsed = parse(kv.key)
        if parsed is None or not self._scope.covers(parsed[0]):
            return None
        try:
            instance = decode(kv.key, kv.value)
        except BadPayloadError as error:
            if kv.key not in self._unreadable:
                self._unreadable.add(kv.key)
                log.warning("%s in etcd cannot be read and is passed over: %s", kv.key.decode(), error)
            return None
        self._unreadable.discard(kv.key)
        return instance
