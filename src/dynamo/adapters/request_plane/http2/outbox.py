"""What waits to be written: control frames as they come, then the calls that have something, in turns."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable

from dynamo.adapters.request_plane.http2.fields import FieldEncoder
from dynamo.adapters.request_plane.http2.floods import Floods
from dynamo.adapters.request_plane.http2.frames import (
    DATA,
    DEFAULT_WINDOW,
    LARGEST_WINDOW,
    Code,
    headers_frames,
    pack_head,
    reset_frame,
    window_frame,
)
from dynamo.adapters.request_plane.http2.settings import PeerSettings
from dynamo.adapters.request_plane.http2.stream import Http2Call
from dynamo.core.ports.request_plane import Payload

EAGER_CALLS = 16  # with something to send; so many are not left to the end of the driver's tick
MAX_OVER = 64  # calls that wait for their turn and need it no more
GIVE_BYTES = 2**24  # of the connection's window, which holds nobody up: given back in large pieces


def _nothing() -> None:
    pass


class Outbox:
    """Calls say that they bring something, and are asked for a frame of it each time that output is taken.

    ``on_output`` is called once when there is something, and again after it was taken; ``on_burst`` when so
    many calls wait that it is better taken at once.
    """

    def __init__(self, settings: PeerSettings, floods: Floods, *, dialer: bool) -> None:
        self.on_output: Callable[[], None] = _nothing
        self.on_burst: Callable[[], None] = _nothing
        self.waiting: dict[Http2Call, None] = {}  # to be opened
        self.owed = 0  # of the connection's window
        self.window = DEFAULT_WINDOW  # what that of the peer lets through
        self.brought = 0  # bytes since the last take
        self.last_opened = -1
        self.open = False  # the peer has said what it takes
        self.encoder = FieldEncoder()
        self.unread = 0  # bytes of frames that wait for nothing but the peer, who may not read
        self._settings, self._floods = settings, floods
        self._dialer = dialer
        self._frames: list[Payload] = []
        self._busy: deque[Http2Call] = deque()
        self._blocked: dict[Http2Call, None] = {}  # by the connection's window
        self._over = 0  # of the busy ones, what has ended
        self._woken = False
        self._eager = EAGER_CALLS

    @property
    def has_output(self) -> bool:
        return bool(self._frames or (self.open and (self._busy or (self._blocked and self.window > 0))))

    # What is brought.

    def brings(self, call: Http2Call, size: int) -> None:
        """It has ``size`` bytes more to send, or its end."""
        self.brought += size
        if not call.busy and not call.over:
            call.busy = True
            self._busy.append(call)
            if not self._woken:
                self.wake()
            elif len(self._busy) >= self._eager:
                eager = 2 * self._eager
                self.on_burst()
                self._eager = eager

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            self.on_output()

    def put(self, frame: bytes) -> None:
        """A frame that waits for nothing."""
        self._frames.append(frame)
        self.unread += len(frame)
        self.wake()

    def reset(self, call: Http2Call, code: Code) -> None:
        if call.id:
            self.put(reset_frame(call.id, code))

    def unblock(self, increment: int) -> bool:
        """The connection's window grew; False if that is more than there can be."""
        self.window += increment
        if self._blocked:
            self.wake()
        return self.window <= LARGEST_WINDOW

    def retry_waiting(self) -> None:
        """Calls that wait to be opened may now."""
        for call in self.waiting:
            self.brings(call, 0)

    def forget(self, call: Http2Call) -> None:
        """It is over. Many are let go before their turn: a frozen peer's may never come."""
        self._blocked.pop(call, None)
        if call.busy:
            self._over += 1
            if self._over > MAX_OVER and 2 * self._over > len(self._busy):
                alive = [other for other in self._busy if not other.over]
                self._busy.clear()
                self._busy.extend(alive)
                self._over = 0

    def clear(self) -> None:
        """Nothing of this will be sent."""
        self._frames.clear()
        self._busy.clear()
        self._blocked.clear()

    # What is taken.

    def take(self, limit: int) -> list[bytes]:
        """What is to be written now: all of control, and about ``limit`` bytes of calls."""
        self._woken = False
        self._eager = sys.maxsize  # no bursts in here
        self.brought = self.unread = 0
        frames, busy = self._frames, self._busy
        if self.owed >= GIVE_BYTES:
            frames.append(window_frame(0, self.owed))
            self.owed = 0
        if self.open:
            taken = 0
            while taken < limit:
                if busy:
                    call = busy.popleft()
                elif self._blocked and self.window > 0:  # one by one: a window of a byte is not for all
                    call = next(iter(self._blocked))
                    del self._blocked[call]
                else:
                    break
                call.busy = False
                if call.over:
                    self._over -= 1
                else:
                    taken += self.emit(call)
        self._eager = EAGER_CALLS
        if not frames:
            return []
        data = b"".join(frames)
        frames.clear()
        return [data]

    def emit(self, call: Http2Call) -> int:
        """One DATA frame of a call, and what stands before and behind it; the bytes of it."""
        if call.opening is not None and not self._open(call):
            return 0
        size = call.queued
        frames = self._frames
        if size:
            if not self._dialer and not call.head_sent:
                if call.holds_back:
                    return 0
                call.head_sent = True
                self._headers(call.id, call.head(self.encoder))
            most = self._settings.max_frame
            room = min(call.credit + size, self.window, most)
            if size <= room and not call.offset:
                frames.append(pack_head(size >> 8, size & 255, DATA, 0, call.id))
                frames.extend(call.queue)
                call.queue.clear()
                call.queued = 0
            elif room > 0:
                room = min(room, size)
                frames.append(pack_head(room >> 8, room & 255, DATA, 0, call.id))
                frames.extend(call.gather(room))
                size = room
            else:
                if self.window <= 0:
                    self._blocked[call] = None
                return 0
            self.window -= size
            self._floods.sent()
            call.make_room()
            if call.queued:
                call.busy = True
                self._busy.append(call)
                return size
        if call.out_done and not self._dialer:
            self._end(call)
        return size + 1

    def _open(self, call: Http2Call) -> bool:
        if len(call.connection.calls) >= self._settings.max_streams:
            return False
        opening, call.opening = call.opening, None
        assert opening is not None
        del self.waiting[call]
        self.last_opened += 2
        call.id = self.last_opened
        call.connection.opened(call)
        self._headers(call.id, opening.block(self.encoder))
        if (beyond := call.window - call.connection.first_window) > 0:
            self._frames.append(window_frame(call.id, beyond))
        return True

    def _headers(self, stream: int, block: bytes, *, end: bool = False) -> None:
        self._frames.append(headers_frames(stream, block, end=end, room=self._settings.max_frame))
        self.unread += len(block)

    def _end(self, call: Http2Call) -> None:
        block = b"" if call.head_sent else call.head(self.encoder)
        call.head_sent = True
        self._headers(call.id, block + call.trailers(self.encoder), end=True)
        if not call.peer_done:
            self._frames.append(reset_frame(call.id, Code.NO_ERROR))  # RFC 9113, section 8.1
        call.finish(None)
