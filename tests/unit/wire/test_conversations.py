"""The conversations of tests/vectors/conversations.json, byte for byte, both sides at a time."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo.core.errors import DynamoError
from dynamo.core.ports.request_plane import Payload
from dynamo.core.wire.faults import CLASSES, CODES
from dynamo.core.wire.frames import Type
from dynamo.core.wire.stream import Stream
from unit.wire.vectors import Side, load, opened, seen, unhex

CONTENT = load("conversations.json")
CODE_NUMBERS: dict[str, int] = load("errors.json")["codes"]


def payload_of(action: dict[str, Any]) -> Payload:
    data = unhex(action["item"])
    return memoryview(data) if action.get("raw") else data


def error_of(action: dict[str, Any], *, remote: bool) -> DynamoError:
    fields = {key: action[key] for key in ("type_name", "status", "detail") if key in action}
    kind = CLASSES[CODE_NUMBERS[action["code"]]]
    assert CODES[kind] == CODE_NUMBERS[action["code"]]
    return kind(action["message"], remote=remote, **fields)


class Conversation:
    def __init__(self, config: dict[str, Any]) -> None:
        token = config.get("token", False)
        self.sides = {
            side: Side(side, CONTENT["config"], token=token, limits=config.get(side))
            for side in ("dialer", "listener")
        }
        self.opened: dict[int, Stream] = {}
        self.late: list[bytes] = []

    def stream(self, side: str, number: int) -> Stream:
        if side == "dialer":
            return self.opened[number]
        return next(stream for stream in self.sides["listener"].accepted if stream.id == number)

    def do(self, name: str, action: Any, side: str) -> None:
        connection = self.sides[side].connection
        match name:
            case "connect" | "late" | "deliver":
                pass
            case "open":
                payload = payload_of(action) if "item" in action else None
                self.sides[side].budget.next_window = action.get("window")
                request = opened(CONTENT["config"], payload=payload, end=action.get("end", False))
                self.opened[action["stream"]] = connection.open(request)
            case "then":
                for inner, what in action.items():
                    self.do(inner, what, side)
            case "goaway":
                connection.goaway()
            case "lost":
                connection.connection_lost(ConnectionResetError("cut"))
            case _:
                self.do_on_stream(name, action, self.stream(side, action["stream"]))

    def do_on_stream(self, name: str, action: Any, stream: Stream) -> None:
        match name:
            case "send":
                stream.send(payload_of(action), end=action.get("end", False))
            case "refuse":
                stream.refuse(error_of(action, remote=False))
            case "fail":
                stream.fail(error_of(action, remote=True))
            case "end" | "stop" | "kill":
                getattr(stream, name)()
            case "take" if action["items"]:
                assert [bytes(stream.receive_nowait() or b"") for _ in action["items"]] == [
                    unhex(item) for item in action["items"]
                ]
            case "take":
                assert not stream.ready()
            case _:
                pytest.fail(f"no such action: {name}")

    def check(self, side: str, sees: dict[str, Any]) -> None:
        assert self.sides[side].connection.draining == sees.get("no_new_streams", False) or "stream" in sees
        if "stream" not in sees:
            return
        stream = self.stream(side, sees["stream"])
        if "arrived" in sees:
            assert len(stream._items) == sees["arrived"]
        if "items" in sees:
            items: list[Payload] = []
            if side == "listener" and stream.request.payload is not None and stream.received == 0:
                items.append(stream.request.payload)
                stream.request.payload = None
            while (item := stream.receive_nowait()) is not None:
                items.append(item)
            assert [bytes(item) for item in items] == [unhex(item) for item in sees["items"]]
            assert all(isinstance(item, memoryview) == sees.get("raw", False) for item in items)
        for name in ("ended", "stopped", "killed"):
            if name in sees:
                assert getattr(stream, name) == sees[name]
        if "error" in sees:
            assert sees["error"].items() <= seen(stream.error).items()


@pytest.mark.parametrize("talk", CONTENT["conversations"], ids=lambda talk: talk["name"])
def test_both_sides_say_exactly_what_the_vectors_say(talk: dict[str, Any]) -> None:
    conversation = Conversation(talk["config"])
    for step in talk["steps"]:
        side = step["side"]
        other = "listener" if side == "dialer" else "dialer"
        does = step.get("does", {})
        for name, action in does.items():
            conversation.do(name, action, side)
        sent = conversation.sides[side].output()
        assert sent.hex() == unhex(step["sends"]).hex()
        if does.get("late"):
            conversation.late.append(sent)
            continue
        if "deliver" in does:
            sent = b"".join(conversation.late)
        conversation.sides[other].feed(sent)
        if "sees" in step:
            conversation.check(side if "lost" in does else other, step["sees"])


def test_every_type_flag_and_code_is_in_the_vectors() -> None:
    frames = load("frames.json")["frames"]
    names = {one.get("type") for frame in frames for one in frame["frames"]}
    assert names >= {kind.name for kind in Type}
    flags = {flag for frame in frames for one in frame["frames"] for flag in one.get("flags", ())}
    assert flags == {"END", "MORE", "RAW", "ITEM", "0x10", "0x20", "0x40", "0x80"}
    assert set(CODE_NUMBERS.values()) == set(range(len(CLASSES)))
    assert {frame["verdict"] for frame in frames} == {
        "accepted", "skipped", "dropped", "incomplete", "fails stream", "closes",
    }  # fmt: skip
