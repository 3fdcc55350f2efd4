"""One connection of the wire protocol, without I/O: bytes in, streams and bytes out.

A driver owns the transport. It gives what arrives to ``get_buffer``/``buffer_updated`` (or ``feed``), writes
what ``take_output`` returns, calls ``tick`` with its clock, and closes the transport once ``closed`` is set
and the output is written. Nothing here waits, raises on what a peer sent, reads a clock or logs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from dynamo.core.errors import (
    DrainingError,
    DynamoError,
    EncodeError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
    UnknownEndpointError,
    WireError,
)
from dynamo.core.ports.request_plane import Request
from dynamo.core.wire import opening
from dynamo.core.wire.budget import ReceiveBudget
from dynamo.core.wire.dispatch import Dispatch
from dynamo.core.wire.faults import encode_error
from dynamo.core.wire.frames import (
    ALL_STREAMS,
    ERROR,
    F_END,
    F_RAW,
    GOAWAY,
    ITEM_COST,
    MAGIC,
    MAX_BODY,
    PING,
    header,
    map_frame,
    number_frame,
)
from dynamo.core.wire.handshake import Handshake
from dynamo.core.wire.keepalive import Keepalive
from dynamo.core.wire.opening import Hello, Options
from dynamo.core.wire.outbox import Buffer, Outbox
from dynamo.core.wire.reader import Reader
from dynamo.core.wire.sending import small_limit, too_large
from dynamo.core.wire.stream import Stream


def refuse_all(stream: Stream) -> None:
    stream.refuse(UnknownEndpointError(f"nobody serves {stream.request.endpoint} here"))


class Connection:
    """A dialer opens streams, a listener gives those that arrive to ``accept``, each with its first item.

    ``on_output`` is called once when there is something to take, and again only after ``take_output`` took
    all of it. In between, ``on_burst``: so much has come that it is better taken now than at the end of the
    tick; and ``on_end``: all that this side has to say of a call is there. ``on_ready``: the opening is done.
    ``on_idle``: the last open stream ended. ``closed``: write what ``take_output`` still gives, then close
    the transport; ``error`` says why, None for a plain ``close()``. What arrives after that is thrown away.
    """

    def __init__(
        self,
        options: Options,
        budget: ReceiveBudget,
        *,
        dialer: bool,
        accept: Callable[[Stream], None] = refuse_all,
        stream_type: type[Stream] = Stream,
    ) -> None:
        self.options = options
        self.ready = False
        self.closed = False
        self.draining = False  # the peer sent GOAWAY
        self.error: DynamoError | None = None
        self.on_ready: Callable[[], None] | None = None
        self.on_idle: Callable[[], None] | None = None
        self._dialer = dialer
        self._accept = accept
        self._stream_type = stream_type
        self._budget = budget
        self._out = Outbox()
        self._reader = Reader(Dispatch(self))
        # Where to put received bytes; never empty. Not to be kept once ``buffer_updated`` returned.
        self.get_buffer = self._reader.get_buffer
        self._keepalive = Keepalive(self, options)
        self._hello = Hello()
        self._handshake = Handshake(self)
        self._streams: dict[int, Stream] = {}
        self._waiting: set[Stream] = set()  # opened, and their OPEN could not be queued yet
        self._last_id = 0
        self._limit_id = ALL_STREAMS  # as the last GOAWAY said: streams above it are not served
        self._goaways = 0
        self._max_receive = options.max_message_bytes
        self._max_send = min(options.max_message_bytes, self._hello.max_message)
        self._half = small_limit(self._hello.window, self._max_send)
        if dialer:
            self._handshake.say_hello()
            self._out.open = options.early and not options.token  # else calls wait for the listener's HELLO

    # What the driver reads.

    @property
    def on_output(self) -> Callable[[], None]:
        return self._out.on_output

    @on_output.setter
    def on_output(self, hook: Callable[[], None]) -> None:
        self._out.on_output = hook

    @property
    def on_end(self) -> Callable[[], None]:
        return self._out.on_end

    @on_end.setter
    def on_end(self, hook: Callable[[], None]) -> None:
        self._out.on_end = hook

    @property
    def on_burst(self) -> Callable[[], None]:
        return self._out.on_burst

    @on_burst.setter
    def on_burst(self, hook: Callable[[], None]) -> None:
        self._out.on_burst = hook

    @property
    def open_streams(self) -> int:
        return len(self._streams) + len(self._waiting)

    @property
    def accepts_calls(self) -> bool:
        """``open`` may bring something: not closed, no GOAWAY came, the peer was not silent for K."""
        return not (self.closed or self.draining or self._keepalive.silence.stalled)

    @property
    def stalled(self) -> bool:
        """The peer was silent for K, and still is."""
        return self._keepalive.silence.stalled and not self.closed

    @property
    def greeted(self) -> bool:
        """The peer's magic arrived: it speaks this protocol."""
        return self._reader.greeted

    @property
    def peer_instance_id(self) -> int:
        return self._hello.instance_id

    @property
    def peer_incarnation(self) -> int:
        return self._hello.incarnation

    # Bytes.

    def buffer_updated(self, count: int) -> None:
        """``count`` bytes were put where ``get_buffer`` said."""
        self._reader.buffer_updated(count)
        if self._out.flooded and not self.closed:
            self._violate("the peer makes this side answer and does not read the answers")

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """The same, for carriers that bring bytes of their own."""
        view = memoryview(data)
        while view:
            buffer = self._reader.get_buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            del buffer
            self.buffer_updated(count)
            view = view[count:]

    def take_output(self, max_bytes: int) -> list[Buffer]:
        """What to write now, in order; empty if there is nothing.

        Control frames and small items come whole (about CONGESTED_BYTES at most), then fragments of large
        items in turns until ``max_bytes`` are reached, at least one. Take again while it ``has_output`` and
        there is room.
        """
        return self._out.take(max_bytes)

    @property
    def waiting_bytes(self) -> int:
        """Of control frames and small items that ``take_output`` would give: tells whether more came."""
        return self._out.waiting_bytes

    @property
    def has_output(self) -> bool:
        return self._out.scheduled

    # Calls.

    def open(self, request: Request) -> Stream:
        """Start a call (dialer); never waits. If none can start the stream has ended, with the SAFE reason.

        Raises TooLargeError and EncodeError; then nothing was sent.
        """
        size = -1
        if (payload := request.payload) is not None:
            size = payload.nbytes if type(payload) is memoryview else len(payload)
            if size > self._max_send:
                raise too_large(size, self._max_send)
        hello = self._hello
        stream = self._stream_type(self, request)
        streams = len(self._streams) + len(self._waiting)
        # As ``accepts_calls`` says, without a call for each request.
        if self.closed or self.draining or self._keepalive.silence.stalled or streams >= hello.max_streams:
            stream.over = stream._in_done = stream._out_done = True
            stream._error = self._reason_not_to_open()
            return stream
        head = self._reserve(stream)
        stream._credit = stream._window_out = hello.window
        stream._half = half = self._half
        stream._out_done = request.end
        out = self._out
        if out.open and out.has_room() and size + ITEM_COST <= half and len(head) + size <= MAX_BODY - 4:
            stream._open_at, stream._open_index = out.takes, len(out.frames)
            out.size += stream._put_open(out.frames, head, payload, size)
            if not out.scheduled:
                out.wake()
            elif len(out.frames) >= out.eager:
                out.hurry()
            if request.end:
                out.on_end()
            return stream
        stream._head = head
        if payload is not None:
            stream._first = True
            flags = (F_END if request.end else 0) | (F_RAW if type(payload) is not bytes else 0)
            stream._pending = deque(((payload, size, flags),))
        self._waiting.add(stream)
        out.join(stream)
        return stream

    def _reserve(self, stream: Stream) -> bytes:
        """Memory for the window of the response, and the head of OPEN that says how large that is."""
        window = self._budget.window(self.options.window_bytes)
        try:
            head = opening.encode_head(
                stream.request, None if window == self.options.window_bytes else window
            )
        except (TypeError, ValueError, OverflowError) as error:
            self._budget.give(window)
            raise EncodeError(f"the metadata of the call cannot be sent: {error}") from error
        limit = min(self._hello.max_head, MAX_BODY - 1024)
        if len(head) > limit:
            self._budget.give(window)
            raise TooLargeError(f"endpoint and metadata of {len(head)} bytes are over the limit of {limit}")
        stream._reserved = stream._window = stream._in_credit = window
        stream._give_at = window // 2
        return head

    def _reason_not_to_open(self) -> DynamoError:
        peer = self.options.peer
        if self.closed:
            return UnavailableError(
                f"the connection to {peer} is closed{f': {self.error}' if self.error else ''}"
            )
        if self.draining:
            return DrainingError(f"{peer} is draining and takes no new calls")
        if self._keepalive.silence.stalled:
            bound = f"{self.options.keepalive_s:g} s (DYN_KEEPALIVE_S)"
            return UnavailableError(f"nothing came from {peer} for {bound}: it is sent no new calls")
        return OverloadedError(f"{peer} takes {self._hello.max_streams} calls at a time on a connection")

    def _finished(self, stream: Stream) -> None:
        """Both its directions are over."""
        streams = self._streams
        if streams.pop(stream.id, None) is None:
            self._waiting.discard(stream)
        if self.on_idle is not None and not streams and not self._waiting:
            self.on_idle()

    def tick(self, now: float) -> float:
        """Keep-alive: call it once connected, and again at the time it returns (seconds of any steady clock).

        May queue a PING, end calls, or close the connection: the opening took too long, or 3 K of silence.
        """
        if self.closed:
            return math.inf
        heard, self._reader.heard = self._reader.heard, False
        return self._keepalive.tick(now, heard)

    def unanswered(self) -> list[Stream]:
        """The calls of ours that may run twice and brought nothing yet."""
        if not self._dialer:
            return []
        calls = (*self._streams.values(), *self._waiting)
        return [call for call in calls if call.request.idempotent and not call.answered]

    def probe(self) -> None:
        """Queue a PING. On carriers that lose messages, what comes next shows a gap, too."""
        if not self.closed:
            self._out.answer(_PING)

    # The end of it.

    def goaway(self) -> None:
        """Drain (listener). The first time it asks for no new streams, the second time it takes none."""
        if self.closed or self._dialer or self._goaways == 2:
            return
        self._goaways += 1
        if self._goaways == 2:
            self._limit_id = self._last_id
        self._out.answer(number_frame(GOAWAY, 0, self._limit_id))

    def close(self, error: DynamoError | None = None) -> None:
        """End all streams and the connection; the peer is told ``error`` if there is one. Twice is fine."""
        self._close(error, tell=error is not None)

    def connection_lost(self, error: Exception | None = None) -> None:
        """The transport is gone. Doing it twice, or after ``close``, is fine."""
        if not self.closed:
            lost = UnavailableError(f"the connection to {self.options.peer} was lost{_because(error)}")
            lost.__cause__ = error
            self._close(lost, tell=False)
        self._out.clear()

    def unreachable(self, error: DynamoError) -> None:
        """There never was a transport: no call was sent, and each ends with ``error``."""
        self._close(error, tell=False, refused=True)
        self._out.clear()

    def _violate(self, what: str) -> None:
        self._close(WireError(f"{self.options.peer} broke the wire protocol: {what}"), tell=True)

    def _close(
        self, error: DynamoError | None, *, tell: bool, refused: bool = False, refuses: bool = False
    ) -> None:
        """``refused``: by the listener, so each stream ends with ``error``. ``refuses``: by us."""
        if self.closed:
            return
        self.closed = True
        self.error = error
        self._reader.stopped = True
        out = self._out
        out.busy.clear()
        endings = [
            (stream, stream._broken(error, refused, refuses))
            for stream in (*self._streams.values(), *self._waiting)
        ]
        # What a listener queued for streams that ended still goes out; calls that count as not sent must not.
        if self._dialer or not out.open:
            out.forget()
        if tell and error is not None:
            notice = map_frame(ERROR, 0, encode_error(error))
            if out.open:
                out.queue(notice)
            else:
                out.opening += [notice] if self._handshake.hello_sent else [MAGIC, notice]
        for stream, ending in endings:
            if self._dialer:
                stream._finish(ending)
            else:
                self._kill(stream, ending)
        if out.opening or out.control or out.frames:
            out.wake()

    def _kill(self, stream: Stream, error: DynamoError) -> None:
        """End a listener's stream whose caller is gone."""
        stream.killed = True
        stream._items.clear()
        stream._in_done = False
        stream._finish(error)
        if (hook := stream.on_cancel) is not None:
            hook(True)

    # The opening, as Handshake finds it done.

    def _limit_sending(self, hello: Hello) -> None:
        """The peer's HELLO says what it takes."""
        self._hello = hello
        self._max_send = min(self.options.max_message_bytes, hello.max_message)
        self._half = small_limit(hello.window, self._max_send)
        for stream in [*self._streams.values(), *self._waiting]:
            stream._rewindow(hello.window)

    def _become_ready(self) -> None:
        self.ready = True
        reader, out = self._reader, self._out
        reader.streams = self._streams
        reader.quick_limit = min(self._max_receive, MAX_BODY)
        out.open = True
        if out.opening or out.control or out.busy:
            out.wake()
        if (hook := self.on_ready) is not None:
            self.on_ready = None
            hook()


_PING = header(PING, 0, 0, 8) + bytes(8)


def _because(error: Exception | None) -> str:
    return "" if error is None else f": {error}"
