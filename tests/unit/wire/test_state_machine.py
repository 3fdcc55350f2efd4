"""Two connections, any order of sends, reads, ends and turns, any cutting of the bytes between them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)

from dynamo.core.errors import (
    CallCancelledError,
    DrainingError,
    DynamoError,
    OverloadedError,
    RemoteError,
    Retry,
    StreamBrokenError,
    UnavailableError,
)
from dynamo.core.ports.request_plane import Payload
from dynamo.core.wire.frames import ITEM_COST
from dynamo.core.wire.opening import Options
from dynamo.core.wire.stream import Stream
from unit.wire.pair import Pair, read

MAX_MESSAGE = 20_000
sizes = st.one_of(st.integers(0, 40), st.integers(0, 3000), st.integers(0, MAX_MESSAGE))
windows = st.one_of(
    st.integers(128, 600), st.integers(128, 5000), st.just(262_144), st.integers(300_000, 400_000)
)


items = st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=6)
rarely = st.sampled_from([False] * 7 + [True])


class Call:
    """What the two applications did and saw of one call."""

    def __init__(self, caller: Stream) -> None:
        self.caller = caller
        self.worker: Stream | None = None
        self.up: list[Payload] = []  # sent
        self.down: list[Payload] = []
        self.up_read: list[Payload] = []
        self.down_read: list[Payload] = []
        self.failed: DynamoError | None = None  # by the worker
        self.refused = self.down_ended = self.killed = self.worker_stopped = False


class TwoConnections(RuleBasedStateMachine):
    calls: Bundle[Call] = Bundle("calls")

    @initialize(
        target=calls,
        begun=st.booleans(),
        dialer_window=windows,
        listener_window=windows,
        budget=st.sampled_from([2**26, 2**26, 2**26, 2**20, 100_000, 4096]),
        token=st.sampled_from([False, False, True]),
        max_streams=st.sampled_from([16_384, 16_384, 16_384, 2]),
    )
    def connect(
        self,
        begun: bool,
        dialer_window: int,
        listener_window: int,
        budget: int,
        token: bool,
        max_streams: int,
    ) -> MultipleResults[Call]:
        secret = "secret" if token else None
        self.pair = Pair(
            Options(window_bytes=dialer_window, max_message_bytes=MAX_MESSAGE, token=secret),
            Options(
                window_bytes=listener_window,
                max_message_bytes=MAX_MESSAGE,
                token=secret,
                max_streams=max_streams,
            ),
            budget=budget,
            accept=self.accept,
        )
        self.all: dict[str, Call] = {}
        self.counter = 0
        self.refuse_next = False
        self.goaways = 0
        self.cut = False
        first = [self.open(None, False, False), self.open(0, True, False)]
        if begun:
            self.pair.settle()
        return multiple(*first)

    def payload(self, size: int, raw: bool) -> Payload:
        """No two alike, so that order shows."""
        self.counter += 1
        data = (self.counter.to_bytes(4, "big") * (size // 4 + 1))[:size]
        return memoryview(data) if raw else data

    def accept(self, stream: Stream) -> None:
        call = self.all[stream.request.request_id]
        assert call.worker is None, "a call was handed over twice"
        call.worker = stream
        stream.on_cancel = lambda killed: self.cancelled(call, killed)
        if stream.request.payload is not None:
            call.up_read.append(stream.request.payload)
        if self.refuse_next:
            self.refuse_next = False
            call.refused = True
            stream.refuse(OverloadedError("full"))

    def cancelled(self, call: Call, killed: bool) -> None:
        if not self.cut:
            assert call.killed if killed else call.caller.stopped

    @rule(target=calls, size=st.one_of(st.none(), sizes), raw=st.booleans(), end=rarely)
    def another_call(self, size: int | None, raw: bool, end: bool) -> Call:
        return self.open(size, raw, end)

    def open(self, size: int | None, raw: bool, end: bool) -> Call:
        payload = None if size is None else self.payload(size, raw)
        caller = self.pair.open(payload, end=end, metadata={"k": "v"}, attempt=2)
        call = self.all[caller.request.request_id] = Call(caller)
        if payload is not None:
            call.up.append(payload)
        return call

    @rule(call=calls, items=items, end=rarely)
    def send_up(self, call: Call, items: list[tuple[int, bool]], end: bool) -> None:
        for number, (size, raw) in enumerate(items, 1):
            if not call.caller._out_done:
                payload = self.payload(size, raw)
                call.up.append(payload)
                last = end and number == len(items)
                assert call.caller.send(payload, end=last) == call.caller.can_send

    @rule(call=calls, items=items, end=rarely)
    def send_down(self, call: Call, items: list[tuple[int, bool]], end: bool) -> None:
        for number, (size, raw) in enumerate(items, 1):
            worker = call.worker
            if worker is not None and not worker._out_done:
                payload = self.payload(size, raw)
                call.down.append(payload)
                call.down_ended = end and number == len(items)
                assert worker.send(payload, end=call.down_ended) == worker.can_send

    @rule(call=calls, really=rarely)
    def end_up(self, call: Call, really: bool) -> None:
        if really:
            call.caller.end()

    @rule(call=calls, really=rarely)
    def end_down(self, call: Call, really: bool) -> None:
        if really and call.worker is not None and not call.worker._out_done:
            call.down_ended = True
            call.worker.end()

    @rule(call=calls, really=rarely)
    def fail(self, call: Call, really: bool) -> None:
        if really and call.worker is not None and not call.worker._out_done:
            call.failed = RemoteError("KeyError: 'x'", type_name="KeyError")
            call.worker.fail(call.failed)

    @rule(call=calls)
    def stop(self, call: Call) -> None:
        call.caller.stop()

    @rule(call=calls, really=rarely)
    def kill(self, call: Call, really: bool) -> None:
        if not really:
            return
        if not call.caller.ended:
            call.killed = True
        call.caller.kill()
        assert call.caller.ended

    @rule(call=calls)
    def read_up(self, call: Call) -> None:
        if call.worker is not None:
            call.up_read += read(call.worker)

    @rule(call=calls)
    def read_down(self, call: Call) -> None:
        call.down_read += read(call.caller)

    @rule(really=rarely)
    def refuse_the_next_call(self, really: bool) -> None:
        self.refuse_next = really

    @rule(max_bytes=st.sampled_from([1, 1000, 10_000, 2**18]))
    def pull(self, max_bytes: int) -> None:
        self.pair.pull(max_bytes)

    @rule(up=st.integers(0, 5000), down=st.integers(0, 5000))
    def push_some(self, up: int, down: int) -> None:
        self.pair.push(up=up, down=down)

    @rule()
    def turn(self) -> None:
        self.pair.pull()
        self.pair.push()

    @rule(really=rarely)
    def goaway(self, really: bool) -> None:
        if really and self.goaways < 2 and self.counter > 20:
            self.goaways += 1
            self.pair.listener.goaway()

    @invariant()
    def nothing_is_lost_mixed_up_or_too_much(self) -> None:
        if not hasattr(self, "pair"):
            return
        assert not self.pair.dialer.closed, self.pair.dialer.error
        assert not self.pair.listener.closed, self.pair.listener.error
        for call in self.all.values():
            for sent, got in ((call.up, call.up_read), (call.down, call.down_read)):
                assert got == sent[: len(got)]
                assert [type(item) for item in got] == [type(item) for item in sent[: len(got)]]
            for stream, least in ((call.caller, 0), (call.worker, 262_144)):
                if stream is not None and not stream._in_done:
                    held = sum(len(item) + ITEM_COST for item in stream._items)
                    held += stream._assembly.filled if stream._assembly else 0
                    assert (
                        held + stream._in_credit + stream._owed <= max(stream._window, least) + stream._extra
                    )

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        self.finish_all()
        for call in self.all.values():
            self.check_end(call)
        assert self.pair.dialer.open_streams == self.pair.listener.open_streams == 0
        assert self.pair.dialer_budget.used == self.pair.listener_budget.used == 0
        assert not self.pair.dialer_budget._asking
        assert not self.pair.listener_budget._asking

    def finish_all(self) -> None:
        """Everybody reads, then everybody ends, until nothing moves."""
        idle = 0
        while idle < 3:  # a turn may do nothing but ask for an item, or bring it
            before = sum(len(call.up_read) + len(call.down_read) for call in self.all.values())
            for call in self.all.values():
                if call.worker is not None:
                    call.up_read += read(call.worker)
                call.down_read += read(call.caller)
            self.pair.settle()
            after = sum(len(call.up_read) + len(call.down_read) for call in self.all.values())
            idle = 0 if after > before else idle + 1
        for call in self.all.values():
            if call.worker is not None and not call.worker.over:
                assert call.up_read == call.up
                assert call.down_read == call.down
        for _ in range(1000):
            for call in self.all.values():
                call.caller.end()
                if call.worker is not None and not call.worker._out_done:
                    call.down_ended = True
                    call.worker.end()
                if call.worker is not None:
                    call.up_read += read(call.worker)
                call.down_read += read(call.caller)
            self.pair.settle()
            if all(call.caller.ended for call in self.all.values()):
                break

    def check_end(self, call: Call) -> None:
        caller, error = call.caller, call.caller.error
        assert caller.ended
        if call.killed:
            assert isinstance(error, CallCancelledError)
        elif call.worker is None:
            assert isinstance(error, (DrainingError, OverloadedError)), error
            assert error.retry is Retry.SAFE
            assert not caller.answered or isinstance(error, OverloadedError)
        elif call.refused:
            assert isinstance(error, OverloadedError)
            assert error.retry is Retry.SAFE
        else:
            assert call.down_read == call.down
            if call.failed is not None:
                assert isinstance(error, RemoteError)
                assert (str(error), error.type_name) == (str(call.failed), "KeyError")
                assert error.retry is Retry.NEVER
            else:
                assert error is None


class CutConnections(TwoConnections):
    """The same, and the link is cut at the end: every call has exactly one outcome, and nothing is kept."""

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        self.cut = True
        before = [
            (call, call.caller.over, call.caller._error, call.caller._handed_out())
            for call in self.all.values()
        ]
        self.pair.cut()
        for call, over, error, sent in before:
            call.down_read += read(call.caller)
            assert call.down_read == call.down[: len(call.down_read)]
            caller = call.caller
            assert caller.ended
            if over:
                assert caller.error is error
            elif sent:
                assert type(caller.error) is StreamBrokenError
                assert caller.error.received == len(call.down_read)
                assert caller.error.retry is Retry.UNKNOWN
            else:
                assert type(caller.error) is UnavailableError
                assert caller.error.retry is Retry.SAFE
            if call.worker is not None:
                assert call.worker.over
                assert call.worker.killed or call.worker._out_done
        assert self.pair.dialer.open_streams == self.pair.listener.open_streams == 0
        assert self.pair.dialer_budget.used == self.pair.listener_budget.used == 0


TestTwoConnections = TwoConnections.TestCase
TestTwoConnections.settings = settings(max_examples=200, stateful_step_count=50)
TestCutConnections = CutConnections.TestCase
TestCutConnections.settings = settings(max_examples=100, stateful_step_count=40)


@pytest.mark.soak
@pytest.mark.timeout(3600)
class TestTwoConnectionsAtLength(TwoConnections.TestCase):  # type: ignore[valid-type,misc]
    settings = settings(max_examples=10_000, stateful_step_count=60)
