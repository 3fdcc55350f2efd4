"""Call one instance, stream both ways.

Invariants, each with one test in ``dynamo.testing.request_plane``:

R1  Items arrive whole, unchanged and in order, both ways, RAW ones as RAW; of any size up to the limit.
R2  Starting a call never waits; what is wrong with the peer is the first thing received.
R3  A refusal (draining, overloaded, unknown endpoint, another instance) arrives as its own class, SAFE, and
    no handler has started.
R4  ``send`` answers False once the window is spent; an unread stream stops its producer within one window
    plus one item.
R5  An item larger than the window gets through, one after another, within the receive budget; one larger than
    the whole budget passes alone. A stream that nobody reads keeps the budget from no other.
R6  ``kill`` (leaving a call early) reaches the worker as a cancellation, whatever it is doing.
R7  ``stop`` reaches the worker as a request to finish; what it sends afterwards still arrives.
R8  END is told from a broken link: without an END the call ends in StreamBrokenError with the count of items
    received.
R9  An error that the worker sends arrives after the items before it, with class, text and retry verdict;
    after an item SAFE is read as UNKNOWN.
R10 The two directions end one by one: the input may end first, and items go on coming.
R11 Deadline (time left), metadata, request id, attempt and priority arrive as they were sent.
R12 ``drain`` lets what runs go on and announces itself to callers; ``refuse`` turns away what is new, SAFE.
R13 A slow reader holds up its own stream alone.
R14 An item past the limit is a TooLargeError at the sender, and the call lives on.
R15 Cancelling ``wait`` or ``writable`` loses nothing.
R16 After the blocks are left nothing remains: no task, socket, file, budget.
R17 ``check`` never raises.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from attrs import Factory, define, frozen

from dynamo.core.errors import DynamoError
from dynamo.core.health import Health

Payload: TypeAlias = bytes | memoryview
"""One item on its way: ``bytes`` is one encoded MessagePack value, a ``memoryview`` is raw bytes.

What a sent memoryview shows must stay unchanged until its call ends: no copy is taken.
"""


@frozen(kw_only=True)
class Capability:
    schemes: tuple[str, ...]  # of the addresses that it can dial
    cross_process: bool
    cross_host: bool
    window_bytes: int  # per stream and direction
    max_message_bytes: int  # of one item, encoded


@define(eq=False)
class Request:
    """What opens a call. ``payload`` is the first input item; ``end`` says that it is the only one.

    The worker finds it here: what it receives, and counts as received, are the items after it.

    ``timeout_s`` is the time left, in seconds, when the request is handed over. ``idempotent`` stays with the
    caller: it lets a stalled link give up early.
    """

    endpoint: str  # ns.component.endpoint; empty: what is served there?
    request_id: str
    payload: Payload | None = None
    end: bool = True
    attempt: int = 1
    timeout_s: float | None = None
    metadata: Mapping[str, str] = Factory(dict)
    priority: int = 0
    idempotent: bool = False


class Channel(Protocol):
    """One end of a call: a sending and a receiving direction. One task reads, one task writes."""

    @abstractmethod
    def send(self, payload: Payload, *, end: bool = False) -> bool:
        """Queue one item, with ``end`` as the last one; False: await ``writable`` before sending more.

        Never waits. Once the call is over the item is dropped and the answer is True: the receiving side
        tells why. Raises TooLargeError.
        """

    @abstractmethod
    def end(self) -> None:
        """Nothing more is sent from here; doing it twice is fine."""

    @abstractmethod
    async def writable(self) -> None:
        """Wait until the window has room, or the call is over. Cancelling loses nothing."""

    @abstractmethod
    def receive_nowait(self) -> Payload | None:
        """Take the next item, or None if none is here yet (or none will come: see ``ended``)."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """True when no further item will come and all were taken."""

    @property
    @abstractmethod
    def error(self) -> DynamoError | None:
        """Why it ended; None for a clean end or while it runs."""

    @property
    @abstractmethod
    def received(self) -> int:
        """Items taken so far."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait until there is an item to take, or ``ended``. Cancelling loses nothing."""


class OutgoingCall(Channel, Protocol):
    """The caller's end."""

    @property
    @abstractmethod
    def answered(self) -> bool:
        """True once anything of the response arrived: the request can no longer move to another instance."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the worker to finish early; keep receiving until ``ended``."""

    @abstractmethod
    def kill(self) -> None:
        """Leave: the worker is cancelled, what is still on its way is dropped, and the call has ended at
        once, with CallCancelledError. After ``ended`` it does nothing.
        """


class IncomingCall(Channel, Protocol):
    """The worker's end. Until ``send``, ``end`` or ``fail`` the caller has seen nothing of it.

    Its input ends with CallCancelledError when the caller killed the call, with StreamBrokenError when the
    link broke.
    """

    request: Request

    on_cancel: Callable[[bool], object] | None
    """Called with False when the caller asks to stop, with True when the call was killed or its link broke.

    Set it in ``accept``; what came before is told at once on setting by the accepting code looking at
    ``stopped`` and ``killed``.
    """

    @property
    @abstractmethod
    def stopped(self) -> bool: ...

    @property
    @abstractmethod
    def killed(self) -> bool: ...

    @abstractmethod
    def refuse(self, error: DynamoError) -> None:
        """Turn the call away before a handler starts: it arrives with ``error``'s class and SAFE."""

    @abstractmethod
    def fail(self, error: DynamoError) -> None:
        """End the response with ``error``, after the items already sent."""


Accept: TypeAlias = Callable[[IncomingCall], None]
"""Called on the loop for every call, once its first item is whole; must return at once."""


class Server(Protocol):
    @property
    @abstractmethod
    def addresses(self) -> tuple[str, ...]:
        """The URLs to publish, preferred first: what others dial, not what was bound."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """Calls taken that have not ended."""

    @abstractmethod
    def drain(self) -> None:
        """Tell all callers to open nothing new here; what they still open in this moment is served."""

    @abstractmethod
    def refuse(self) -> None:
        """From now on turn new calls away with DrainingError, SAFE."""


class RequestPlane(Protocol):
    @property
    @abstractmethod
    def capability(self) -> Capability: ...

    @abstractmethod
    def serve(
        self, accept: Accept, *, instance_id: int, incarnation: int, address: str | None = None
    ) -> AbstractAsyncContextManager[Server]:
        """Take calls until the block ends, at ``address`` where it is declared, else where the settings say.

        Entering returns once callers can connect. Leaving ends every call and closes every connection, in
        bounded time. Raises ConflictError (address in use), ConfigError (not an address of this host, bad
        certificate).
        """

    @abstractmethod
    def call(
        self, address: str, request: Request, *, instance_id: int = 0, incarnation: int = 0
    ) -> OutgoingCall:
        """Start a call at once; connecting is part of it and bounded by ``connect_timeout_s``.

        The instance expected there is checked by the peer; 0 is any. Raises TooLargeError, ConfigError (bad
        address), UnsupportedError (no way there from this process: try the instance's next address).
        """

    @abstractmethod
    async def check(self, address: str) -> Health:
        """Probe the way to one peer, bounded; never raises."""
