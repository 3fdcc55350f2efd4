"""Keys in etcd, ``/services/{namespace}/{component}/{endpoint}-{instance id, hex}``; values are core's."""

from __future__ import annotations

import re

from attrs import frozen

from dynamo.core.codec import decode_instance
from dynamo.core.errors import BadPayloadError, ConfigError
from dynamo.core.model import EndpointId, Instance, InstanceKey, Scope

ROOT = "/services/"
_KEY = re.compile(r"/services/([^/]+)/([^/]+)/([^/]+)-([0-9a-f]{1,14})")


@frozen
class KeyRange:
    """What one watcher covers; an empty ``end`` is the one key."""

    key: bytes
    end: bytes = b""

    @classmethod
    def below(cls, prefix: str) -> KeyRange:
        """Every key that begins with ``prefix``, which ends in an ASCII character."""
        key = prefix.encode()
        return cls(key, key[:-1] + bytes([key[-1] + 1]))

    def covers(self, key: bytes) -> bool:
        return self.key <= key < self.end if self.end else key == self.key


def key_of(endpoint_id: EndpointId, instance_id: int) -> bytes:
    """Where an instance is registered."""
    namespace, component, name = endpoint_id.namespace, endpoint_id.component, endpoint_id.name
    return f"{ROOT}{namespace}/{component}/{name}-{instance_id:x}".encode()


def parse(key: bytes) -> InstanceKey | None:
    """Who is registered under a key; None where it is nobody's."""
    found = _KEY.fullmatch(key.decode(errors="replace"))
    if found is None:
        return None
    try:
        endpoint_id = EndpointId(namespace=found[1], component=found[2], name=found[3])
    except ConfigError:
        return None
    return endpoint_id, int(found[4], 16)


def range_of(scope: Scope) -> KeyRange:
    """The narrowest prefix that holds the scope; ``gen-`` holds ``gen-2-`` too, so compare names after."""
    prefix = ROOT
    for part in (scope.namespace, scope.component):
        if part is None:
            return KeyRange.below(prefix)
        prefix += f"{part}/"
    return KeyRange.below(prefix if scope.name is None else f"{prefix}{scope.name}-")


def decode(key: bytes, value: bytes) -> Instance:
    """The registration under a key. Raises BadPayloadError."""
    instance = decode_instance(value)
    if instance.key != parse(key):
        raise BadPayloadError(f"it is the record of {instance}")
    return instance
