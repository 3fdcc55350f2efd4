"""Reading tests/vectors, and connections in the states that they start from."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from dynamo.core.errors import DynamoError
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.faults import CODES
from dynamo.core.wire.opening import Options
from dynamo.core.wire.stream import Stream

FOLDER = Path(__file__).parents[2] / "vectors"
MAGIC = bytes.fromhex("8944594e0d0a1a0a")
NAMES: dict[int, str] = {}


def load(name: str) -> Any:
    content = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return content


for _name, _code in load("errors.json")["codes"].items():
    NAMES[_code] = _name


def unhex(written: Any) -> bytes:
    if isinstance(written, str):
        return bytes.fromhex(written)
    return b"".join(
        bytes.fromhex(part["repeat"]) * part["times"] if isinstance(part, dict) else bytes.fromhex(part)
        for part in written
    )


def options(side: str, config: dict[str, Any], *, token: bool, limits: dict[str, int]) -> Options:
    own: dict[str, Any] = {key: int(value) for key, value in config[side].items()}
    if token:
        own |= {"token": config["token"], "nonce": bytes.fromhex(config[f"{side}_nonce"])}
    names = {
        "max_message": "max_message_bytes",
        "max_head": "max_head_bytes",
        "max_streams": "max_streams",
        "window": "window_bytes",
    }
    given: dict[str, Any] = {names[key]: value for key, value in limits.items()}
    return Options(**own, **given)


class ScriptedBudget(ReceiveBudget):
    """Gives the windows that a conversation asks for."""

    __slots__ = ("next_window",)

    def __init__(self) -> None:
        super().__init__(256 * 2**20)
        self.next_window: int | None = None

    def window(self, wanted: int) -> int:
        size = wanted if self.next_window is None else self.next_window
        self.used += size
        return size


class Side:
    """A connection under test, and what its application saw."""

    def __init__(
        self, side: str, config: dict[str, Any], *, token: bool = False, limits: dict[str, int] | None = None
    ) -> None:
        self.accepted: list[Stream] = []
        self.cancels: list[tuple[int, bool]] = []
        self.budget = ScriptedBudget()
        self.connection = Connection(
            options(side, config, token=token, limits=limits or {}),
            self.budget,
            dialer=side == "dialer",
            accept=self.accept,
        )

    def accept(self, stream: Stream) -> None:
        self.accepted.append(stream)
        stream.on_cancel = lambda killed: self.cancels.append((stream.id, killed))

    def feed(self, data: bytes, chunk: int = 0) -> None:
        for start in range(0, len(data), chunk or len(data) or 1):
            self.connection.feed(data[start : start + (chunk or len(data))])

    def output(self) -> bytes:
        parts: list[bytes] = []
        while taken := self.connection.take_output(2**18):
            parts += [bytes(part) for part in taken]
        return b"".join(parts)


def opened(config: dict[str, Any], **fields: Any) -> Request:
    return Request(**config["open"], **({"payload": None, "end": False} | fields))


def code_of(error: DynamoError | None) -> str:
    assert error is not None
    return NAMES[CODES[type(error)]]


def seen(error: DynamoError | None) -> dict[str, Any]:
    """An error as the vectors write it."""
    assert error is not None
    return {
        "code": code_of(error),
        "retry": error.retry.name,
        "message": str(error),
        "remote": error.remote,
        "type_name": getattr(error, "type_name", ""),
        "status": getattr(error, "status", None),
        "detail": getattr(error, "detail", None),
        "received": getattr(error, "received", 0),
    }


def frames_in(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """type, flags, stream, body of each frame; the magic is dropped."""
    data = data.removeprefix(MAGIC)
    frames: list[tuple[int, int, int, bytes]] = []
    while data:
        length, kind, flags, zero, stream = struct.unpack_from("<IBBHQ", data)
        assert zero == 0
        assert len(data) >= 16 + length
        frames.append((kind, flags, stream, data[16 : 16 + length]))
        data = data[16 + length :]
    return frames
