"""A caller from outside as a fuzzer needs it: it knows what it said, and what has to come of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import hpack
import msgpack
from attrs import define, field

from dynamo.adapters.request_plane.http2.connection import Http2Connection
from dynamo.adapters.request_plane.http2.framing import LAST, NO_ITEM, STOP
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.errors import BadPayloadError, RemoteError
from unit.http2.attacks import (
    ACK,
    CODES,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    u32,
)
from unit.http2.test_connection import feed, output

NATIVE = "application/vnd.dynamo.stream"
SETTING_VALUES = [
    (1, 0),
    (1, 100),
    (1, 2**20),
    (3, 1),
    (4, 0),
    (4, 1),
    (4, 2**18),
    (5, 2**14),
    (5, 2**24 - 1),
    (6, 1000),
]


def message(flags: int, body: bytes = b"") -> bytes:
    return struct.pack(">BI", flags, len(body)) + body


def cut(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Type, flags, stream and body of each frame."""
    found, at = [], 0
    while at < len(data):
        after = at + 9 + int.from_bytes(data[at : at + 3])
        found.append(
            (data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9]), data[at + 9 : after])
        )
        at = after
    assert at == len(data), "half a frame was said"
    return found


@define(eq=False)
class Asked:
    """One call, and what was heard of it."""

    native: bool
    do: str
    items: list[Any]
    ended: bool = False
    cancelled: bool = False
    fields: dict[str, str] = field(factory=dict)
    data: bytearray = field(factory=bytearray)
    over: bool = False


class Handler:
    """What the worker does with a call is in its payload."""

    def __init__(self) -> None:
        self.held: list[Http2Call] = []

    def accept(self, call: Http2Call) -> None:
        try:
            asked = msgpack.unpackb(bytes(call.request.payload or b"\xc0"))
        except ValueError:
            call.refuse(BadPayloadError("no MessagePack"))
            return
        match asked.get("do") if type(asked) is dict else None:
            case "fail":
                call.send(b"\x01")
                call.fail(RemoteError("as was asked", type_name="ValueError"))
            case "many":
                for number in range(40):
                    call.send(msgpack.packb({"number": number, "text": "x" * 200}))
                call.end()
            case "hold":
                self.held.append(call)
            case _:
                call.send(msgpack.packb(asked), end=True)

    def turn(self) -> None:
        for call in self.held:
            while (item := call.receive_nowait()) is not None:
                call.send(item)
            if call.ended and not call.out_done:
                call.end()


