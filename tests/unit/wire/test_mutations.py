"""Valid conversations with something wrong in them, by the million: a typed end or none, and nothing kept."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.core.errors import DynamoError, OverloadedError, RemoteError
from dynamo.core.ports.request_plane import Payload, Request
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.connection import Connection
from dynamo.core.wire.opening import Options
from dynamo.core.wire.stream import Stream
from unit.wire.pair import Pair, read

INSTANCE, TOKEN = 0x1234, "secret"
MAX_MESSAGE = 50_000
NONCES = {True: bytes(32), False: bytes(range(32))}


def options(*, dialer: bool, token: bool) -> Options:
    return Options(
        instance_id=0 if dialer else INSTANCE,
        expected_instance_id=INSTANCE if dialer else 0,
        window_bytes=3000,
        max_message_bytes=MAX_MESSAGE,
        max_streams=50,
        token=TOKEN if token else None,
        nonce=NONCES[dialer],
    )


def requests() -> list[Request]:
    payloads: list[tuple[Payload | None, bool]] = [
        (b"\x81\xa1n\x01", True),
        (memoryview(b"raw bytes"), True),
        (None, False),
        (b"\xc4" + bytes(5000), False),
        (memoryview(bytes(9000)), True),
    ]
    return [
        Request(
            endpoint="a.b.c",
            request_id=f"r-{number}",
            payload=payload,
            end=end,
            metadata={"k": "v"},
            timeout_s=1.5,
        )
        for number, (payload, end) in enumerate(payloads)
    ]


def record(*, token: bool) -> dict[bool, bytes]:
    """The bytes that arrive at a dialer (True) and at a listener of a lively conversation."""
    pair = Pair(options(dialer=True, token=token), options(dialer=False, token=token))
    arrived = {True: bytearray(), False: bytearray()}

    def settle() -> None:
        for _ in range(50):
            pair.pull()
            arrived[True] += pair.to_dialer
            arrived[False] += pair.to_listener
            pair.push()
            for stream in (*callers, *pair.accepted):
                stream.ready()

    callers: list[Stream] = []
    callers += [pair.dialer.open(request) for request in requests()]
    settle()
    callers[2].send(b"\x01")
    callers[2].send(memoryview(bytes(7000)), end=True)
    callers[3].stop()
    workers = pair.accepted
    assert len(workers) == len(callers)
    for number in range(20):
        workers[0].send(b"\x81\xa1i" + bytes([number]))
    workers[1].fail(RemoteError("KeyError: 'x'", type_name="KeyError", status=400, detail="x"))
    workers[2].send(b"\xc4" + bytes(8000))
    workers[2].end()
    workers[4].refuse(OverloadedError("full"))
    settle()
    for stream in callers + workers:
        read(stream)
    settle()
    pair.listener.goaway()
    callers[3].kill()
    workers[0].send(b"\x01", end=True)
    settle()
    pair.listener.goaway()
    settle()
    assert not pair.dialer.closed
    assert not pair.listener.closed
    return {dialer: bytes(data) for dialer, data in arrived.items()}


RECORDED = {
    (dialer, token): record(token=token)[dialer] for dialer in (True, False) for token in (True, False)
}
INTERESTING = [
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    127,
    128,
    255,
    256,
    2**16 - 1,
    2**18,
    2**18 + 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
]


def headers(data: bytes) -> list[int]:
    """Where frames begin."""
    starts, at = [], 8
    while at + 16 <= len(data):
        starts.append(at)
        at += 16 + int.from_bytes(data[at : at + 4], "little")
    return starts


STARTS = {key: headers(data) for key, data in RECORDED.items()}


def mutate(data: bytes, starts: list[int], rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(changed)) if changed else 0
        # Most of the bytes are bodies; what matters is in the first ones of a frame.
        if rng.random() < 0.6:
            at = min(len(changed), rng.choice(starts) + rng.randrange(24))
        match rng.randrange(10):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(changed):
                changed[at] = rng.randrange(256)
            case 3:
                changed[at:at] = rng.randbytes(rng.choice((1, 4, 16, 100)))
            case 4:
                del changed[at : at + rng.choice((1, 4, 16, 500))]
            case 5:
                changed[at:at] = changed[at : at + rng.choice((1, 16, 40, 400))]
            case 6:
                del changed[at:]
            case 7:
                at = rng.choice(starts)
                changed[at : at + 4] = struct.pack("<I", rng.choice(INTERESTING))
            case 8:
                at = rng.choice(starts)
                changed[at + 4 : at + 6] = bytes(
                    (rng.randrange(16), rng.choice((0, 1, 2, 4, 8, 15, rng.randrange(256))))
                )
            case 9:  # a whole frame again, somewhere else
                frame, other = sorted(rng.sample(range(len(starts)), 2))
                end = starts[frame + 1]
                changed[starts[other] : starts[other]] = data[starts[frame] : end]
    return bytes(changed)


class Victim:
    """A connection whose application answers, reads, and keeps a little."""

    def __init__(self, budget: ReceiveBudget, *, dialer: bool, token: bool) -> None:
        self.streams: list[Stream] = []
        self.connection = Connection(
            options(dialer=dialer, token=token), budget, dialer=dialer, accept=self.accept
        )
        if dialer:
            self.streams = [self.connection.open(request) for request in requests()]

    def accept(self, stream: Stream) -> None:
        self.streams.append(stream)
        if len(self.streams) % 7 == 6:
            stream.refuse(OverloadedError("full"))
        else:
            stream.send(b"\x01")
            stream.send(memoryview(bytes(4000)))

    def turn(self) -> None:
        self.connection.take_output(100_000)
        for stream in self.streams[::2]:
            stream.receive_nowait()

    def check(self, fed: int) -> None:
        connection = self.connection
        held = sum(len(item) for stream in self.streams for item in stream._items)
        held += sum(stream._assembly.size for stream in self.streams if stream._assembly)
        assert held <= len(self.streams) * (2 * MAX_MESSAGE + 262_144)
        assert held <= 2 * fed + MAX_MESSAGE * len(self.streams)
        if connection.closed:
            assert isinstance(connection.error, DynamoError)
            assert str(connection.error)
        for stream in self.streams:
            assert stream.error is None or isinstance(stream.error, DynamoError)
            assert stream.over or not connection.closed


def run(seed: int, budget: ReceiveBudget) -> bool:
    """One mutation; True if the connection survived."""
    rng = random.Random(seed)
    key = (rng.random() < 0.5, rng.random() < 0.25)
    data = mutate(RECORDED[key], STARTS[key], rng)
    victim = Victim(budget, dialer=key[0], token=key[1])
    victim.turn()
    at = STARTS[key][1]  # after HELLO, which a dialer with a token waits for
    victim.connection.feed(data[:at])
    victim.turn()
    while at < len(data):
        size = rng.choice((1, 10, 16, 1000, 100_000))
        victim.connection.feed(data[at : at + size])
        at += size
        if rng.random() < 0.3:
            victim.turn()
    victim.check(len(data))
    survived = not victim.connection.closed
    victim.connection.connection_lost(None)
    assert victim.connection.open_streams == 0
    return survived


def check_many(seeds: range) -> None:
    budget = ReceiveBudget(1_000_000)
    survived = 0
    for seed in seeds:
        try:
            survived += run(seed, budget)
        except BaseException:
            print(f"seed {seed}")
            raise
        assert budget.used == 0, seed
        assert not budget._asking
    # Neither all closed nor all unnoticed: the mutations reach past the framing.
    assert 0.02 < survived / len(seeds) < 0.9


def test_mutated_conversations_end_typed_or_go_on() -> None:
    check_many(range(3000))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(10))
def test_a_million_mutated_conversations_end_typed_or_go_on(part: int) -> None:
    check_many(range(part * 100_000, (part + 1) * 100_000))


@pytest.mark.parametrize(
    "key", RECORDED, ids=lambda key: f"{'dialer' if key[0] else 'listener'}{', token' * key[1]}"
)
def test_an_unchanged_conversation_survives(key: tuple[bool, bool]) -> None:
    budget = ReceiveBudget(2**26)
    victim = Victim(budget, dialer=key[0], token=key[1])
    victim.turn()
    hello = STARTS[key][1]
    victim.connection.feed(RECORDED[key][:hello])
    victim.turn()
    victim.connection.feed(RECORDED[key][hello:])
    assert victim.connection.ready
    assert not victim.connection.closed, victim.connection.error


def feed_anything(dialer: bool, token: bool, data: bytes) -> None:
    budget = ReceiveBudget(2**26)
    victim = Victim(budget, dialer=dialer, token=token)
    victim.turn()
    hello = STARTS[dialer, token][1]
    victim.connection.feed(data[:hello])
    victim.turn()
    victim.connection.feed(data[hello:])
    victim.turn()
    victim.check(len(data))
    victim.connection.connection_lost(None)
    assert budget.used == 0


frames = st.builds(
    lambda kind, flags, zero, stream, body, lie: (
        struct.pack("<IBBHQ", max(0, len(body) + lie), kind, flags, zero, stream) + body
    ),
    kind=st.one_of(st.integers(0, 13), st.integers(0, 255)),
    flags=st.one_of(st.integers(0, 15), st.just(0), st.integers(0, 255)),
    zero=st.one_of(st.just(0), st.just(0), st.just(0), st.integers(0, 65535)),
    stream=st.one_of(st.integers(0, 8), st.integers(0, 2**64 - 1)),
    body=st.one_of(
        st.binary(max_size=40), st.just(b""), st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little"))
    ),
    lie=st.one_of(st.just(0), st.just(0), st.just(0), st.integers(-3, 3)),
)
anything = st.one_of(st.binary(max_size=200), st.lists(frames, max_size=12).map(b"".join))


def with_any_frames(
    examples: int,
) -> Callable[[Callable[[bool, bool, int, bytes], None]], Callable[[], None]]:
    def decorate(test: Callable[[bool, bool, int, bytes], None]) -> Callable[[], None]:
        given_test = given(st.booleans(), st.booleans(), st.integers(0, 12), anything)(test)
        return settings(max_examples=examples)(given_test)

    return decorate


def any_frames(dialer: bool, token: bool, after: int, data: bytes) -> None:
    """Arbitrary frames after the beginning of a valid conversation."""
    starts = STARTS[dialer, token]
    feed_anything(dialer, token, RECORDED[dialer, token][: starts[min(after, len(starts) - 1)]] + data)


@with_any_frames(500)
def test_arbitrary_frames_end_typed_or_go_on(dialer: bool, token: bool, after: int, data: bytes) -> None:
    any_frames(dialer, token, after, data)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@with_any_frames(10_000)
def test_ten_thousand_arbitrary_frames_end_typed_or_go_on(
    dialer: bool, token: bool, after: int, data: bytes
) -> None:
    any_frames(dialer, token, after, data)
