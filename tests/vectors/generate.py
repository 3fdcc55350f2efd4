"""Write the wire protocol's test vectors, laid out by hand from docs/wire-protocol.md.

python tests/vectors/generate.py          writes the JSON files beside this script
python tests/vectors/generate.py --check  fails if they differ from what it would write

It imports nothing of dynamo on purpose: these bytes are what the implementation is checked against.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path
from typing import Any

import msgpack

HERE = Path(__file__).parent
MAGIC = bytes.fromhex("8944594e0d0a1a0a")

HELLO, AUTH, OPEN, ITEM, END, ERROR, STOP, KILL, WINDOW, PING, PONG, GOAWAY = range(1, 13)
NAMES = "HELLO AUTH OPEN ITEM END ERROR STOP KILL WINDOW PING PONG GOAWAY".split()
F_END, F_MORE, F_RAW, F_ITEM = 1, 2, 4, 8

CODES = {
    "ERROR": 0, "WIRE": 1, "AUTH": 2, "REMOTE": 3, "UNAVAILABLE": 4, "NO_INSTANCES": 5, "DRAINING": 6,
    "OVERLOADED": 7, "UNKNOWN_ENDPOINT": 8, "WRONG_INSTANCE": 9, "DEADLINE": 10, "CANCELLED": 11,
    "STREAM_BROKEN": 12, "CARDINALITY": 13, "TOO_LARGE": 14, "BAD_PAYLOAD": 15, "ENCODE": 16, "CONFIG": 17,
    "UNSUPPORTED": 18, "CONFLICT": 19, "CLOSED": 20, "LEASE_LOST": 21, "MISSING_EXTRA": 22,
}  # fmt: skip
SAFE, UNKNOWN, NEVER = 0, 1, 2
RETRIES = ["SAFE", "UNKNOWN", "NEVER"]

INSTANCE, INCARNATION = 0x1234, 0xFEDCBA9876543210
DIALER_INSTANCE, DIALER_INCARNATION = 0x77, 0x0102030405060708
TOKEN = "correct horse battery staple"
DIALER_NONCE = bytes(range(32))
LISTENER_NONCE = bytes(range(100, 132))
ENDPOINT = "demo.backend.generate"


def frame(kind: int, stream: int = 0, body: bytes = b"", flags: int = 0, zero: int = 0) -> bytes:
    return struct.pack("<IBBHQ", len(body), kind, flags, zero, stream) + body


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def proof(side: str) -> bytes:
    text = f"dynamo-wire-1 {side}".encode() + DIALER_NONCE + LISTENER_NONCE
    return hmac.new(TOKEN.encode(), text, hashlib.sha256).digest()


def hello(**fields: Any) -> bytes:
    """A HELLO frame; ``fields`` are keys of section 4 by name, None leaves one out."""
    names = (
        "min_version max_version features instance_id incarnation expected_instance_id expected_incarnation "
        "window max_message max_streams max_head nonce proof"
    ).split()
    fields = {"min_version": 1, "max_version": 1} | fields
    return frame(
        HELLO, 0, pack({names.index(key): fields[key] for key in names if fields.get(key) is not None})
    )


def head(endpoint: Any = ENDPOINT, request_id: Any = "r-1", **fields: Any) -> bytes:
    names = "endpoint request_id attempt timeout_us window metadata priority".split()
    fields = {"endpoint": endpoint, "request_id": request_id} | fields
    return pack({names.index(key): fields[key] for key in names if fields.get(key) is not None})


def open_body(head_bytes: bytes, rest: bytes = b"") -> bytes:
    return u32(len(head_bytes)) + head_bytes + rest


def open_frame(stream: int, item: bytes | None = None, flags: int = 0, **fields: Any) -> bytes:
    if item is not None:
        flags |= F_ITEM
    return frame(OPEN, stream, open_body(head(**fields), item or b""), flags)


def error_body(code: str | int, retry: int = NEVER, message: str = "", **fields: Any) -> bytes:
    names = "code retry message remote type_name status detail received".split()
    number = CODES[code] if isinstance(code, str) else code
    known = {"code": number, "retry": retry} | ({"message": message} if message else {}) | fields
    return pack({names.index(key): known[key] for key in names if key in known})


DIALER_HELLO = hello(
    instance_id=DIALER_INSTANCE,
    incarnation=DIALER_INCARNATION,
    expected_instance_id=INSTANCE,
    expected_incarnation=INCARNATION,
)
LISTENER_HELLO = hello(instance_id=INSTANCE, incarnation=INCARNATION)
FIRST = pack({"n": 1})


# Decoding, for the reader of the JSON only.


def readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        return {
            str(key) if type(key) is int else f"text {key!r}": readable(inner) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [readable(inner) for inner in value]
    return value


def exact(value: Any) -> Any:
    """Integers past 2^53 as decimal strings: many JSON readers would round them."""
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [exact(inner) for inner in value]
    return str(value) if type(value) is int and abs(value) > 2**53 else value


def meaning(data: bytes) -> list[dict[str, Any]]:
    """Header fields of each frame in ``data``, and its map where it has one."""
    frames: list[dict[str, Any]] = []
    if data.startswith(MAGIC):
        frames.append({"magic": MAGIC.hex()})
        data = data[8:]
    while len(data) >= 16:
        length, kind, flags, zero, stream = struct.unpack_from("<IBBHQ", data)
        body, data = data[16 : 16 + length], data[16 + length :]
        if len(body) < length:
            break
        known = 1 <= kind <= len(NAMES)
        one: dict[str, Any] = {"length": length, "type": NAMES[kind - 1] if known else f"0x{kind:02x}"}
        letters = [name for bit, name in ((1, "END"), (2, "MORE"), (4, "RAW"), (8, "ITEM")) if flags & bit]
        letters += [f"0x{bit:02x}" for bit in (16, 32, 64, 128) if flags & bit]
        one |= {"flags": letters} if letters else {}
        one |= {"zero": zero} if zero else {}
        one["stream"] = stream
        try:
            if kind == ERROR and not body:
                raise ValueError("empty")
            if kind in (HELLO, AUTH, ERROR):
                one["map"] = readable(msgpack.unpackb(body, strict_map_key=False))
            elif kind == OPEN:
                size = struct.unpack_from("<I", body)[0]
                one["head"] = readable(msgpack.unpackb(body[4 : 4 + size], strict_map_key=False))
                if flags & F_ITEM:
                    one["rest"] = shortened(body[4 + size :])
            elif kind in (WINDOW, GOAWAY) and length == 8:
                one["value"] = struct.unpack("<Q", body)[0]
            elif body:
                one["body"] = shortened(body)
        except Exception:
            one["unreadable"] = True
        frames.append(one)
    if data:
        frames.append({"incomplete": shortened(data)})
    return frames


def shortened(data: bytes) -> str:
    return data.hex() if len(data) <= 64 else f"{data[:16].hex()}... ({len(data)} bytes)"


# Long runs of one byte keep the files small: {"hex"} or a list of {"hex"} and {"repeat", "times"}.


def written(data: bytes) -> Any:
    if len(data) <= 2048:
        return data.hex()
    parts: list[Any] = []
    at = start = 0
    while at < len(data):
        run = at
        while run < len(data) and data[run] == data[at]:
            run += 1
        if run - at >= 64:
            if start < at:
                parts.append(data[start:at].hex())
            parts.append({"repeat": data[at : at + 1].hex(), "times": run - at})
            start = run
        at = run
    if start < len(data):
        parts.append(data[start:].hex())
    return parts


SETUPS: dict[str, dict[str, Any]] = {
    "L:nothing": {"receiver": "listener", "hex": b"", "about": "connected, nothing received"},
    "L:magic": {"receiver": "listener", "hex": MAGIC, "about": "the magic received"},
    "L:hello": {"receiver": "listener", "hex": MAGIC + DIALER_HELLO, "about": "opening done, no stream yet"},
    "L:token": {
        "receiver": "listener",
        "token": True,
        "hex": MAGIC + hello(nonce=DIALER_NONCE),
        "about": "the listener has the token; it has sent HELLO with nonce and proof and waits for AUTH",
    },
    "L:token, magic": {
        "receiver": "listener",
        "token": True,
        "hex": MAGIC,
        "about": "as L:magic, with the token",
    },
    "L:open": {
        "receiver": "listener",
        "hex": MAGIC + DIALER_HELLO + open_frame(5, FIRST),
        "about": "stream 5 is open, its handler runs, took the first item and has sent nothing",
    },
    "L:input ended": {
        "receiver": "listener",
        "hex": MAGIC + DIALER_HELLO + open_frame(5, FIRST, F_END),
        "about": "as L:open, but the input ended with the first item",
    },
    "L:fragment": {
        "receiver": "listener",
        "hex": MAGIC
        + DIALER_HELLO
        + open_frame(5, FIRST)
        + frame(ITEM, 5, u64(1000) + b"a" * 100, F_MORE | F_RAW),
        "about": "as L:open, and 100 of the 1,000 bytes of a raw item have arrived",
    },
    "L:killed": {
        "receiver": "listener",
        "hex": MAGIC + DIALER_HELLO + open_frame(5, FIRST) + frame(KILL, 5),
        "about": "stream 5 was opened and killed",
    },
    "L:draining": {
        "receiver": "listener",
        "hex": MAGIC + DIALER_HELLO + open_frame(5, FIRST),
        "goaway": [2**64 - 1, 5],
        "about": "as L:open, and then the listener sent GOAWAY 2^64-1 and GOAWAY 5",
    },
    "L:small limits": {
        "receiver": "listener",
        "hex": MAGIC + DIALER_HELLO + open_frame(5, FIRST),
        "limits": {"max_message": 1000, "max_head": 200, "max_streams": 1},
        "about": "as L:open, at a listener whose HELLO has these limits",
    },
    "L:short items": {
        "receiver": "listener",
        "hex": MAGIC + DIALER_HELLO,
        "limits": {"max_message": 1000},
        "about": "as L:hello, at a listener that takes items of 1,000 bytes at most",
    },
    "D:nothing": {"receiver": "dialer", "hex": b"", "about": "the dialer sent magic and HELLO"},
    "D:magic": {"receiver": "dialer", "hex": MAGIC, "about": "the listener's magic received"},
    "D:early open": {
        "receiver": "dialer",
        "opens": True,
        "hex": MAGIC,
        "about": "the dialer opened stream 1 right after its HELLO; the listener's magic received",
    },
    "D:token": {
        "receiver": "dialer",
        "token": True,
        "hex": MAGIC,
        "about": "the dialer has the token and sent its nonce; the listener's magic received",
    },
    "D:token open": {
        "receiver": "dialer",
        "token": True,
        "opens": True,
        "hex": MAGIC
        + hello(instance_id=INSTANCE, incarnation=INCARNATION, nonce=LISTENER_NONCE, proof=proof("listener")),
        "about": "the dialer has the token, has read the listener's proof, sent AUTH and opened stream 1",
    },
    "D:hello": {"receiver": "dialer", "hex": MAGIC + LISTENER_HELLO, "about": "opening done, no stream yet"},
    "D:open": {
        "receiver": "dialer",
        "opens": True,
        "hex": MAGIC + LISTENER_HELLO,
        "about": "stream 1 is open, its input too (no first item sent)",
    },
    "D:input ended": {
        "receiver": "dialer",
        "opens": True,
        "ends": True,
        "hex": MAGIC + LISTENER_HELLO,
        "about": "stream 1 is open, its input has ended",
    },
    "D:fragment": {
        "receiver": "dialer",
        "opens": True,
        "hex": MAGIC + LISTENER_HELLO + frame(ITEM, 1, u64(1000) + b"a" * 100, F_MORE | F_RAW),
        "about": "as D:open, and 100 of the 1,000 bytes of a raw item have arrived",
    },
    "D:one item": {
        "receiver": "dialer",
        "opens": True,
        "hex": MAGIC + LISTENER_HELLO + frame(ITEM, 1, FIRST),
        "about": "as D:open, and one item of the response arrived",
    },
    "D:ended": {
        "receiver": "dialer",
        "opens": True,
        "hex": MAGIC + LISTENER_HELLO + frame(END, 1),
        "about": "stream 1 ended",
    },
    "D:small limits": {
        "receiver": "dialer",
        "opens": True,
        "hex": MAGIC + LISTENER_HELLO,
        "limits": {"max_message": 1000},
        "about": "as D:open, at a dialer that takes items of 1,000 bytes at most",
    },
}

CASES: list[dict[str, Any]] = []


def case(setup: str, name: str, data: bytes, verdict: str, **effect: Any) -> None:
    """verdict: accepted, skipped, dropped, fails stream, closes, incomplete (nothing can be said yet)."""
    CASES.append({"name": name, "setup": setup, "data": data, "verdict": verdict, "effect": effect})


def closes(
    setup: str, name: str, data: bytes, code: str = "WIRE", retry: int = UNKNOWN, **effect: Any
) -> None:
    case(setup, name, data, "closes", code=code, retry=RETRIES[retry], **effect)


def fails(setup: str, name: str, data: bytes, code: str = "WIRE", stream: int | None = None) -> None:
    retry = {"WIRE": "UNKNOWN", "OVERLOADED": "SAFE"}.get(code, "NEVER")
    number = stream if stream is not None else (5 if setup.startswith("L") else 1)
    case(setup, name, data, "fails stream", stream=number, code=code, retry=retry)


def all_frames() -> None:
    both = (("L:open", 5), ("D:open", 1))

    # The magic and the first frame
    case("L:nothing", "magic", MAGIC, "accepted")
    case("L:nothing", "half of the magic", MAGIC[:4], "incomplete")
    closes("L:nothing", "not the magic: HTTP", b"GET / HTTP/1.1\r\n", silent=True)
    closes("L:nothing", "not the magic: TLS", bytes.fromhex("16030100f5010000f1"), silent=True)
    closes("L:nothing", "not the magic: wrong in its last byte", MAGIC[:7] + b"\x00", silent=True)
    case("D:nothing", "magic", MAGIC, "accepted")
    closes("D:nothing", "not the magic: HTTP", b"HTTP/1.1 400 Bad Request\r\n", silent=True)
    closes("D:nothing", "not the magic: a TLS alert", bytes.fromhex("15030300020232"), silent=True)
    for setup in ("L:magic", "D:magic"):
        closes(setup, "PING before HELLO", frame(PING, 0, b"12345678"))
        closes(setup, "a type to be skipped before HELLO", frame(0x40))
        closes(setup, "zero type", bytes(16))
    closes("D:magic", "ITEM before HELLO", frame(ITEM, 1, FIRST))
    closes(
        "D:magic",
        "ERROR on a stream before HELLO, that could be read as a HELLO",
        frame(ERROR, 1, pack({0: 1, 1: 1})),
    )
    closes("L:magic", "ERROR on stream 0 before HELLO", frame(ERROR, 0, error_body("WIRE")))

    # HELLO
    case("L:magic", "the shortest HELLO", hello(), "accepted")
    case(
        "L:magic", "HELLO that expects this instance", DIALER_HELLO, "accepted", sends=MAGIC + LISTENER_HELLO
    )
    case(
        "L:magic",
        "HELLO with every key that a dialer sends, and unknown ones",
        frame(
            HELLO, 0,
            pack({0: 1, 1: 7, 2: 2**64 - 1, 3: 2**53 - 1, 4: 2**64 - 1, 5: INSTANCE, 6: INCARNATION, 7: 2**31 - 1,
                  8: 2**31 - 1, 9: 2**31 - 1, 10: 2**31 - 1, 11: DIALER_NONCE, 13: "new", 1000: [1, {"a": None}]}),
        ),
        "accepted",
    )  # fmt: skip
    case("L:magic", "expected instance id only", hello(expected_instance_id=INSTANCE), "accepted")
    case("L:magic", "expected incarnation only", hello(expected_incarnation=INCARNATION), "accepted")
    closes("L:magic", "another instance expected", hello(expected_instance_id=0x9999), "WRONG_INSTANCE", SAFE)
    closes(
        "L:magic", "another incarnation expected",
        hello(expected_instance_id=INSTANCE, expected_incarnation=1), "WRONG_INSTANCE", SAFE,
    )  # fmt: skip
    closes("L:magic", "only later versions", hello(min_version=2, max_version=9), "UNSUPPORTED", SAFE)
    closes("L:token, magic", "no nonce where a token is needed", hello(), "AUTH", NEVER)
    closes(
        "L:token, magic", "version is checked before the token",
        hello(min_version=2, max_version=2), "UNSUPPORTED", SAFE,
    )  # fmt: skip
    case(
        "L:token, magic", "HELLO with nonce", hello(nonce=DIALER_NONCE), "accepted",
        sends=MAGIC + hello(instance_id=INSTANCE, incarnation=INCARNATION, nonce=LISTENER_NONCE, proof=proof("listener")),
    )  # fmt: skip
    malformed = {
        "not a map": pack([1, 1]),
        "empty body": b"",
        "text keys": pack({"0": 1, "1": 1}),
        "negative key": pack({0: 1, 1: 1, -1: 0}),
        "min_version missing": pack({1: 1}),
        "max_version missing": pack({0: 1}),
        "min_version 0": pack({0: 0, 1: 1}),
        "max below min": pack({0: 2, 1: 1}),
        "version is a float": pack({0: 1.0, 1: 1}),
        "version is a boolean": pack({0: True, 1: 1}),
        "max_version above 65,535": pack({0: 1, 1: 65536}),
        "instance_id 2^53": pack({0: 1, 1: 1, 3: 2**53}),
        "negative incarnation": pack({0: 1, 1: 1, 4: -1}),
        "window 2^31": pack({0: 1, 1: 1, 7: 2**31}),
        "window 127": pack({0: 1, 1: 1, 7: 127}),
        "window is nil": pack({0: 1, 1: 1, 7: None}),
        "4,097 bytes": pack({0: 1, 1: 1, 99: bytes(4088)}),
        "max_message 0": pack({0: 1, 1: 1, 8: 0}),
        "nonce of 31 bytes": pack({0: 1, 1: 1, 11: bytes(31)}),
        "nonce is text": pack({0: 1, 1: 1, 11: "x" * 32}),
        "bytes after the map": pack({0: 1, 1: 1}) + b"\xc0",
        "map cut short": pack({0: 1, 1: 1})[:-1],
        "not MessagePack": b"\xc1",
    }
    for name, body in malformed.items():
        closes("L:magic", f"malformed HELLO: {name}", frame(HELLO, 0, body))
    closes("D:magic", "malformed HELLO: not a map", frame(HELLO, 0, pack([1, 1])))
    closes("L:hello", "a second HELLO", DIALER_HELLO)
    closes("D:hello", "a second HELLO", LISTENER_HELLO)
    closes("L:magic", "HELLO on a stream", frame(HELLO, 1, DIALER_HELLO[16:]))
    closes("L:magic", "HELLO with a flag", frame(HELLO, 0, DIALER_HELLO[16:], F_END))
    case("D:magic", "HELLO of the listener", LISTENER_HELLO, "accepted")
    closes(
        "D:magic", "another instance answers", hello(instance_id=0x9999, incarnation=INCARNATION),
        "WRONG_INSTANCE", SAFE,
    )  # fmt: skip
    closes(
        "D:magic",
        "another incarnation answers",
        hello(instance_id=INSTANCE, incarnation=1),
        "WRONG_INSTANCE",
        SAFE,
    )
    closes("D:magic", "no common version", hello(min_version=2, max_version=3), "UNSUPPORTED", SAFE)
    closes(
        "D:early open", "another instance answers, and OPEN was sent already",
        hello(instance_id=0x9999, incarnation=INCARNATION), "WRONG_INSTANCE", SAFE, stream=1, stream_retry="UNKNOWN",
    )  # fmt: skip
    closes(
        "D:early open", "no common version, and OPEN was sent already",
        hello(min_version=2, max_version=3), "UNSUPPORTED", SAFE, stream=1, stream_retry="UNKNOWN",
    )  # fmt: skip
    refusals = (
        ("WRONG_INSTANCE", "WRONG_INSTANCE", SAFE),
        ("AUTH", "AUTH", NEVER),
        ("DRAINING", "DRAINING", SAFE),
    )
    for name, code, retry in refusals:
        closes(
            "D:early open", f"ERROR {name} in place of HELLO",
            frame(ERROR, 0, error_body(code, retry, "no")), code, retry, stream=1, silent=True,
        )  # fmt: skip

    # AUTH
    case("L:token", "the right proof", frame(AUTH, 0, pack({0: proof("dialer")})), "accepted")
    case("L:token", "the right proof and an unknown key",
         frame(AUTH, 0, pack({0: proof("dialer"), 9: 1})), "accepted")  # fmt: skip
    closes("L:token", "wrong proof", frame(AUTH, 0, pack({0: bytes(32)})), "AUTH", NEVER)
    closes(
        "L:token",
        "the listener's own proof sent back",
        frame(AUTH, 0, pack({0: proof("listener")})),
        "AUTH",
        NEVER,
    )
    closes("L:token", "proof of 31 bytes", frame(AUTH, 0, pack({0: bytes(31)})))
    closes("L:token", "no proof", frame(AUTH, 0, pack({})))
    closes("L:token", "OPEN before AUTH", open_frame(1, FIRST), "AUTH", NEVER)
    closes("L:token", "PING before AUTH", frame(PING, 0, b"12345678"), "AUTH", NEVER)
    closes("L:token", "a type to be skipped before AUTH", frame(0x40), "AUTH", NEVER)
    closes("L:token", "a second HELLO before AUTH", hello(nonce=DIALER_NONCE))
    closes("L:token", "a long OPEN before AUTH", open_frame(1, bytes(9000), F_RAW), "AUTH", NEVER)
    closes("L:token", "a framing violation before AUTH", frame(0x80))
    closes("L:token", "ERROR on a stream before AUTH", frame(ERROR, 1, error_body("WIRE")))
    closes(
        "L:token",
        "ERROR on stream 0 before AUTH",
        frame(ERROR, 0, error_body("AUTH", NEVER, "no")),
        "AUTH",
        NEVER,
        silent=True,
    )
    closes("L:token", "AUTH of 4,097 bytes", frame(AUTH, 0, pack({0: proof("dialer"), 9: bytes(4057)})))
    closes("D:token open", "ERROR AUTH after OPEN was sent", frame(ERROR, 0, error_body("AUTH", NEVER, "no")), "AUTH", NEVER,
           silent=True, stream=1)  # fmt: skip
    closes("L:hello", "AUTH without a token", frame(AUTH, 0, pack({0: proof("dialer")})))
    closes("D:hello", "AUTH from the listener", frame(AUTH, 0, pack({0: proof("dialer")})))
    case(
        "D:token", "nonce and proof",
        hello(instance_id=INSTANCE, incarnation=INCARNATION, nonce=LISTENER_NONCE, proof=proof("listener")),
        "accepted", sends=frame(AUTH, 0, pack({0: proof("dialer")})),
    )  # fmt: skip
    closes("D:token", "neither nonce nor proof", LISTENER_HELLO, "AUTH", NEVER)
    closes(
        "D:token", "nonce without proof",
        hello(instance_id=INSTANCE, incarnation=INCARNATION, nonce=LISTENER_NONCE), "AUTH", NEVER,
    )  # fmt: skip
    closes(
        "D:token", "wrong proof",
        hello(instance_id=INSTANCE, incarnation=INCARNATION, nonce=LISTENER_NONCE, proof=proof("dialer")),
        "AUTH", NEVER,
    )  # fmt: skip

    # Headers
    for setup, stream in both:
        closes(setup, "length 262,145", struct.pack("<IBBHQ", 262145, ITEM, 0, 0, stream))
        closes(setup, "length 262,145 of a type to be skipped", struct.pack("<IBBHQ", 262145, 0x40, 0, 0, 0))
        closes(setup, "zero is 1", frame(ITEM, stream, FIRST, zero=1))
        closes(setup, "zero is 1 in a type to be skipped", frame(0x40, 0, b"", zero=1))
        closes(setup, "type 0", frame(0))
        case(setup, "type 0x0d", frame(0x0D, 0, b"abc"), "skipped")
        case(setup, "type 0x7f with flags and stream", frame(0x7F, 2**64 - 1, b"x" * 300, 0xFF), "skipped")
        closes(setup, "type 0x80", frame(0x80))
        closes(setup, "type 0xff", frame(0xFF, stream, b"abc"))
        case(setup, "half a header", frame(ITEM, stream, FIRST)[:9], "incomplete")
        case(setup, "half a body", frame(ITEM, stream, FIRST)[:-1], "incomplete")
        for flag in (0x08, 0x10, 0x20, 0x40, 0x80):
            closes(setup, f"ITEM with flag 0x{flag:02x}", frame(ITEM, stream, FIRST, flag))
        closes(setup, "END with flag END", frame(END, stream, flags=F_END))
        closes(setup, "END with a body", frame(END, stream, b"x"))
        closes(setup, "WINDOW of 7 bytes", frame(WINDOW, stream, bytes(7)))
        closes(setup, "WINDOW with a flag", frame(WINDOW, stream, u64(1), F_END))
        closes(setup, "WINDOW on stream 0", frame(WINDOW, 0, u64(1)))
        closes(setup, "ITEM on stream 0", frame(ITEM, 0, FIRST))
        closes(setup, "END on stream 0", frame(END, 0))
        closes(setup, "PING on a stream", frame(PING, stream, bytes(8)))
        closes(setup, "PING of 7 bytes", frame(PING, 0, bytes(7)))
        closes(setup, "PONG of 9 bytes", frame(PONG, 0, bytes(9)))
        closes(setup, "ITEM on a stream never opened", frame(ITEM, stream + 1, FIRST))
        closes(setup, "WINDOW on a stream never opened", frame(WINDOW, stream + 1, u64(1)))
        case(
            setup,
            "PING",
            frame(PING, 0, b"\x00\xffpingpi"),
            "accepted",
            sends=frame(PONG, 0, b"\x00\xffpingpi"),
        )
        case(setup, "PONG nobody asked for", frame(PONG, 0, bytes(8)), "accepted")
    closes("D:open", "OPEN from the listener", open_frame(3, FIRST))
    closes("D:open", "STOP from the listener", frame(STOP, 1))
    closes("D:open", "KILL from the listener", frame(KILL, 1))
    closes("L:open", "GOAWAY from the dialer", frame(GOAWAY, 0, u64(2**64 - 1)))
    closes("L:open", "ERROR on a stream from the dialer", frame(ERROR, 5, error_body("CANCELLED")))
    closes("L:open", "STOP on a stream never opened", frame(STOP, 9))
    closes("L:open", "KILL with a body", frame(KILL, 5, b"x"))
    closes("L:open", "STOP with a flag", frame(STOP, 5, flags=F_END))
    case("L:open", "an id below that was never opened", frame(ITEM, 4, FIRST), "dropped")

    # OPEN
    everything = {
        "attempt": 3, "timeout_us": 1_500_000, "window": 4096, "metadata": {"traceparent": "00-aa-bb-01", "é": ""},
        "priority": -7,
    }  # fmt: skip
    expected = {"endpoint": ENDPOINT, "request_id": "r-1", "attempt": 1, "timeout_us": None, "window": 262144}
    expected |= {"metadata": {}, "priority": 0}

    def opened(name: str, data: bytes, stream: int = 1, **effect: Any) -> None:
        case("L:hello", name, data, "accepted", stream=stream, **effect)

    opened("OPEN with an item", open_frame(1, FIRST), head=expected, items=[FIRST], ended=False)
    opened("OPEN with the only item", open_frame(1, FIRST, F_END), head=expected, items=[FIRST], ended=True)
    opened(
        "OPEN with a raw item",
        open_frame(1, b"raw", F_RAW | F_END),
        head=expected,
        items=[b"raw"],
        raw=True,
        ended=True,
    )
    opened(
        "OPEN with an empty raw item",
        open_frame(1, b"", F_RAW),
        head=expected,
        items=[b""],
        raw=True,
        ended=False,
    )
    opened("OPEN without an item", open_frame(1), head=expected, items=[], ended=False)
    opened("OPEN without any input", open_frame(1, flags=F_END), head=expected, items=[], ended=True)
    opened(
        "OPEN with every key",
        open_frame(1, FIRST, F_END, **everything),
        head=expected | everything,
        items=[FIRST],
        ended=True,
    )
    opened(
        "OPEN with unknown keys",
        frame(OPEN, 1, open_body(pack({0: ENDPOINT, 1: "r-1", 7: [1, 2], 200: {"x": {"y": 1}}}), FIRST), F_ITEM),
        head=expected, items=[FIRST], ended=False,
    )  # fmt: skip
    opened(
        "the greatest id",
        open_frame(2**63 - 1, FIRST),
        stream=2**63 - 1,
        head=expected,
        items=[FIRST],
        ended=False,
    )
    opened(
        "OPEN with a first fragment, nothing in it, and the rest",
        open_frame(1, u64(6), F_MORE | F_RAW) + frame(ITEM, 1, b"abc", F_MORE) + frame(ITEM, 1, b"def", F_END),
        head=expected, items=[b"abcdef"], raw=True, ended=True,
    )  # fmt: skip
    opened(
        "OPEN with half of an item: not handed over yet", open_frame(1, u64(6) + b"abc", F_MORE), items=None
    )
    closes("L:hello", "OPEN with an id above 2^63 - 1", open_frame(2**63, FIRST))
    closes("L:hello", "OPEN on stream 0", open_frame(0, FIRST))
    closes("L:open", "OPEN with the id of the last stream", open_frame(5, FIRST))
    closes("L:open", "OPEN with an id below the last stream", open_frame(4, FIRST))
    closes("L:killed", "OPEN with the id of an ended stream", open_frame(5, FIRST))
    closes("L:hello", "OPEN with the flag of compression", open_frame(1, FIRST, 0x10))
    bad_heads = {
        "not a map": pack("x"),
        "text keys": pack({"endpoint": ENDPOINT}),
        "endpoint missing": pack({1: "r-1"}),
        "request_id missing": pack({0: ENDPOINT}),
        "endpoint is bytes": pack({0: b"x", 1: "r-1"}),
        "endpoint is not UTF-8": b"\x82\x00\xa1\xff\x01\xa1r",
        "attempt 0": head(attempt=0),
        "attempt is a float": head(attempt=1.0),
        "negative timeout": head(timeout_us=-1),
        "timeout is text": head(timeout_us="1"),
        "window 2^31": head(window=2**31),
        "window 127": head(window=127),
        "timeout is nil": pack({0: ENDPOINT, 1: "r-1", 3: None}),
        "metadata is a list": head(metadata=["a"]),
        "metadata with a number": head(metadata={"a": 1}),
        "metadata with a number as key": head(metadata={1: "a"}),
        "priority 2^31": head(priority=2**31),
        "bytes after the map": head() + b"\x00",
        "cut short": head()[:-1],
        "empty": b"",
    }
    for name, bad in bad_heads.items():
        fails(
            "L:hello",
            f"malformed head: {name}",
            frame(OPEN, 1, open_body(bad, FIRST), F_ITEM),
            "BAD_PAYLOAD",
            1,
        )
    fails("L:hello", "OPEN of 3 bytes", frame(OPEN, 1, b"abc"), "BAD_PAYLOAD", 1)
    fails("L:hello", "empty OPEN", frame(OPEN, 1), "BAD_PAYLOAD", 1)
    fails("L:hello", "head_length past the body", frame(OPEN, 1, u32(99) + head(), F_ITEM), "BAD_PAYLOAD", 1)
    fails(
        "L:hello",
        "bytes after the head without ITEM",
        frame(OPEN, 1, open_body(head(), FIRST)),
        "BAD_PAYLOAD",
        1,
    )
    fails("L:hello", "RAW without ITEM", frame(OPEN, 1, open_body(head()), F_RAW), "BAD_PAYLOAD", 1)
    fails("L:hello", "MORE without ITEM", frame(OPEN, 1, open_body(head()), F_MORE), "BAD_PAYLOAD", 1)
    fails("L:hello", "OPEN with MORE and END", open_frame(1, u64(6) + b"abc", F_MORE | F_END), "WIRE", 1)
    fails("L:hello", "OPEN with MORE and 7 bytes of item", open_frame(1, bytes(7), F_MORE), "WIRE", 1)
    fails("L:hello", "OPEN announces 33 MiB", open_frame(1, u64(33 << 20), F_MORE), "TOO_LARGE", 1)
    fails(
        "L:small limits",
        "head of more than max_head",
        open_frame(6, FIRST, metadata={"a": "x" * 200}),
        "TOO_LARGE",
        6,
    )
    fails("L:small limits", "more streams than max_streams", open_frame(6, FIRST), "OVERLOADED", 6)
    fails(
        "L:short items",
        "OPEN with an item over max_message",
        open_frame(1, bytes(1001), F_RAW),
        "TOO_LARGE",
        1,
    )
    fails(
        "L:short items",
        "OPEN announces an item over max_message",
        open_frame(1, u64(1001), F_RAW | F_MORE),
        "TOO_LARGE",
        1,
    )
    case("L:draining", "OPEN above the last stream taken", open_frame(7, FIRST), "dropped")
    case("L:draining", "whatever is above the last stream taken",
         open_frame(9) + open_frame(8) + frame(ITEM, 20, FIRST) + frame(KILL, 9) + frame(OPEN, 2**64 - 1), "dropped")  # fmt: skip
    case("L:draining", "ITEM above the last stream taken", open_frame(7) + frame(ITEM, 7, FIRST), "dropped")

    # ITEM, END
    for setup, stream in both:
        prefix = setup[:2]
        # The listener of L:open took the first item and owes for it: too little to give it back at once, so it still
        # counts, and it goes back as soon as an item is announced.
        spent = len(FIRST) + 64 if stream == 5 else 0
        owed = frame(WINDOW, 5, u64(spent)) if spent else b""

        def item(name: str, data: bytes, setup: str = setup, stream: int = stream, **effect: Any) -> None:
            case(setup, name, data, "accepted", stream=stream, **effect)

        item("ITEM", frame(ITEM, stream, FIRST), items=[FIRST], ended=False)
        item("the last ITEM", frame(ITEM, stream, FIRST, F_END), items=[FIRST], ended=True)
        item("raw ITEM", frame(ITEM, stream, b"\xc1\x00", F_RAW), items=[b"\xc1\x00"], raw=True, ended=False)
        item("empty raw ITEM", frame(ITEM, stream, b"", F_RAW | F_END), items=[b""], raw=True, ended=True)
        item("END", frame(END, stream), items=[], ended=True)
        item("two items in one read", frame(ITEM, stream, FIRST) + frame(ITEM, stream, FIRST, F_END),
             items=[FIRST, FIRST], ended=True)  # fmt: skip
        item(
            "three fragments, a PING between them",
            frame(ITEM, stream, u64(7) + b"ab", F_MORE | F_RAW)
            + frame(PING, 0, bytes(8))
            + frame(ITEM, stream, b"cd", F_MORE)
            + frame(ITEM, stream, b"efg", F_END),
            items=[b"abcdefg"], raw=True, ended=True, sends=owed + frame(PONG, 0, bytes(8)),
        )  # fmt: skip
        item("an item that is announced and not there yet", frame(ITEM, stream, u64(7), F_MORE),
             items=[], ended=False, sends=owed)  # fmt: skip
        big = b"z" * 131008
        item(
            "the greatest small item of the default window",
            frame(ITEM, stream, big, F_RAW),
            items=[big],
            raw=True,
            ended=False,
        )
        fails(setup, "MORE and END", frame(ITEM, stream, u64(7) + b"ab", F_MORE | F_END))
        fails(setup, "total 0", frame(ITEM, stream, u64(0), F_MORE))
        fails(setup, "total 2^53", frame(ITEM, stream, u64(2**53), F_MORE))
        fails(setup, "first fragment of 7 bytes", frame(ITEM, stream, bytes(7), F_MORE))
        fails(setup, "first fragment holds all", frame(ITEM, stream, u64(3) + b"abc", F_MORE))
        fails(setup, "first fragment holds more than all", frame(ITEM, stream, u64(2) + b"abc", F_MORE))
        fails(setup, "33 MiB announced", frame(ITEM, stream, u64(33 << 20), F_MORE), "TOO_LARGE")
        fails(f"{prefix}fragment", "empty further fragment", frame(ITEM, stream, b"", F_MORE))
        fails(f"{prefix}fragment", "RAW on a further fragment", frame(ITEM, stream, b"a", F_MORE | F_RAW))
        fails(f"{prefix}fragment", "further fragment past total", frame(ITEM, stream, b"a" * 901, F_MORE))
        fails(f"{prefix}fragment", "last fragment past total", frame(ITEM, stream, b"a" * 901))
        fails(f"{prefix}fragment", "total reached with MORE", frame(ITEM, stream, b"a" * 900, F_MORE))
        fails(f"{prefix}fragment", "total not reached without MORE", frame(ITEM, stream, b"a" * 899))
        fails(f"{prefix}fragment", "END frame within an item", frame(END, stream))
        item("the last fragment", frame(ITEM, stream, b"b" * 900, F_END), f"{prefix}fragment", stream,
             items=[b"a" * 100 + b"b" * 900], raw=True, ended=True)  # fmt: skip
        item(
            "a large item in one frame",
            frame(ITEM, stream, b"q" * 200000, F_RAW),
            items=[b"q" * 200000],
            raw=True,
            ended=False,
        )
        fails(
            f"{prefix}small limits",
            "an item over max_message and over the credit",
            frame(ITEM, stream, bytes(262144), F_RAW),
            "TOO_LARGE",
        )
        fails(
            f"{prefix}small limits",
            "an item of more than max_message",
            frame(ITEM, stream, bytes(1001), F_RAW),
            "TOO_LARGE",
        )
        fragment = 262144 - 8
        item("all of the credit but what finishing costs",
             frame(ITEM, stream, u64(262080 - spent) + bytes(fragment - spent - 64), F_MORE | F_RAW) + frame(ITEM, stream, bytes(8)),
             items=[bytes(262080 - spent)], raw=True, ended=False)  # fmt: skip
        fails(setup, "one byte more than the credit",
              frame(ITEM, stream, bytes(131008), F_RAW) + frame(ITEM, stream, bytes(131009 - spent), F_RAW))  # fmt: skip
        for increment in (0, 2**53, 2**64 - 1, 2**53 - 1):
            fails(setup, f"WINDOW of {increment}", frame(WINDOW, stream, u64(increment)))
        case(
            setup, "WINDOW", frame(WINDOW, stream, u64(4096)), "accepted", stream=stream, credit=262144 + 4096
        )
    fails("L:input ended", "ITEM after the end of the input", frame(ITEM, 5, FIRST))
    fails("L:input ended", "END after the end of the input", frame(END, 5))
    case("D:input ended", "WINDOW of 0 after the end of the input", frame(WINDOW, 1, u64(0)), "dropped")
    case("L:input ended", "WINDOW after the end of the input", frame(WINDOW, 5, u64(10)), "accepted",
         stream=5, credit=262154)  # fmt: skip
    ended = (("L:killed", 5), ("D:ended", 1))
    for setup, stream in ended:
        case(setup, "ITEM for an ended stream", frame(ITEM, stream, FIRST), "dropped")
        case(setup, "END for an ended stream", frame(END, stream), "dropped")
        case(setup, "WINDOW of 0 for an ended stream", frame(WINDOW, stream, u64(0)), "dropped")
        case(
            setup, "a wrong fragment for an ended stream", frame(ITEM, stream, b"", F_MORE | F_END), "dropped"
        )
        closes(setup, "a wrong flag for an ended stream", frame(ITEM, stream, FIRST, 0x80))
    case("L:killed", "STOP for an ended stream", frame(STOP, 5), "dropped")
    case("L:killed", "KILL for an ended stream", frame(KILL, 5), "dropped")
    case("D:ended", "ERROR for an ended stream", frame(ERROR, 1, b"\xc1"), "dropped")
    case("L:open", "STOP", frame(STOP, 5), "accepted", stream=5, stopped=True, killed=False)
    case("L:open", "STOP twice", frame(STOP, 5) * 2, "accepted", stream=5, stopped=True, killed=False)
    case("L:open", "KILL", frame(KILL, 5), "accepted", stream=5, stopped=False, killed=True, ended=True)
    case(
        "L:input ended", "KILL after the end of the input", frame(KILL, 5), "accepted", stream=5, killed=True
    )

    # ERROR
    case("D:open", "ERROR", frame(ERROR, 1, error_body("OVERLOADED", SAFE, "queue full")), "accepted",
         stream=1, items=[], ended=True, error={"code": "OVERLOADED", "retry": "SAFE", "message": "queue full"})  # fmt: skip
    case("D:one item", "SAFE after an item is UNKNOWN", frame(ERROR, 1, error_body("DRAINING", SAFE, "x")), "accepted",
         stream=1, ended=True, error={"code": "DRAINING", "retry": "UNKNOWN", "message": "x"})  # fmt: skip
    case("D:fragment", "ERROR within an item", frame(ERROR, 1, error_body("REMOTE", NEVER, "x", remote=True)), "accepted",
         stream=1, items=[], ended=True, error={"code": "REMOTE", "retry": "NEVER", "message": "x", "remote": True})  # fmt: skip
    bad_errors = {
        "not a map": pack([1]), "code missing": pack({1: 0}), "code is text": pack({0: "1"}), "code 2^32": pack({0: 2**32}),
        "retry 3": pack({0: 1, 1: 3}), "retry is a boolean": pack({0: 1, 1: True}), "message is bytes": pack({0: 1, 2: b"x"}),
        "remote is a number": pack({0: 1, 3: 1}), "status is text": pack({0: 3, 5: "1"}), "received is negative": pack({0: 12, 7: -1}),
        "empty": b"",
    }  # fmt: skip
    for name, body in bad_errors.items():
        case("D:open", f"malformed ERROR: {name}", frame(ERROR, 1, body), "accepted",
             stream=1, ended=True, sends=b"", error={"code": "WIRE", "retry": "UNKNOWN"})  # fmt: skip
        closes("D:hello", f"malformed ERROR on stream 0: {name}", frame(ERROR, 0, body))
    closes("D:open", "ERROR with a flag", frame(ERROR, 1, error_body("WIRE"), F_END))
    closes("D:open", "ERROR on a stream never opened", frame(ERROR, 2, error_body("WIRE")))
    for setup in ("D:open", "L:open"):
        closes(
            setup,
            "ERROR on stream 0",
            frame(ERROR, 0, error_body("CLOSED", UNKNOWN, "bye")),
            "CLOSED",
            silent=True,
        )

    # GOAWAY
    case(
        "D:open",
        "first GOAWAY",
        frame(GOAWAY, 0, u64(2**64 - 1)),
        "accepted",
        stream=1,
        ended=False,
        no_new_streams=True,
    )
    case("D:open", "second GOAWAY, this stream is taken", frame(GOAWAY, 0, u64(2**64 - 1)) + frame(GOAWAY, 0, u64(1)),
         "accepted", stream=1, ended=False, no_new_streams=True)  # fmt: skip
    case("D:open", "second GOAWAY, this stream is not taken", frame(GOAWAY, 0, u64(2**64 - 1)) + frame(GOAWAY, 0, u64(0)),
         "accepted", stream=1, ended=True, no_new_streams=True, error={"code": "DRAINING", "retry": "SAFE"})  # fmt: skip
    case("D:open", "only one GOAWAY, with an id", frame(GOAWAY, 0, u64(0)),
         "accepted", stream=1, ended=True, no_new_streams=True, error={"code": "DRAINING", "retry": "SAFE"})  # fmt: skip
    closes("D:open", "GOAWAY that takes a greater id", frame(GOAWAY, 0, u64(1)) + frame(GOAWAY, 0, u64(2)))
    closes("D:open", "GOAWAY of 0 bytes", frame(GOAWAY))
    closes("D:open", "GOAWAY on a stream", frame(GOAWAY, 1, u64(1)))


def frames_file() -> dict[str, Any]:
    all_frames()
    setups = {
        name: {key: written(value) if key == "hex" else value for key, value in setup.items()}
        for name, setup in SETUPS.items()
    }
    frames = []
    for one in CASES:
        effect = dict(one["effect"])
        if effect.get("items") is not None:
            effect["items"] = [written(item) for item in effect["items"]]
        if "sends" in effect:
            effect["sends"] = effect["sends"].hex()
        frames.append(
            {
                "name": one["name"],
                "setup": one["setup"],
                "hex": written(one["data"]),
                "frames": meaning(one["data"]),
                "verdict": one["verdict"],
                **({"effect": effect} if effect else {}),
            }
        )
    keys = [(one["setup"], one["name"]) for one in frames]
    assert len(keys) == len(set(keys)), [key for key in keys if keys.count(key) > 1]
    return {"config": CONFIG, "setups": setups, "frames": frames}


CONFIG = {
    "listener": {"instance_id": INSTANCE, "incarnation": INCARNATION},
    "dialer": {
        "instance_id": DIALER_INSTANCE,
        "incarnation": DIALER_INCARNATION,
        "expected_instance_id": INSTANCE,
        "expected_incarnation": INCARNATION,
    },
    "token": TOKEN,
    "dialer_nonce": DIALER_NONCE.hex(),
    "listener_nonce": LISTENER_NONCE.hex(),
    "open": {"endpoint": ENDPOINT, "request_id": "r-1"},
}


def errors_file() -> dict[str, Any]:
    errors = []

    def add(name: str, body: bytes, **decoded: Any) -> None:
        expected = {
            "message": "",
            "remote": False,
            "type_name": "",
            "status": None,
            "detail": None,
            "received": 0,
        }
        errors.append({"name": name, "hex": frame(ERROR, 1, body).hex(), "error": expected | decoded})

    for name in CODES:
        for retry in (SAFE, UNKNOWN, NEVER):
            add(
                f"{name} {RETRIES[retry]}",
                error_body(name, retry, "why"),
                code=name,
                retry=RETRIES[retry],
                message="why",
            )
        add(f"{name} raised by a handler", error_body(name, NEVER, "why", remote=True), code=name, retry="NEVER",
            message="why", remote=True)  # fmt: skip
    add("REMOTE with all it carries",
        error_body("REMOTE", NEVER, "ValueError: bad prompt", remote=True, type_name="ValueError", status=-400, detail="bad prompt"),
        code="REMOTE", retry="NEVER", message="ValueError: bad prompt", remote=True, type_name="ValueError", status=-400,
        detail="bad prompt")  # fmt: skip
    add("a handler's own SAFE is NEVER", error_body("UNAVAILABLE", SAFE, "why", remote=True), code="UNAVAILABLE",
        retry="NEVER", message="why", remote=True)  # fmt: skip
    add("STREAM_BROKEN with its count", error_body("STREAM_BROKEN", UNKNOWN, "gone", received=7), code="STREAM_BROKEN",
        retry="UNKNOWN", message="gone", received=7)  # fmt: skip
    add("only a code: retry is NEVER", pack({0: 7}), code="OVERLOADED", retry="NEVER")
    add(
        "unknown code",
        error_body(999, SAFE, "from the future"),
        code="ERROR",
        retry="SAFE",
        message="from the future",
    )
    add("unknown code from a handler", error_body(2**32 - 1, NEVER, "x", remote=True, type_name="NewError"),
        code="REMOTE", retry="NEVER", message="x", remote=True, type_name="NewError")  # fmt: skip
    add("unknown keys", pack({0: 7, 1: 0, 8: "later", 99: [None]}), code="OVERLOADED", retry="SAFE")
    add("text that is not ASCII", error_body("CONFIG", NEVER, "größer als 5 MiB 🙂"), code="CONFIG", retry="NEVER",
        message="größer als 5 MiB 🙂")  # fmt: skip
    return {"codes": CODES, "errors": errors}


class Conversation:
    """Steps of two sides; each step: one side does something, or only reacts, and these bytes leave it."""

    def __init__(self, name: str, about: str, **config: Any) -> None:
        self.record: dict[str, Any] = {"name": name, "about": about, "config": config, "steps": []}

    def step(
        self, side: str, does: dict[str, Any] | None, sends: bytes = b"", sees: dict[str, Any] | None = None
    ) -> None:
        """``sees`` is what the *other* side's application sees once the bytes have arrived."""
        one: dict[str, Any] = {"side": side}
        if does is not None:
            one["does"] = does
        one |= {"sends": written(sends), "frames": meaning(sends)}
        if sees is not None:
            one["sees"] = sees
        self.record["steps"].append(one)


