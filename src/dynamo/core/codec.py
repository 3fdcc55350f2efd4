"""Values to bytes and back: MessagePack for items, JSON for discovery's records.

msgspec does the MessagePack when it is installed (extra ``fast``), msgpack else; both give the same bytes for the same
value. Maps, lists, strings, bytes, integers of 64 bits, floats, booleans and None arrive as they were sent; tuples and
sets arrive as lists; attrs classes, dataclasses and pydantic models as maps; enums as their values.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import uuid
from collections.abc import Callable
from typing import Any

import attrs

from dynamo.core.errors import BadPayloadError, ConfigError, EncodeError
from dynamo.core.model import MAX_INSTANCE_ID, EndpointId, Instance, Phase
from dynamo.core.ports.request_plane import Payload

_BUFFERS = (bytes, bytearray, memoryview)


def _plain(value: Any) -> Any:
    """Turn what MessagePack does not know into what it does, as msgspec would."""
    match value:
        case set() | frozenset():
            return list(value)
        case enum.Enum():
            return value.value
        case uuid.UUID() | decimal.Decimal():
            return str(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
    if attrs.has(type(value)):
        return {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a MessagePack value")


def _msgpack_functions() -> tuple[Callable[[Any], bytes], Callable[[Any], Any]]:
    try:
        import msgspec
    except ModuleNotFoundError:
        import msgpack

        def pack(value: Any) -> bytes:
            packed: bytes = msgpack.packb(value, default=_plain)
            return packed

        def refuse_extension(code: int, data: bytes) -> Any:
            raise ValueError(f"unknown MessagePack extension {code}")

        def unpack(data: Any) -> Any:
            return msgpack.unpackb(data, strict_map_key=False, ext_hook=refuse_extension)

        return pack, unpack

    def refuse_ext(code: int, data: memoryview) -> Any:
        raise ValueError(f"unknown MessagePack extension {code}")

    return msgspec.msgpack.Encoder(enc_hook=_plain).encode, msgspec.msgpack.Decoder(ext_hook=refuse_ext).decode


_pack, _unpack = _msgpack_functions()


def encode(value: Any) -> Payload:
    """Encode one item; a buffer (bytes, bytearray, memoryview) goes raw, by reference. Raises EncodeError."""
    if isinstance(value, _BUFFERS):
        try:
            return memoryview(value).cast("B")
        except (TypeError, ValueError) as error:
            raise EncodeError(f"cannot send this buffer: {error}; make it contiguous") from error
    try:
        return _pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EncodeError(f"cannot send {_shown(value)}: {error}") from error


def decode(payload: Payload, *, buffers: bool = False) -> Any:
    """Decode one item; a raw one is ``bytes``, or with ``buffers`` the memoryview itself. Raises BadPayloadError."""
    if type(payload) is memoryview:
        if buffers:
            return payload
        owner = payload.obj
        return owner if type(owner) is bytes and len(owner) == payload.nbytes else bytes(payload)
    try:
        return _unpack(payload)
    except Exception as error:  # msgpack raises classes of its own, ValueError, TypeError (unhashable keys), RecursionError
        raise BadPayloadError(f"not a MessagePack value ({len(payload)} bytes): {error}") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}... ({type(value).__name__})"


def encode_instance(instance: Instance) -> bytes:
    """One registration as readable JSON, the same for every backend. Raises ConfigError if its metadata is not JSON."""
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
    try:
        return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the metadata of {instance} is not JSON: {error}") from error


def decode_instance(data: bytes | str) -> Instance:
    """Read one registration; unknown fields are ignored. Raises BadPayloadError that names the field."""
    try:
        record = json.loads(data)
        if not isinstance(record, dict):
            raise TypeError("not a JSON object")
        addresses, metadata = record["addresses"], record.get("metadata", {})
        instance_id, name = record["instance_id"], record.get("name")
        if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
            raise TypeError("addresses: not a list of strings")
        if type(instance_id) is not int or not 0 < instance_id <= MAX_INSTANCE_ID:
            raise TypeError("instance_id: not an integer from 1 to 2^53-1")
        if not isinstance(metadata, dict):
            raise TypeError("metadata: not an object")
        if name is not None and not isinstance(name, str):
            raise TypeError("name: not a string")
        incarnation = int(record["incarnation"], 16)
        if not 0 <= incarnation < 2**64:
            raise ValueError("incarnation: not 64 bits")
        return Instance(
            endpoint_id=EndpointId(
                namespace=record["namespace"], component=record["component"], name=record["endpoint"]
            ),
            instance_id=instance_id,
            incarnation=incarnation,
            addresses=tuple(addresses),
            phase=Phase(record.get("phase", "ready")),
            name=name,
            idempotent=record.get("idempotent") is True,
            metadata=metadata,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadPayloadError(f"unreadable instance record: {type(error).__name__}: {error}") from error
