"""Values to bytes and back: msgspec and msgpack do the same with every value and with every byte string.

The module under test is loaded twice, as it is with msgspec and as it is where that is not installed.
"""

from __future__ import annotations

import array
import dataclasses
import datetime
import decimal
import enum
import importlib.util
import json
import math
import struct
import sys
import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import attrs
import msgpack
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynamo.core import codec
from dynamo.core.errors import BadPayloadError, ConfigError, EncodeError
from dynamo.core.model import EndpointId, Instance, Phase

UTC = datetime.UTC


def loaded(*, with_msgspec: bool) -> Any:
    spec = importlib.util.spec_from_file_location("codec_twin", codec.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    hidden = {} if with_msgspec else {"msgspec": None}
    with mock.patch.dict(sys.modules, hidden):
        spec.loader.exec_module(module)
    return module


PLAIN = loaded(with_msgspec=False)
FAST = loaded(with_msgspec=True) if importlib.util.find_spec("msgspec") else PLAIN
BOTH = [pytest.param(FAST, id="msgspec"), pytest.param(PLAIN, id="msgpack")]


def test_the_twins_are_two() -> None:
    """Otherwise every comparison below would be one with itself."""
    assert "msgspec" in type(FAST._pack.__self__).__module__
    assert "msgspec" not in PLAIN._pack.__module__


# What MessagePack knows


def same(left: Any, right: Any) -> bool:
    """Equal in value and type: NaN is NaN, 1 is not True. One rounds nanoseconds, the other cuts them."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return struct.pack("<d", left) == struct.pack("<d", right) or (math.isnan(left) and math.isnan(right))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return all(map(same, left, right)) and all(map(same, left.values(), right.values()))
    if isinstance(left, datetime.datetime):
        return left.tzinfo == right.tzinfo and bool(abs(left - right) <= datetime.timedelta(microseconds=1))
    return bool(left == right)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from(
        [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, -32, -33, -128, -129, -32769, -(2**31) - 1]
    )
    | st.floats()
    | st.text()
    | st.binary()
)
KEYS = (
    st.text()
    | st.integers(-(2**63), 2**64 - 1)
    | st.binary()
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(KEYS, inner, max_size=20),
    max_leaves=40,
)


def test_the_sizes_at_which_the_format_changes() -> None:
    for size in (0, 15, 16, 31, 32, 255, 256, 65535, 65536):
        for value in ("x" * size, [b"x" * size], [1] * size, dict.fromkeys(range(size), 1)):
            assert FAST.encode(value) == PLAIN.encode(value)
            assert FAST.decode(PLAIN.encode(value)) == PLAIN.decode(FAST.encode(value)) == value


@given(VALUES)
@settings(max_examples=400)
def test_values_arrive_as_they_were_sent_in_the_same_bytes(value: Any) -> None:
    if isinstance(value, bytes):
        value = [value]  # alone it goes raw
    packed = FAST.encode(value)
    assert PLAIN.encode(value) == packed
    for module in (FAST, PLAIN):
        assert same(module.decode(packed), value)


def test_the_order_of_keys_is_kept() -> None:
    value = {"b": 1, "a": 2, "c": 3}
    for module in (FAST, PLAIN):
        assert list(module.decode(module.encode(value))) == ["b", "a", "c"]


# What else has a meaning


class Color(enum.Enum):
    NAMED = "red"
    NUMBERED = 2
    REAL = 1.5
    PAIR = (1, 2)
    SETTLED = frozenset({1})


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Plain:
    number: int = 1
    inner: Any = None
    _kept: int = 3


@dataclasses.dataclass(slots=True)
class Slotted(Plain):
    more: str = "x"


@dataclasses.dataclass
class Unfinished:
    later: int = dataclasses.field(init=False)
    now: int = 1


@attrs.define
class Defined:
    number: int = 1
    _left_out: int = 2


@attrs.define
class DefinedOn(Defined):
    more: int = 3
    later: int = attrs.field(init=False)


@attrs.define(slots=False)
class Roomy:
    number: int = 1

    def __attrs_post_init__(self) -> None:
        self.noted = 5


class Model(pydantic.BaseModel):
    number: int = 1
    when: datetime.datetime = datetime.datetime(2020, 1, 1)


class Pair(NamedTuple):
    left: int
    right: str


class Text(str): ...


class Number(int): ...


class Real(float): ...


class Octets(bytes): ...


class Room(bytearray): ...


class Moment(datetime.datetime): ...


class Scalar:
    """What numpy's scalars and arrays look like from here."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def tolist(self) -> Any:
        return self.inner


EARLY = datetime.datetime(1960, 1, 1, 0, 0, 0, 7, tzinfo=UTC)
TOLD = [
    (Color.NAMED, "red"),
    (Color.NUMBERED, 2),
    (Color.REAL, 1.5),
    (Color.PAIR, [1, 2]),
    (Color.SETTLED, [1]),
    (Level.LOW, 1),
    (Word.YES, "yes"),
    (Bits.A | Bits.B, 3),
    ({Word.YES: Level.LOW, Color.NUMBERED: [Color.NAMED]}, {"yes": 1, 2: ["red"]}),
    ((1, (2, 3)), [1, [2, 3]]),
    ({1}, [1]),
    (frozenset(), []),
    (Pair(1, "x"), [1, "x"]),
    (Counter("aab"), {"a": 2, "b": 1}),
    (OrderedDict(a=1), {"a": 1}),
    ({(1, (2, 3)): "x"}, {(1, (2, 3)): "x"}),
    ([{frozenset({1}): {(): 1}}], [{(1,): {(): 1}}]),
    (Plain(inner={1}), {"number": 1, "inner": [1], "_kept": 3}),
    ([Plain(inner=Plain(2))], [{"number": 1, "inner": {"number": 2, "inner": None, "_kept": 3}, "_kept": 3}]),
    (Slotted(), {"number": 1, "inner": None, "_kept": 3, "more": "x"}),
    (Unfinished(), {"now": 1}),
    (Defined(), {"number": 1}),
    (DefinedOn(), {"more": 3, "number": 1}),
    (Roomy(), {"number": 1, "noted": 5}),
    ([Model()], [{"number": 1, "when": "2020-01-01T00:00:00"}]),
    (Text("a"), "a"),
    ({Text("k"): Number(3)}, {"k": 3}),
    (Real(1.5), 1.5),
    ([Octets(b"x"), Room(b"y"), bytearray(b"z"), memoryview(b"w")], [b"x", b"y", b"z", b"w"]),
    ([memoryview(array.array("i", [1]))], [b"\x01\0\0\0"]),
    (Scalar(1), 1),
    (Scalar([1, {2}]), [1, [2]]),
    (Scalar(datetime.datetime(2020, 1, 1)), "2020-01-01T00:00:00"),  # numpy.datetime64
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (decimal.Decimal("1.50"), "1.50"),
    (datetime.date(2020, 1, 2), "2020-01-02"),
    (datetime.time(1, 2), "01:02:00"),
    (datetime.datetime(2020, 1, 2, 3, 4, 5, 6), "2020-01-02T03:04:05.000006"),
    (Moment(2020, 1, 1), "2020-01-01T00:00:00"),
    (Moment(2020, 1, 1, tzinfo=UTC), datetime.datetime(2020, 1, 1, tzinfo=UTC)),
    (EARLY, EARLY),
    (datetime.timedelta(days=-1, microseconds=5), "-PT86399.999995S"),
]  # fmt: skip


@pytest.mark.parametrize("value,arrives", TOLD, ids=lambda value: type(value).__name__)
def test_what_messagepack_does_not_know_arrives_as_promised(value: Any, arrives: Any) -> None:
    packed = FAST.encode(value)
    assert PLAIN.encode(value) == packed
    for module in (FAST, PLAIN):
        assert same(module.decode(packed), arrives)


OFFSETS = st.integers(-23 * 60, 23 * 60).map(
    lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes))
)
INNER_YEARS: dict[str, Any] = {
    "min_value": datetime.datetime(2, 1, 1),
    "max_value": datetime.datetime(9998, 12, 31),
}


