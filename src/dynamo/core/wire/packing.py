"""MessagePack for the protocol's own maps: msgspec where it is installed, msgpack else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from dynamo.core.wire.frames import Malformed


def _functions() -> tuple[Callable[[Any], bytes], Callable[[Any], dict[int, Any]]]:
    try:
        import msgspec
    except ModuleNotFoundError:
        import msgpack

        def pack(value: Any) -> bytes:
            packed: Any = msgpack.packb(value)
            return bytes(packed)

        def unpack(data: Any) -> dict[int, Any]:
            value = msgpack.unpackb(data, strict_map_key=False)
            if type(value) is not dict:
                raise ValueError("expected a map")
            for key in value:
                if type(key) is not int or key < 0:
                    raise ValueError(f"expected an integer >= 0 as key, got {key!r:.40}")
            return value

        return pack, unpack
    keys: Any = Annotated[int, msgspec.Meta(ge=0)]
    return msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(dict[keys, Any]).decode


pack, _unpack = _functions()
_MISSING = object()


def unpack_map(data: bytes | memoryview) -> dict[int, Any]:
    """One map with non-negative integer keys and nothing after it. Raises Malformed."""
    try:
        return _unpack(data)
    except Exception as error:  # each package has classes of its own; RecursionError for deep nesting
        raise Malformed(f"not a map in MessagePack with integers as keys: {error}") from error


# Reading one field of a map. Types are compared, not tested: True is no integer here.


def whole(fields: dict[int, Any], key: int, name: str, low: int, high: int, default: Any = None) -> Any:
    """An integer from ``low`` to ``high``, or ``default`` if the key is missing. Raises Malformed."""
    value = fields.get(key, _MISSING)
    if value is _MISSING:
        return default
    if type(value) is not int or not low <= value <= high:
        raise Malformed(f"{name}: expected an integer from {low} to {high}, got {value!r:.40}")
    return value


def text(fields: dict[int, Any], key: int, name: str, default: Any = None) -> Any:
    """A string, or ``default`` if the key is missing. Raises Malformed."""
    value = fields.get(key, _MISSING)
    if value is _MISSING:
        return default
    if type(value) is not str:
        raise Malformed(f"{name}: expected a string, got {value!r:.40}")
    return value