def item_text(data: bytes) -> Any:
    return written(data)


def conversations_file() -> dict[str, Any]:
    done = []

    def begin(name: str, about: str, early: bool = False, **config: Any) -> Conversation:
        talk = Conversation(name, about, **config)
        done.append(talk)
        if not early:
            talk.step("dialer", {"connect": {}}, MAGIC + DIALER_HELLO)
            fields = {"instance_id": INSTANCE, "incarnation": INCARNATION} | config.get("listener", {})
            talk.step("listener", None, MAGIC + hello(**fields))
        return talk

    one, two, three = pack({"token": "a"}), pack({"token": "b"}), pack({"token": "c"})

    talk = begin(
        "unary", "one item in, one item out; OPEN does not wait for the listener's HELLO", early=True
    )
    talk.step(
        "dialer", {"connect": {}, "open": {"stream": 1, "item": FIRST.hex(), "end": True}},
        MAGIC + DIALER_HELLO + open_frame(1, FIRST, F_END), {"stream": 1, "items": [FIRST.hex()], "ended": True},
    )  # fmt: skip
    talk.step(
        "listener", {"send": {"stream": 1, "item": one.hex(), "end": True}},
        MAGIC + LISTENER_HELLO + frame(ITEM, 1, one, F_END), {"stream": 1, "items": [one.hex()], "ended": True},
    )  # fmt: skip

    talk = begin("streamed answer", "items one by one, then END in a frame of its own")
    talk.step("dialer", {"open": {"stream": 1, "item": FIRST.hex(), "end": True}}, open_frame(1, FIRST, F_END),
              {"stream": 1, "items": [FIRST.hex()], "ended": True})  # fmt: skip
    for item in (one, two, three):
        talk.step(
            "listener",
            {"send": {"stream": 1, "item": item.hex()}},
            frame(ITEM, 1, item),
            {"stream": 1, "items": [item.hex()], "ended": False},
        )
    talk.step("listener", {"end": {"stream": 1}}, frame(END, 1), {"stream": 1, "items": [], "ended": True})

    talk = begin("duplex and half-close", "the input ends first, the response goes on; two streams at a time")
    talk.step("dialer", {"open": {"stream": 1}}, open_frame(1), {"stream": 1, "items": [], "ended": False})
    talk.step("dialer", {"open": {"stream": 2, "item": b"raw".hex(), "raw": True}}, open_frame(2, b"raw", F_RAW),
              {"stream": 2, "items": [b"raw".hex()], "raw": True, "ended": False})  # fmt: skip
    talk.step(
        "listener",
        {"send": {"stream": 2, "item": one.hex()}},
        frame(ITEM, 2, one),
        {"stream": 2, "items": [one.hex()], "ended": False},
    )
    talk.step(
        "dialer",
        {"send": {"stream": 1, "item": two.hex()}},
        frame(ITEM, 1, two),
        {"stream": 1, "items": [two.hex()], "ended": False},
    )
    talk.step("dialer", {"send": {"stream": 1, "item": three.hex(), "end": True}}, frame(ITEM, 1, three, F_END),
              {"stream": 1, "items": [three.hex()], "ended": True})  # fmt: skip
    talk.step("listener", {"send": {"stream": 1, "item": b"out".hex(), "raw": True}}, frame(ITEM, 1, b"out", F_RAW),
              {"stream": 1, "items": [b"out".hex()], "raw": True, "ended": False})  # fmt: skip
    talk.step("listener", {"send": {"stream": 1, "item": one.hex(), "end": True}}, frame(ITEM, 1, one, F_END),
              {"stream": 1, "items": [one.hex()], "ended": True})  # fmt: skip
    talk.step("dialer", {"end": {"stream": 2}}, frame(END, 2), {"stream": 2, "items": [], "ended": True})
    talk.step("listener", {"end": {"stream": 2}}, frame(END, 2), {"stream": 2, "items": [], "ended": True})

    talk = begin(
        "the response ends before the input",
        "what is left of the input is not sent, what was on its way is dropped",
    )
    talk.step(
        "dialer",
        {"open": {"stream": 1, "item": FIRST.hex()}},
        open_frame(1, FIRST),
        {"stream": 1, "items": [FIRST.hex()], "ended": False},
    )
    talk.step("listener", {"send": {"stream": 1, "item": one.hex(), "end": True}}, frame(ITEM, 1, one, F_END),
              {"stream": 1, "items": [one.hex()], "ended": True})  # fmt: skip
    talk.step("dialer", {"send": {"stream": 1, "item": two.hex()}}, b"")

    talk = begin("refused", "before a handler starts: SAFE")
    talk.step("dialer", {"open": {"stream": 1, "item": FIRST.hex(), "end": True}}, open_frame(1, FIRST, F_END),
              {"stream": 1, "items": [FIRST.hex()], "ended": True})  # fmt: skip
    talk.step("listener", {"refuse": {"stream": 1, "code": "OVERLOADED", "message": "queue full"}},
              frame(ERROR, 1, error_body("OVERLOADED", SAFE, "queue full")),
              {"stream": 1, "items": [], "ended": True, "error": {"code": "OVERLOADED", "retry": "SAFE", "message": "queue full"}})  # fmt: skip

    talk = begin("a handler raises", "after an item; the error is its own, so never to be sent again")
    talk.step("dialer", {"open": {"stream": 1, "item": FIRST.hex(), "end": True}}, open_frame(1, FIRST, F_END),
              {"stream": 1, "items": [FIRST.hex()], "ended": True})  # fmt: skip
    talk.step(
        "listener",
        {"send": {"stream": 1, "item": one.hex()}},
        frame(ITEM, 1, one),
        {"stream": 1, "items": [one.hex()], "ended": False},
    )
    talk.step(
        "listener",
        {"fail": {"stream": 1, "code": "REMOTE", "message": "KeyError: 'x'", "type_name": "KeyError", "status": 422, "detail": "no x"}},
        frame(ERROR, 1, error_body("REMOTE", NEVER, "KeyError: 'x'", remote=True, type_name="KeyError", status=422, detail="no x")),
        {"stream": 1, "items": [], "ended": True,
         "error": {"code": "REMOTE", "retry": "NEVER", "message": "KeyError: 'x'", "remote": True, "type_name": "KeyError",
                   "status": 422, "detail": "no x"}},
    )  # fmt: skip

    talk = begin("stop", "the handler is asked to finish; what it still sends arrives")
    talk.step("dialer", {"open": {"stream": 1, "item": FIRST.hex(), "end": True}}, open_frame(1, FIRST, F_END),
              {"stream": 1, "items": [FIRST.hex()], "ended": True})  # fmt: skip
    talk.step(
        "dialer", {"stop": {"stream": 1}}, frame(STOP, 1), {"stream": 1, "stopped": True, "killed": False}
    )
    talk.step("listener", {"send": {"stream": 1, "item": one.hex(), "end": True}}, frame(ITEM, 1, one, F_END),
              {"stream": 1, "items": [one.hex()], "ended": True})  # fmt: skip

    talk = begin(
        "kill", "the handler is cancelled; what was on its way is dropped, and the connection lives on"
    )
    talk.step("dialer", {"open": {"stream": 1, "item": FIRST.hex(), "end": True}}, open_frame(1, FIRST, F_END),
              {"stream": 1, "items": [FIRST.hex()], "ended": True})  # fmt: skip
    talk.step(
        "dialer", {"kill": {"stream": 1}}, frame(KILL, 1), {"stream": 1, "stopped": False, "killed": True}
    )
    talk.step("listener", {"send": {"stream": 1, "item": one.hex()}}, b"")
    talk.step("dialer", {"open": {"stream": 2, "item": FIRST.hex(), "end": True}}, open_frame(2, FIRST, F_END),
              {"stream": 2, "items": [FIRST.hex()], "ended": True})  # fmt: skip

    talk = Conversation(
        "token", "challenge both ways; OPEN waits until the listener has proved itself", token=True
    )
    done.append(talk)
    talk.step("dialer", {"connect": {}, "open": {"stream": 1, "item": FIRST.hex(), "end": True}}, MAGIC + hello(
        instance_id=DIALER_INSTANCE, incarnation=DIALER_INCARNATION, expected_instance_id=INSTANCE,
        expected_incarnation=INCARNATION, nonce=DIALER_NONCE))  # fmt: skip
    talk.step(
        "listener",
        None,
        MAGIC
        + hello(instance_id=INSTANCE, incarnation=INCARNATION, nonce=LISTENER_NONCE, proof=proof("listener")),
    )
    talk.step("dialer", None, frame(AUTH, 0, pack({0: proof("dialer")})) + open_frame(1, FIRST, F_END),
              {"stream": 1, "items": [FIRST.hex()], "ended": True})  # fmt: skip
    talk.step("listener", {"send": {"stream": 1, "item": one.hex(), "end": True}}, frame(ITEM, 1, one, F_END),
              {"stream": 1, "items": [one.hex()], "ended": True})  # fmt: skip

    talk = begin(
        "drain",
        "GOAWAY twice: what was opened in between is served, what comes after the second is not started",
    )
    talk.step("dialer", {"open": {"stream": 1, "item": FIRST.hex(), "end": True}}, open_frame(1, FIRST, F_END),
              {"stream": 1, "items": [FIRST.hex()], "ended": True})  # fmt: skip
    talk.step("listener", {"goaway": {}}, frame(GOAWAY, 0, u64(2**64 - 1)), {"no_new_streams": True})
    talk.step(
        "listener", {"goaway": {}}, frame(GOAWAY, 0, u64(1)), {"stream": 1, "items": [], "ended": False}
    )
    talk.step("listener", {"send": {"stream": 1, "item": one.hex(), "end": True}}, frame(ITEM, 1, one, F_END),
              {"stream": 1, "items": [one.hex()], "ended": True})  # fmt: skip

    talk = Conversation(
        "drain crossing calls",
        "stream 2 was sent before GOAWAY arrived: served; stream 3 crossed the second GOAWAY: SAFE",
    )
    done.append(talk)
    talk.step("dialer", {"connect": {}}, MAGIC + DIALER_HELLO)
    talk.step("listener", None, MAGIC + LISTENER_HELLO)
    talk.step("listener", {"goaway": {}, "late": True}, frame(GOAWAY, 0, u64(2**64 - 1)))
    talk.step("dialer", {"open": {"stream": 1, "item": FIRST.hex(), "end": True}}, open_frame(1, FIRST, F_END),
              {"stream": 1, "items": [FIRST.hex()], "ended": True})  # fmt: skip
    talk.step("listener", {"goaway": {}, "late": True}, frame(GOAWAY, 0, u64(1)))
    talk.step(
        "dialer", {"open": {"stream": 2, "item": FIRST.hex(), "end": True}}, open_frame(2, FIRST, F_END)
    )
    talk.step(
        "listener",
        {"deliver": "late"},
        b"",
        {"stream": 2, "items": [], "ended": True, "error": {"code": "DRAINING", "retry": "SAFE"}},
    )
    talk.step("listener", {"send": {"stream": 1, "item": one.hex(), "end": True}}, frame(ITEM, 1, one, F_END),
              {"stream": 1, "items": [one.hex()], "ended": True})  # fmt: skip

    # The example of section 8
    a, b, big, last = b"a" * 300, b"b" * 300, b"c" * 5000, b"d" * 200
    talk = begin(
        "window", "the example of section 8; the receiver grants the excess once the items before were taken"
    )
    talk.step("dialer", {"open": {"stream": 1, "end": True, "window": 1000}}, open_frame(1, flags=F_END, window=1000),
              {"stream": 1, "items": [], "ended": True})  # fmt: skip
    raw = {"stream": 1, "raw": True}
    talk.step(
        "listener", {"send": raw | {"item": a.hex()}}, frame(ITEM, 1, a, F_RAW), {"stream": 1, "arrived": 1}
    )
    talk.step(
        "listener", {"send": raw | {"item": b.hex()}}, frame(ITEM, 1, b, F_RAW), {"stream": 1, "arrived": 2}
    )
    talk.step(
        "listener",
        {"send": raw | {"item": written(big)}},
        frame(ITEM, 1, u64(5000) + big[:272], F_RAW | F_MORE),
        {"stream": 1, "arrived": 2},
    )
    talk.step("listener", {"send": raw | {"item": last.hex()}}, b"")
    talk.step("dialer", {"take": {"stream": 1, "items": [a.hex()]}}, frame(WINDOW, 1, u64(364)))
    talk.step("listener", None, frame(ITEM, 1, big[272:636], F_MORE), {"stream": 1, "arrived": 1})
    talk.step("dialer", {"take": {"stream": 1, "items": [b.hex()]}}, frame(WINDOW, 1, u64(364)))
    talk.step("listener", None, frame(ITEM, 1, big[636:1000], F_MORE), {"stream": 1, "arrived": 0})
    talk.step("dialer", {"take": {"stream": 1, "items": []}}, frame(WINDOW, 1, u64(4064)))
    talk.step("listener", None, frame(ITEM, 1, big[1000:]), {"stream": 1, "arrived": 1})
    talk.step("dialer", {"take": {"stream": 1, "items": [written(big)]}}, frame(WINDOW, 1, u64(1000)))
    talk.step("listener", None, frame(ITEM, 1, last, F_RAW), {"stream": 1, "arrived": 1})
    talk.step("dialer", {"take": {"stream": 1, "items": [last.hex()]}}, b"")
    talk.step("listener", {"end": {"stream": 1}}, frame(END, 1), {"stream": 1, "arrived": 0, "ended": True})

    talk = begin(
        "small items and a slow reader",
        "W = 400: an item of 100 bytes waits for credit; owed credit goes back at W/2",
    )
    c = b"c" * 100  # costs 164
    talk.step("dialer", {"open": {"stream": 1, "end": True, "window": 400}}, open_frame(1, flags=F_END, window=400),
              {"stream": 1, "items": [], "ended": True})  # fmt: skip
    talk.step(
        "listener", {"send": raw | {"item": c.hex()}}, frame(ITEM, 1, c, F_RAW), {"stream": 1, "arrived": 1}
    )
    talk.step(
        "listener", {"send": raw | {"item": c.hex()}}, frame(ITEM, 1, c, F_RAW), {"stream": 1, "arrived": 2}
    )
    talk.step("listener", {"send": raw | {"item": c.hex()}}, b"")
    talk.step("dialer", {"take": {"stream": 1, "items": [c.hex()]}}, b"")
    talk.step("dialer", {"take": {"stream": 1, "items": [c.hex()]}}, frame(WINDOW, 1, u64(328)))
    talk.step("listener", None, frame(ITEM, 1, c, F_RAW), {"stream": 1, "arrived": 1})

    talk = begin(
        "the least window", "W = 128: an empty item is small, one byte is announced, and granted by itself"
    )
    talk.step("dialer", {"open": {"stream": 1, "end": True, "window": 128}}, open_frame(1, flags=F_END, window=128),
              {"stream": 1, "items": [], "ended": True})  # fmt: skip
    talk.step(
        "listener", {"send": raw | {"item": ""}}, frame(ITEM, 1, b"", F_RAW), {"stream": 1, "arrived": 1}
    )
    talk.step("dialer", {"take": {"stream": 1, "items": [""]}}, frame(WINDOW, 1, u64(64)))
    talk.step(
        "listener",
        {"send": raw | {"item": c.hex(), "end": True}},
        frame(ITEM, 1, u64(100) + c[:99], F_RAW | F_MORE),
        {"stream": 1, "arrived": 0},
    )
    talk.step("dialer", {"take": {"stream": 1, "items": []}}, frame(WINDOW, 1, u64(36)))
    talk.step(
        "listener",
        None,
        frame(ITEM, 1, c[99:], F_END),
        {"stream": 1, "items": [c.hex()], "raw": True, "ended": True},
    )

    talk = begin(
        "two large items in a row",
        "W = 1,000: the second is announced at once and waits until the first was taken",
    )
    p, q = b"p" * 1500, b"q" * 1200
    talk.step("dialer", {"open": {"stream": 1, "end": True, "window": 1000}}, open_frame(1, flags=F_END, window=1000),
              {"stream": 1, "items": [], "ended": True})  # fmt: skip
    talk.step("listener", {"send": raw | {"item": p.hex()}, "then": {"send": raw | {"item": q.hex(), "end": True}}},
              frame(ITEM, 1, u64(1500) + p[:1000], F_RAW | F_MORE), {"stream": 1, "arrived": 0})  # fmt: skip
    talk.step("dialer", {"take": {"stream": 1, "items": []}}, frame(WINDOW, 1, u64(564)))
    talk.step(
        "listener",
        None,
        frame(ITEM, 1, p[1000:]) + frame(ITEM, 1, u64(1200), F_RAW | F_MORE),
        {"stream": 1, "arrived": 1},
    )
    talk.step("dialer", {"take": {"stream": 1, "items": [p.hex()]}}, frame(WINDOW, 1, u64(1000)))
    talk.step("listener", None, frame(ITEM, 1, q[:1000], F_MORE), {"stream": 1, "arrived": 0})
    talk.step("dialer", {"take": {"stream": 1, "items": []}}, frame(WINDOW, 1, u64(264)))
    talk.step(
        "listener",
        None,
        frame(ITEM, 1, q[1000:], F_END),
        {"stream": 1, "items": [q.hex()], "raw": True, "ended": True},
    )

    talk = begin(
        "the response ends in the middle of an input item", "what was announced is not sent any more"
    )
    wide = b"w" * 400000
    talk.step("dialer", {"open": {"stream": 1}}, open_frame(1), {"stream": 1, "items": [], "ended": False})
    talk.step("dialer", {"send": raw | {"item": written(wide)}},
              frame(ITEM, 1, u64(400000) + wide[: 262144 - 8], F_RAW | F_MORE) + frame(ITEM, 1, wide[:8], F_MORE),
              {"stream": 1, "arrived": 0})  # fmt: skip
    talk.step("listener", {"end": {"stream": 1}}, frame(END, 1), {"stream": 1, "items": [], "ended": True})
    talk.step("dialer", None, b"")

    talk = Conversation(
        "a listener with a smaller window", "the dialer's credit goes below zero when HELLO arrives; the item was whole before any excess was granted",
        listener={"window": 1000},
    )  # fmt: skip
    done.append(talk)
    early = b"e" * 200000
    talk.step(
        "dialer",
        {"connect": {}, "open": {"stream": 1}},
        MAGIC + DIALER_HELLO + open_frame(1),
        {"stream": 1, "arrived": 0},
    )
    talk.step("dialer", {"send": raw | {"item": written(early)}},
              frame(ITEM, 1, u64(200000) + early[:199999], F_RAW | F_MORE) + frame(ITEM, 1, early[:1]), {"stream": 1, "arrived": 1})  # fmt: skip
    talk.step("listener", None, MAGIC + hello(instance_id=INSTANCE, incarnation=INCARNATION, window=1000))
    talk.step("dialer", {"send": raw | {"item": c.hex()}}, b"")
    talk.step("listener", {"take": {"stream": 1, "items": [written(early)]}}, frame(WINDOW, 1, u64(200064)))
    talk.step("dialer", None, frame(ITEM, 1, c, F_RAW), {"stream": 1, "arrived": 1})

    talk = begin("the link is cut", "a response that has begun is broken; the listener cancels its handler")
    talk.step("dialer", {"open": {"stream": 1, "item": FIRST.hex(), "end": True}}, open_frame(1, FIRST, F_END),
              {"stream": 1, "items": [FIRST.hex()], "ended": True})  # fmt: skip
    talk.step(
        "listener",
        {"send": {"stream": 1, "item": one.hex()}},
        frame(ITEM, 1, one),
        {"stream": 1, "items": [one.hex()], "ended": False},
    )
    talk.step("dialer", {"lost": {}}, b"", {"stream": 1, "items": [], "ended": True,
                                             "error": {"code": "STREAM_BROKEN", "retry": "UNKNOWN", "received": 1}})  # fmt: skip
    talk.step("listener", {"lost": {}}, b"", {"stream": 1, "stopped": False, "killed": True})

    talk = Conversation(
        "a listener with a greater window",
        "the dialer's input gets the difference when HELLO arrives",
        listener={"window": 300000},
    )
    done.append(talk)
    huge = b"h" * 299000
    talk.step(
        "dialer",
        {"connect": {}, "open": {"stream": 1}},
        MAGIC + DIALER_HELLO + open_frame(1),
        {"stream": 1, "items": [], "ended": False},
    )
    part = 262144 - 8
    talk.step("dialer", {"send": raw | {"item": written(huge), "end": True}},
              frame(ITEM, 1, u64(299000) + huge[:part], F_RAW | F_MORE) + frame(ITEM, 1, huge[:8], F_MORE))  # fmt: skip
    talk.step("listener", None, MAGIC + hello(instance_id=INSTANCE, incarnation=INCARNATION, window=300000))
    talk.step(
        "dialer",
        None,
        frame(ITEM, 1, huge[: 299000 - 262144], F_END),
        {"stream": 1, "items": [written(huge)], "raw": True, "ended": True},
    )

    talk = begin(
        "a big item and small ones",
        "fragments of at most 256 KiB; a small item of another stream goes between them",
    )
    talk.step("dialer", {"open": {"stream": 1, "end": True, "window": 2**20}}, open_frame(1, flags=F_END, window=2**20),
              {"stream": 1, "items": [], "ended": True})  # fmt: skip
    talk.step(
        "dialer",
        {"open": {"stream": 2, "end": True}},
        open_frame(2, flags=F_END),
        {"stream": 2, "items": [], "ended": True},
    )
    blob = b"B" * 600000
    talk.step(
        "listener",
        {"send": raw | {"item": written(blob)}, "then": {"send": {"stream": 2, "item": one.hex()}}},
        frame(ITEM, 2, one)
        + frame(ITEM, 1, u64(600000) + blob[:part], F_RAW | F_MORE)
        + frame(ITEM, 1, blob[:262144], F_MORE)
        + frame(ITEM, 1, blob[: 600000 - part - 262144]),
        {"stream": 1, "items": [written(blob)], "raw": True, "ended": False},
    )  # fmt: skip
    return {"config": CONFIG, "conversations": [talk.record for talk in done]}


def main() -> None:
    files = {
        "frames.json": frames_file(),
        "errors.json": errors_file(),
        "conversations.json": conversations_file(),
    }
    stale = []
    for name, content in files.items():
        text = json.dumps(exact(content), indent=1, ensure_ascii=False) + "\n"
        path = HERE / name
        if "--check" in sys.argv:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"out of date: {', '.join(stale)}; run python tests/vectors/generate.py")


if __name__ == "__main__":
    main()