@given(
    st.datetimes()
    | st.datetimes(**INNER_YEARS, timezones=OFFSETS | st.just(UTC))
    | st.dates()
    | st.times()
    | st.times(timezones=OFFSETS)
    | st.timedeltas()
    | st.uuids()
    | st.decimals()
)
@settings(max_examples=400)
@example(datetime.timedelta(0))
@example(datetime.timedelta.max)
@example(datetime.timedelta.min)
def test_times_and_numbers_are_written_alike(value: Any) -> None:
    packed = FAST.encode([value])
    assert PLAIN.encode([value]) == packed
    (fast,), (plain,) = FAST.decode(packed), PLAIN.decode(packed)
    assert same(fast, plain)
    if isinstance(value, datetime.datetime) and value.tzinfo:
        assert fast == value
        assert fast.tzinfo == UTC


# Raw buffers


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(
    "buffer",
    [
        b"",
        b"abc",
        bytearray(b"abc"),
        Octets(b"abc"),
        memoryview(b"abc"),
        memoryview(b"xabcx")[1:4],
        memoryview(array.array("i", [1, 2])),
        memoryview(array.array("i")),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_a_buffer_goes_raw_and_by_reference(module: Any, buffer: Any) -> None:
    payload = module.encode(buffer)
    assert type(payload) is memoryview
    assert payload.format == "B"
    assert payload.nbytes == memoryview(buffer).nbytes
    assert payload.obj is memoryview(buffer).obj
    assert module.decode(payload) == bytes(memoryview(buffer).cast("B"))
    assert type(module.decode(payload)) is bytes
    assert module.decode(payload, buffers=True) is payload


def test_whole_bytes_are_handed_back_without_a_copy() -> None:
    data = b"x" * 100
    assert codec.decode(codec.encode(data)) is data
    assert codec.decode(memoryview(data)[1:]) == data[1:]


# What cannot be sent


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


class Broken:
    def model_dump(self) -> Any:
        raise RuntimeError("no dump today")


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr today")


class Later:
    def __await__(self) -> Iterator[None]:
        yield None


class Turning:
    def tolist(self) -> Any:
        return self


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(
    "value,words",
    [
        (2**64, "2\\*\\*64 - 1"),
        (-(2**63) - 1, "-2\\*\\*63"),
        ({"k": [2**64]}, "2\\*\\*64 - 1"),
        (Number(2**64), "(2\\*\\*64 - 1|out of range)"),
        (object(), "object is not a MessagePack value"),
        (Later(), "Later is not a MessagePack value; await it first"),
        ({"k": object()}, "object is not a MessagePack value"),
        (len, "builtin_function_or_method is not"),
        (1j, "complex is not"),
        (range(3), "range is not"),
        ((x for x in ""), "generator is not"),
        (ValueError("x"), "ValueError is not"),
        (int, "a class is not .*; send an instance"),
        (Model, "a class is not .*; send an instance"),
        (Plain, "a class is not .*; send an instance"),
        ("\ud800", "surrogates not allowed"),
        ({"\ud800": 1}, "surrogates not allowed"),
        (memoryview(b"abcd")[::2], "contiguous"),
        ([memoryview(b"abcd")[::2]], "contiguous"),
        (Broken(), "no dump today"),
        (Unshowable(), "Unshowable"),
        (Turning(), "recursion"),
        (nested(100_000), "recursion"),
        (cyclic(), "recursion"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)  # fmt: skip
def test_what_cannot_be_sent_is_an_encode_error_that_shows_it(module: Any, value: Any, words: str) -> None:
    with pytest.raises(EncodeError, match=words) as caught:
        module.encode(value)
    assert str(caught.value).startswith("cannot send ")
    assert caught.value.__cause__ is not None


def test_a_message_about_a_huge_value_is_short() -> None:
    huge = {"prompt": "x" * 1_000_000, "tokens": list(range(1_000_000)), "bad": {1: object()}}
    with pytest.raises(EncodeError) as caught:
        codec.encode(huge)
    assert len(str(caught.value)) < 500


# What cannot be read


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # never used
        b"\xa5abc",  # short
        b"\x01\x01",  # two values
        b"\xa1\xff",  # not UTF-8
        b"\x81\x80\x01",  # a map as a key
        b"\xd4\x05x",  # an unknown extension
        b"\xd4\xffx",  # a timestamp of a wrong size
        b"\xd7\xff" + b"\xff" * 8,  # nanoseconds past a second
        b"\xc7\x0c\xff" + b"\0\0\0\0" + b"\x7f" + b"\xff" * 7,  # year 292277026596
        b"\xdd\xff\xff\xff\xff",  # four billion elements announced
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
    ],
    ids=lambda data: data[:6].hex(),
)
def test_what_cannot_be_read_is_a_bad_payload_that_tells_its_size(module: Any, data: bytes) -> None:
    with pytest.raises(BadPayloadError, match=rf"not a MessagePack value \({len(data)} bytes\)"):
        module.decode(data)


def outcome(module: Any, data: bytes) -> Any:
    try:
        return module.decode(data)
    except BadPayloadError:
        return BadPayloadError


@given(st.binary(max_size=60))
@settings(max_examples=1000)
def test_any_bytes_mean_the_same_to_both(data: bytes) -> None:
    assert same(outcome(FAST, data), outcome(PLAIN, data))


@given(VALUES, st.data())
@settings(max_examples=600)
def test_a_changed_byte_means_the_same_to_both(value: Any, data: st.DataObject) -> None:
    packed = bytearray(PLAIN.encode([value]))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    assert same(outcome(FAST, bytes(packed)), outcome(PLAIN, bytes(packed)))


@given(st.integers(0, 2**34 - 1), st.integers(0, 2**30 - 1))
def test_timestamps_of_any_precision_are_read_alike(seconds: int, nanoseconds: int) -> None:
    packed = b"\xd7\xff" + (nanoseconds << 34 | seconds).to_bytes(8, "big")
    assert same(outcome(FAST, packed), outcome(PLAIN, packed))


def test_other_peoples_timestamps_are_read() -> None:
    packed = msgpack.packb(msgpack.Timestamp(1, 2_000))
    for module in (FAST, PLAIN):
        assert module.decode(packed) == datetime.datetime(1970, 1, 1, 0, 0, 1, 2, tzinfo=UTC)


# Registrations


ENDPOINT = EndpointId(namespace="n", component="c", name="e")
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,20}", fullmatch=True)
INSTANCES = st.builds(
    Instance,
    endpoint_id=st.builds(EndpointId, namespace=NAMES, component=NAMES, name=NAMES),
    instance_id=st.integers(1, 2**53 - 1),
    incarnation=st.integers(0, 2**64 - 1),
    addresses=st.lists(st.text(), max_size=3).map(tuple),
    phase=st.sampled_from(Phase),
    name=st.none() | st.text(),
    idempotent=st.booleans(),
    metadata=st.dictionaries(st.text(), JSON_VALUES, max_size=4),
    started=st.none() | st.integers(),
)


def an_instance(**changes: Any) -> Instance:
    return attrs.evolve(
        Instance(endpoint_id=ENDPOINT, instance_id=7, incarnation=10, addresses=("tcp://h:1",)), **changes
    )


@given(INSTANCES)
def test_a_registration_arrives_whole(instance: Instance) -> None:
    data = codec.encode_instance(instance)
    assert codec.decode_instance(data) == instance
    assert codec.decode_instance(data.decode()) == instance


def test_a_registration_is_readable() -> None:
    assert json.loads(codec.encode_instance(an_instance())) == {
        "namespace": "n", "component": "c", "endpoint": "e", "instance_id": 7, "incarnation": "a",
        "addresses": ["tcp://h:1"], "phase": "ready",
    }  # fmt: skip


@pytest.mark.parametrize(
    "metadata,words",
    [
        ({"k": object()}, "object"),
        ({"k": float("nan")}, "JSON"),
        ({"k": {1: "x"}}, "key 1 "),
        ({None: "x"}, "key None "),
        ({"k": [{True: 1}]}, "key True "),
        ({"k": b"x"}, "bytes"),
        ({"k": cyclic()}, "Circular|recursion"),
        ({"k": nested(100_000)}, "recursion"),
    ],
)
def test_metadata_that_is_not_json_is_refused_by_name(metadata: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"the metadata of n/c/e/7 is not JSON: .*({words})"):
        codec.encode_instance(an_instance(metadata=metadata))


def a_record(**changes: Any) -> bytes:
    record = json.loads(codec.encode_instance(an_instance())) | changes
    return json.dumps({name: value for name, value in record.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    "data,words",
    [
        (b"", "JSON"),
        (b"\xff", "utf-8"),
        (b"{}", "addresses"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[" * 100_000, "recursion"),
        (a_record(namespace=...), "namespace"),
        (a_record(component=1), "bad component name 1"),
        (a_record(endpoint="a.b"), "bad endpoint name 'a.b'"),
        (a_record(addresses=...), "addresses"),
        (a_record(addresses="tcp://h:1"), "addresses: not a list of strings"),
        (a_record(addresses=[1]), "addresses: not a list of strings"),
        (a_record(instance_id="7"), "instance_id: not an integer"),
        (a_record(instance_id=True), "instance_id: not an integer"),
        (a_record(instance_id=0), "instance_id: not an integer"),
        (a_record(instance_id=2**53), "instance_id: not an integer"),
        (a_record(instance_id=...), "instance_id"),
        (a_record(incarnation=...), "incarnation"),
        (a_record(incarnation=10), "incarnation: not hex"),
        (a_record(incarnation=""), "incarnation: not hex"),
        (a_record(incarnation="-1"), "incarnation: not hex"),
        (a_record(incarnation="1" * 17), "incarnation: not hex"),
        (a_record(incarnation="xyz"), "incarnation: not hex"),
        (a_record(phase="gone"), "'gone' is not a valid Phase"),
        (a_record(phase=["ready"]), "is not a valid Phase"),
        (a_record(name=1), "name: not a string"),
        (a_record(metadata=[]), "metadata: not an object"),
        (a_record(metadata=None), "metadata: not an object"),
    ],
)
def test_an_unreadable_registration_is_told_by_its_field(data: bytes, words: str) -> None:
    with pytest.raises(BadPayloadError, match=f"unreadable instance record: .*{words}"):
        codec.decode_instance(data)


@pytest.mark.parametrize("started", [..., None, "yesterday", True, 1.5])
def test_an_instance_is_found_whatever_its_record_says_of_its_age(started: Any) -> None:
    assert codec.decode_instance(a_record(started=started)).started is None


def test_fields_of_a_later_version_are_passed_over() -> None:
    assert codec.decode_instance(a_record(color="red", later={"a": [1]})) == an_instance()


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode) | JSON_VALUES.map(json.dumps))
def test_anything_else_is_a_bad_payload(data: Any) -> None:
    with pytest.raises(BadPayloadError):
        codec.decode_instance(data)


@given(st.data())
def test_a_changed_registration_is_read_or_refused(data: st.DataObject) -> None:
    record = json.loads(a_record(name="x", metadata={"a": 1}))
    record[data.draw(st.sampled_from(sorted(record)))] = data.draw(JSON_VALUES)
    try:
        assert isinstance(codec.decode_instance(json.dumps(record)), Instance)
    except BadPayloadError:
        pass
