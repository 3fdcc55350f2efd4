"""Values to bytes and back: MessagePack for items, JSON for discovery's records.

msgspec does the MessagePack when it is installed (extra ``fast``), msgpack else; both give the same bytes for
the same value. Maps, lists, strings, bytes, integers of 64 bits, floats, booleans and None arrive as they
were sent; tuples and sets arrive as lists; attrs classes (but for fields that begin with an underscore),
dataclasses and pydantic models as maps; enums as their values. A datetime with a time zone arrives as the
same moment in UTC; other dates, times and durations arrive as ISO 8601 text, UUIDs and decimals as text.
Nesting deeper than a few hundred levels is an error.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, cast

import attrs

from dynamo.core.errors import BadPayloadError, ConfigError, EncodeError
from dynamo.core.model import MAX_INSTANCE_ID, EndpointId, Instance, Phase, shown
from dynamo.core.ports.request_plane import Payload

_BUFFERS = (bytes, bytearray, memoryview)
_KNOWN = (type(None), bool, int, float, str, bytes, bytearray, memoryview, list, tuple, dict)
_PLAIN = frozenset({type(None), bool, int, float, str, list, tuple, dict})  # what most items are: no buffers
_HEX_64 = re.compile("[0-9a-fA-F]{1,16}")


def _plain(value: Any) -> Any:
    """Turn what MessagePack does not know into what it does, as msgspec would."""
    match value:
        case type():
            raise TypeError("a class is not a MessagePack value; send an instance of it")
        case enum.Enum():
            return _known(value.value)
        case set() | frozenset():
            return list(value)
        case uuid.UUID() | decimal.Decimal():
            return str(value)
        case datetime.datetime() if value.tzinfo is not None:  # of a subclass: both know the class itself
            return datetime.datetime.combine(value.date(), value.timetz())
        case datetime.datetime() | datetime.date():
            return value.isoformat()
        case datetime.time():
            return value.isoformat().replace("+00:00", "Z")
        case datetime.timedelta():
            return _iso_duration(value)
        case str():  # subclasses, which msgspec does not take for what they are
            return str.__str__(value)
        case bytes() | bytearray():
            return bytes(value)
        case int() if type(value) is not int:
            return int(value)
        case int():  # msgpack asks for those that do not fit
            raise OverflowError("can't serialize ints < -2**63 or > 2**64 - 1")
        case float():
            return float(value)
    if attrs.has(type(value)):
        return _public_attributes(value)
    if dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    if hasattr(value, "model_dump"):
        return _known(value.model_dump())
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _known(value.tolist())
    hint = "; await it first" if isinstance(value, Awaitable) else ""
    raise TypeError(f"{type(value).__name__} is not a MessagePack value{hint}")


def _known(value: Any) -> Any:
    """msgpack asks once for a value, so what it is given must need no second question."""
    return value if type(value) in _KNOWN else _plain(value)


def _public_attributes(value: Any) -> dict[str, Any]:
    slots = (name for owner in type(value).__mro__ for name in owner.__dict__.get("__slots__", ()))
    names = (*getattr(value, "__dict__", ()), *slots)
    return {name: getattr(value, name) for name in names if name[0] != "_" and hasattr(value, name)}


def _iso_duration(value: datetime.timedelta) -> str:
    sign, value = ("-", -value) if value.days < 0 else ("", value)
    days = f"{value.days}D" if value.days or not value else ""
    fraction = f".{value.microseconds:06}".rstrip("0") if value.microseconds else ""
    time = f"T{value.seconds}{fraction}S" if value.seconds or value.microseconds else ""
    return f"{sign}P{days}{time}"


def _msgpack_functions() -> tuple[Callable[[Any], bytes], Callable[[Any], Any]]:
    try:
        import msgspec
    except ModuleNotFoundError:
        import msgpack

        def pack(value: Any) -> bytes:
            return cast(bytes, msgpack.packb(value, default=_plain, datetime=True))

        def unpack(data: Any) -> Any:
            try:
                return msgpack.unpackb(data, strict_map_key=False, timestamp=3, ext_hook=_refuse_extension)
            except TypeError:  # a list as a key: a tuple, as msgspec has it
                return msgpack.unpackb(
                    data,
                    strict_map_key=False,
                    timestamp=3,
                    ext_hook=_refuse_extension,
                    object_pairs_hook=_with_tuple_keys,
                )

        return pack, unpack

    return (
        msgspec.msgpack.Encoder(enc_hook=_plain).encode,
        msgspec.msgpack.Decoder(ext_hook=_refuse_extension).decode,
    )


def _refuse_extension(code: int, data: Any) -> Any:
    raise ValueError(f"unknown MessagePack extension {code}")


def _with_tuple_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in pairs}


def _hashable(key: Any) -> Any:
    return tuple(_hashable(part) for part in key) if isinstance(key, list) else key


_pack, _unpack = _msgpack_functions()


def encode(value: Any) -> Payload:
    """Encode one item; a buffer (bytes, bytearray, memoryview) goes raw, by reference. Raises EncodeError."""
    if type(value) not in _PLAIN and isinstance(value, _BUFFERS):
        try:
            return memoryview(value).cast("B")
        except (TypeError, ValueError) as error:
            raise EncodeError(
                f"cannot send this buffer: {error}; make it contiguous, and keep it open"
            ) from error
    try:
        return _pack(value)
    except Exception as error:  # code of the value's own classes runs in here
        raise EncodeError(f"cannot send {shown(value)} ({type(value).__name__}): {error}") from error


def decode(payload: Payload, *, buffers: bool = False) -> Any:
    """Decode one item; a raw one is ``bytes``, or with ``buffers`` the memoryview itself.

    Raises BadPayloadError.
    """
    if type(payload) is memoryview:
        if buffers:
            return payload
        owner = payload.obj
        return owner if type(owner) is bytes and len(owner) == payload.nbytes else bytes(payload)
    try:
        return _unpack(payload)
    except Exception as error:  # msgpack raises classes of its own and half a dozen of Python's
        raise BadPayloadError(f"not a MessagePack value ({len(payload)} bytes): {error}") from error


def encode_instance(instance: Instance) -> bytes:
    """One registration as readable JSON, the same for every backend.

    Raises ConfigError if its metadata is not JSON.
    """
    record: dict[str, Any] = {
        "namespace": instance.namespace,
        "component": instance.component,
        "endpoint": instance.endpoint,
        "instance_id": instance.instance_id,
        "incarnation": f"{instance.incarnation:x}",
        "addresses": list(instance.addresses),
        "phase": instance.phase.value,
    }
    if instance.name is not None:
        record["name"] = instance.name
    if instance.idempotent:
        record["idempotent"] = True
    if instance.metadata:
        record["metadata"] = dict(instance.metadata)
    if instance.started is not None:
        record["started"] = instance.started
    try:
        data = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
        _check_keys(record)  # json writes 1 and None as "1" and "null"
        return data
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the metadata of {instance} is not JSON: {error}") from error


def _check_keys(value: Any) -> None:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not text")
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for part in value:
        _check_keys(part)


def decode_instance(data: bytes | str) -> Instance:
    """Read one registration; unknown fields are ignored. Raises BadPayloadError that names the field."""
    try:
        record = json.loads(data)
        if not isinstance(record, dict):
            raise TypeError("not a JSON object")
        addresses, metadata = record["addresses"], record.get("metadata", {})
        instance_id, name = record["instance_id"], record.get("name")
        started = record.get("started")
        if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
            raise TypeError("addresses: not a list of strings")
        if type(instance_id) is not int or not 0 < instance_id <= MAX_INSTANCE_ID:
            raise TypeError("instance_id: not an integer from 1 to 2^53-1")
        if not isinstance(metadata, dict):
            raise TypeError("metadata: not an object")
        if name is not None and not isinstance(name, str):
            raise TypeError("name: not a string")
        incarnation = record["incarnation"]
        if not isinstance(incarnation, str) or _HEX_64.fullmatch(incarnation) is None:
            raise TypeError("incarnation: not hex of 64 bits")
        return Instance(
            endpoint_id=EndpointId(
                namespace=record["namespace"], component=record["component"], name=record["endpoint"]
            ),
            instance_id=instance_id,
            incarnation=int(incarnation, 16),
            addresses=tuple(addresses),
            phase=Phase(record.get("phase", "ready")),
            name=name,
            idempotent=record.get("idempotent") is True,
            metadata=metadata,
            started=started if type(started) is int else None,  # nobody is unfindable for want of an age
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadPayloadError(f"unreadable instance record: {type(error).__name__}: {error}") from error