class Caller:
    """``step`` does something that is right; ``say`` sends any bytes."""

    def __init__(self, worker: Http2Connection, handler: Handler) -> None:
        self.worker, self.handler = worker, handler
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.next_id = 1
        self.asked: dict[int, Asked] = {}
        self.pings = self.pongs = self.acks = 0
        self.goodbyes: list[int] = []
        self.resets: list[int] = []
        self.piece = 0  # how many bytes are fed at once, 0 for all
        self.decoder.max_allowed_table_size = 2**20  # what "settings" may say

    def say(self, data: bytes) -> None:
        """Any bytes, and hear what comes of them."""
        for at in range(0, len(data), self.piece or max(1, len(data))):
            feed(self.worker, data[at : at + self.piece] if self.piece else data)
        self.handler.turn()
        self.hear()

    def hear(self) -> None:
        for kind, flags, stream, body in cut(output(self.worker)):
            asked = self.asked.get(stream)
            match kind:
                case 0 if asked is not None:  # else of a call that a mutation made
                    asked.data += body
                case 1:
                    fields: dict[str, str] = dict(self.decoder.decode(body))  # type: ignore[arg-type]
                    if asked is not None:
                        asked.fields |= fields
                case 3:
                    self.resets.append(int.from_bytes(body))
                case 4:
                    self.acks += flags & ACK
                case 6:
                    self.pongs += flags & ACK
                case 7:
                    self.goodbyes.append(int.from_bytes(body[4:8]))
            if kind in (DATA, HEADERS) and flags & END_STREAM and asked is not None:
                asked.over = True

    # What is right.

    def open(self, native: bool, do: str, number: int, *, end: bool = True) -> bytes:
        stream, self.next_id = self.next_id, self.next_id + 2
        payload = {"do": do, "number": number}
        asked = self.asked[stream] = Asked(native, do, [payload], end)
        fields = [*REQUEST[:4], ("content-type", NATIVE if native else "application/json")]
        if native and end:
            fields.append(("dynamo-input", "ended"))
        if number & 1:
            fields.append(("dynamo-meta-a", "b" * (number % 64)))
        block = self.encoder.encode(fields)
        if number & 2:  # in pieces
            third = len(block) // 3
            said = frame(HEADERS, 0, stream, block[:third]) + frame(
                CONTINUATION, 0, stream, block[third : 2 * third]
            )
            said += frame(CONTINUATION, END_HEADERS, stream, block[2 * third :])
        else:
            said = frame(HEADERS, END_HEADERS, stream, block)
        body = message(0, msgpack.packb(payload)) if native else json.dumps(payload).encode()
        last = END_STREAM if asked.ended and not (native and number & 4) else 0
        if number & 8:
            half = len(body) // 2
            return said + frame(DATA, 0, stream, body[:half]) + frame(DATA, last, stream, body[half:])
        if number & 16:
            return said + frame(DATA, last | PADDED, stream, b"\x03" + body + bytes(3))
        return said + frame(DATA, last, stream, body)

    def _one_that_is_open(self, number: int) -> tuple[int, Asked] | None:
        here = [
            pair for pair in self.asked.items() if not (pair[1].ended or pair[1].cancelled or pair[1].over)
        ]
        return here[number % len(here)] if here else None

    def step(self, what: str, number: int) -> bytes:
        """What to say for it; nothing where it does not apply."""
        match what:
            case "json":
                return self.open(False, ("echo", "many", "fail", "echo")[number >> 6], number)
            case "native":
                return self.open(True, ("echo", "many", "fail", "hold")[number >> 6], number)
            case "native that stays":
                return self.open(True, "hold", number, end=False)
            case "ping":
                self.pings += 1
                return frame(PING, 0, 0, bytes([number] * 8))
            case "settings":
                return frame(
                    SETTINGS, 0, 0, struct.pack(">HI", *SETTING_VALUES[number % len(SETTING_VALUES)])
                )
            case "window":
                return frame(WINDOW_UPDATE, 0, 0, u32(number * 250 + 1))
            case "priority":
                return frame(PRIORITY, 0, 2 * number + 1, u32(2**31 - 1) + b"\x05")
            case "unknown":
                return frame(10 + number % 246, number, self.next_id - 2 & 2**31 - 1, bytes(number % 50))
            case "late":
                over = [stream for stream, asked in self.asked.items() if asked.over or asked.cancelled]
                if not over:
                    return b""
                kind, body = ((WINDOW_UPDATE, u32(5)), (RST_STREAM, u32(8)))[number & 1]
                return frame(kind, 0, over[number % len(over)], body)
        found = self._one_that_is_open(number)
        if found is None:
            return b""
        stream, asked = found
        match what:
            case "item":
                asked.items.append(number)
                return frame(DATA, 0, stream, message(0, msgpack.packb(number)))
            case "items":
                asked.items += range(number % 20)
                return frame(
                    DATA, 0, stream, b"".join(message(0, msgpack.packb(n)) for n in range(number % 20))
                )
            case "stop":
                return frame(DATA, 0, stream, message(STOP | NO_ITEM))
            case "end":
                asked.ended = True
                if number & 1:
                    return frame(DATA, END_STREAM, stream)
                return frame(DATA, 0, stream, message(LAST | NO_ITEM))
            case "cancel":
                asked.cancelled = True
                return frame(RST_STREAM, 0, stream, u32((CODES.CANCEL, CODES.INTERNAL_ERROR)[number & 1]))
        raise AssertionError(what)

    def check(self) -> None:
        """Everything was right: all calls had their answers, and the connection lives."""
        self.say(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**20)) + frame(WINDOW_UPDATE, 0, 0, u32(2**24)))
        assert not self.worker.closed, self.worker.error
        assert self.goodbyes == []
        assert set(self.resets) <= {CODES.NO_ERROR}
        assert self.pongs == self.pings
        for stream, asked in self.asked.items():
            if not asked.cancelled:
                assert asked.over is asked.ended, (stream, asked)
                _ANSWERS[asked.native](asked)


def _native_answer(asked: Asked) -> None:
    items, data = [], bytes(asked.data)
    while data:
        flags, length = struct.unpack_from(">BI", data)
        assert flags == 0
        items.append(msgpack.unpackb(data[5 : 5 + length]))
        data = data[5 + length :]
    if asked.over:
        assert asked.fields["dynamo-end"] == ("RemoteError" if asked.do == "fail" else "ok")
    if asked.do in ("echo", "hold"):
        expected = asked.items if asked.do == "echo" else asked.items[1:]
        assert items == expected, asked
    else:
        assert len(items) == (40 if asked.do == "many" else 1)


def _json_answer(asked: Asked) -> None:
    lines = [json.loads(line) for line in asked.data.splitlines()]
    assert asked.fields[":status"] == "200"
    match asked.do:
        case "echo":
            assert lines == asked.items
        case "many":
            assert len(lines) == 40
        case "fail":
            assert lines[0] == 1
            assert lines[1]["error"]["status"] == 500


_ANSWERS: dict[bool, Callable[[Asked], None]] = {True: _native_answer, False: _json_answer}
