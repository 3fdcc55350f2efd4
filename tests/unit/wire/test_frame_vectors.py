"""Every frame of tests/vectors/frames.json and errors.json, in every state that they name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from dynamo.core.wire import packing
from dynamo.core.wire.faults import decode_error, encode_error
from dynamo.core.wire.frames import ERROR, KILL
from unit.wire.vectors import FOLDER, MAGIC, Side, code_of, frames_in, load, opened, seen, unhex

CONTENT = load("frames.json")
CONFIG, SETUPS, FRAMES = CONTENT["config"], CONTENT["setups"], CONTENT["frames"]
ERRORS = load("errors.json")["errors"]
PING = bytes.fromhex("080000000a000000" + "00" * 8) + b"are you?"
PONG = bytes.fromhex("080000000b000000" + "00" * 8) + b"are you?"


def identify(frame: dict[str, Any]) -> str:
    return f"{frame['setup']}: {frame['name']}"


def in_state(name: str) -> tuple[Side, Any]:
    """A connection as the setup says, its output taken, and the stream that the setup speaks of."""
    setup = SETUPS[name]
    side = Side(setup["receiver"], CONFIG, token=setup.get("token", False), limits=setup.get("limits"))
    stream: Any = None
    if setup.get("opens"):
        stream = side.connection.open(opened(CONFIG))
        side.output()
    side.feed(unhex(setup["hex"]))
    if setup.get("ends"):
        stream.end()
    for _ in setup.get("goaway", ()):
        side.connection.goaway()
    side.output()
    assert not side.connection.closed
    return side, side.accepted[0] if side.accepted else stream


def take_all(stream: Any) -> list[Any]:
    items = []
    while (item := stream.receive_nowait()) is not None:
        items.append(item)
    return items


def check_accepted(side: Side, stream: Any, effect: dict[str, Any], sent: bytes, first: bool) -> None:
    assert not side.connection.closed, side.connection.error
    if "sends" in effect:
        assert sent.hex() == effect["sends"]
    if effect.get("no_new_streams"):
        assert side.connection.draining
        assert not side.connection.accepts_calls
    if "stream" not in effect:
        return
    if effect.get("items", []) is None:
        assert not side.accepted
        return
    if first:
        stream = side.accepted[-1]
    assert stream.id == int(effect["stream"])
    items = [stream.request.payload] if first and stream.request.payload is not None else []
    items += take_all(stream)
    if "items" in effect:
        assert [bytes(item) for item in items] == [unhex(item) for item in effect["items"]]
        assert all(isinstance(item, memoryview) == effect.get("raw", False) for item in items)
    if "ended" in effect:
        assert stream.ended == effect["ended"]
    for name in ("stopped", "killed"):
        if name in effect:
            assert getattr(stream, name) == effect[name]
            assert ((stream.id, name == "killed") in side.cancels) == effect[name]
    if "credit" in effect:
        assert stream._credit == effect["credit"]
    if "error" in effect:
        assert effect["error"].items() <= seen(stream.error).items()
    if "head" in effect:
        request, head = stream.request, effect["head"]
        microseconds = None if request.timeout_s is None else round(request.timeout_s * 1e6)
        assert head == {
            "endpoint": request.endpoint,
            "request_id": request.request_id,
            "attempt": request.attempt,
            "timeout_us": microseconds,
            "window": stream._credit,
            "metadata": request.metadata,
            "priority": request.priority,
        }


def check_closed(side: Side, setup: dict[str, Any], stream: Any, effect: dict[str, Any], sent: bytes) -> None:
    connection = side.connection
    assert connection.closed
    assert connection.error is not None
    assert (code_of(connection.error), connection.error.retry.name) == (effect["code"], effect["retry"])
    assert str(connection.error)
    if effect.get("silent"):
        assert sent == b""
    else:
        nothing_sent_yet = setup["receiver"] == "listener" and unhex(setup["hex"]) in (b"", MAGIC)
        assert sent.startswith(MAGIC) == nothing_sent_yet
        kind, _, number, body = frames_in(sent)[-1]
        assert (kind, number) == (ERROR, 0)
        told = decode_error(body)
        assert (code_of(told), told.retry.name) == (effect["code"], effect["retry"])
    if "stream" in effect:
        assert stream.ended
        assert code_of(stream.error) == effect["code"]
        assert stream.error.retry.name == effect.get("stream_retry", effect["retry"])
    assert connection.open_streams == 0
    assert side.budget.used == 0
    side.feed(PING)
    assert side.output() == b""


@pytest.mark.parametrize("decoder", ["msgspec", "msgpack"])
@pytest.mark.parametrize("chunk", [0, 1, 13])
@pytest.mark.parametrize("frame", FRAMES, ids=identify)
def test_a_frame_has_the_effect_that_the_page_gives_it(
    frame: dict[str, Any], chunk: int, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "msgpack":
        monkeypatch.setitem(sys.modules, "msgspec", None)
        monkeypatch.setattr(packing, "_unpack", packing._functions()[1])
    setup, effect, verdict = SETUPS[frame["setup"]], frame.get("effect", {}), frame["verdict"]
    side, stream = in_state(frame["setup"])
    data = unhex(frame["hex"])
    calls = len(side.accepted)
    side.feed(data, chunk if len(data) < 4096 else chunk * 1000)
    sent = side.output()
    match verdict:
        case "accepted":
            check_accepted(side, stream, effect, sent, first=len(side.accepted) > calls)
        case "skipped" | "dropped" | "incomplete":
            assert sent == b""
            assert len(side.accepted) == calls
            assert not side.connection.closed
            if stream is not None and not stream.over:
                assert take_all(stream) == []
                assert not stream.stopped
            if verdict != "incomplete":
                side.feed(PING)
                assert side.output() == PONG
        case "fails stream":
            kind, _, number, body = frames_in(sent)[-1]
            assert number == int(effect["stream"])
            if setup["receiver"] == "listener":
                assert kind == ERROR
                error = decode_error(body)
                if stream is not None and stream.id == number:
                    assert stream.killed
                    assert side.cancels[-1] == (number, True)
            else:
                assert kind == KILL
                take_all(stream)
                error = stream.error
            assert (code_of(error), error.retry.name) == (effect["code"], effect["retry"])
            assert number not in side.connection._streams
            side.feed(PING)
            assert side.output() == PONG
        case "closes":
            check_closed(side, setup, stream, effect, sent)
        case _:
            pytest.fail(f"no such verdict: {verdict}")


@pytest.mark.parametrize("vector", ERRORS, ids=lambda vector: vector["name"])
def test_an_error_is_read_as_the_page_says(vector: dict[str, Any]) -> None:
    ((kind, _, stream, body),) = frames_in(unhex(vector["hex"]))
    assert (kind, stream) == (ERROR, 1)
    error = decode_error(body)
    assert seen(error) == vector["error"]
    assert seen(decode_error(encode_error(error))) == vector["error"]


def test_both_packages_give_the_same_bytes_for_the_protocols_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = packing._functions()[0]
    monkeypatch.setitem(sys.modules, "msgspec", None)
    other = packing._functions()[0]
    assert other is not installed
    for value in (
        {0: 1, 11: bytes(32), 3: 2**53 - 1},
        {5: {"k": "é" * 300}, 6: -(2**31), 2: 2**64 - 1},
        {3: True},
    ):
        assert other(value) == installed(value)


def test_the_vectors_are_those_of_their_script() -> None:
    run = subprocess.run([sys.executable, FOLDER / "generate.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
