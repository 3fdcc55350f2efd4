"""The way to NATS: one connection at a time to one of the servers, and a new one when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final

import nats.errors
from attrs import define
from nats.aio.client import Client
from nats.aio.msg import Msg

from dynamo.adapters.request_plane.nats import access
from dynamo.core.config import Settings
from dynamo.core.errors import AuthError, DynamoError, UnavailableError

FIRST_WAIT_S: Final = 0.05  # between attempts to connect, doubled each time
LONGEST_WAIT_S: Final = 1.0
CLOSE_S: Final = 1.0
PENDING_BYTES: Final = 1024 * 1024  # with nats-py, unwritten: ``publish`` waits beyond that
REFUSALS = (
    "authorization violation",
    "authentication",
    "user authentication",
    "nkey",
    "permissions violation",
)


@define(eq=False)
class Subscription:
    """Kept over all connections until it is dropped."""

    subject: str
    queue: str
    receive: Callable[[Msg], None]
    live: Any = None  # nats-py's, on the connection of the moment


class Broker:
    """Keeps one connection until ``aclose``; ``on_up`` is called each time when it stands."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._servers = access.servers(settings)
        self._options = access.options(settings)
        self._subscriptions: list[Subscription] = []
        self._client: Client | None = None
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.on_up: Callable[[], None] | None = None
        self.problem: DynamoError | None = None  # why it is down

    @property
    def shown(self) -> str:
        return ", ".join(map(access.hidden, self._servers))

    @property
    def up(self) -> bool:
        return self._client is not None

    @property
    def max_payload(self) -> int:
        return self._client.max_payload if self._client is not None else 0

    async def start(self) -> None:
        """Connect; wait for servers that are away. Raises UnavailableError, AuthError."""
        limit = self._settings.startup_timeout_s
        try:
            async with asyncio.timeout(limit):
                client = await self._connect_patiently()
        except TimeoutError:
            raise UnavailableError(
                f"no NATS server at {self.shown} ({self._settings.source('nats_server')}) after {limit:g} s: "
                f"{self.problem or 'no answer'}; start one, or set DYN_REQUEST_PLANE=tcp"
            ) from self.problem
        self._client = client
        self._task = asyncio.get_running_loop().create_task(self._keep(client))

    async def aclose(self) -> None:
        if self._task is not None:
            # nats-py swallows a cancellation here and there
            while not self._task.done():
                self._task.cancel()
                await asyncio.wait((self._task,), timeout=0.1)
        client, self._client = self._client, None
        if client is not None:
            await self._leave(client)

    async def subscribe(self, subject: str, receive: Callable[[Msg], None], queue: str = "") -> Subscription:
        """Call ``receive`` with all that comes, from now on."""
        one = Subscription(subject, queue, receive)
        self._subscriptions.append(one)
        if self._client is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await self._renew(self._client, one)
                await self._heard(self._client)
        return one

    async def drop(self, one: Subscription) -> None:
        self._subscriptions.remove(one)
        if one.live is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await one.live.unsubscribe()
                if self._client is not None:
                    await self._heard(self._client)

    async def publish(self, subject: str, data: bytes, reply: str) -> None:
        """Hand it to the connection; what is lost with that shows to the receiver as a gap."""
        if self._client is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._client.publish(subject, data, reply)

    async def ask(self, subject: str, timeout_s: float) -> bytes | None:
        """The first answer to an empty message; None if nobody is there, or nobody answers."""
        if self._client is None:
            return None
        try:
            return bytes((await self._client.request(subject, b"", timeout_s)).data)
        except (nats.errors.Error, OSError, TimeoutError):
            return None

    @property
    def _patience(self) -> Any:  # nats-py says int, and takes any number
        return self._settings.connect_timeout_s

    async def _connect_patiently(self) -> Client:
        wait_s = FIRST_WAIT_S
        while True:
            for server in list(self._servers):
                try:
                    return await self._connect(server)
                except AuthError as error:
                    self.problem = error
                    if self._task is None:
                        raise  # at the start; a server that was there before may have forgotten its users
                except (nats.errors.Error, OSError, TimeoutError) as error:
                    self.problem = UnavailableError(
                        f"{access.hidden(server)}: {str(error) or type(error).__name__}"
                    )
                self._servers.append(self._servers.pop(0))
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _connect(self, server: str) -> Client:
        client = Client()
        lost = asyncio.Event()
        seen: list[Exception] = []

        async def told(error: Exception) -> None:
            seen[:] = [error]

        async def closed() -> None:
            lost.set()

        try:
            async with asyncio.timeout(self._patience):
                await client.connect(
                    server,
                    error_cb=told,
                    closed_cb=closed,
                    allow_reconnect=False,
                    connect_timeout=self._patience,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    ping_interval=3600,
                    pending_size=PENDING_BYTES,
                    flush_timeout=self._patience,
                    **self._options,
                )
                for one in self._subscriptions:
                    await self._renew(client, one)
                await self._heard(client)
        except ssl.SSLCertVerificationError as error:
            self._abort(client)  # nats-py's own closing waits for ever, for the end of what TLS replaced
            raise AuthError(
                f"the NATS server {access.hidden(server)} ({self._settings.source('nats_server')}) has a "
                f"certificate that we do not trust: {error.verify_message or error}; set NATS_TLS_CA to the "
                "file of the authority that signed it"
            ) from error
        except BaseException as error:
            await self._leave(client)
            for said in (error, *seen):
                if any(word in str(said).lower() for word in REFUSALS):
                    raise AuthError(
                        f"the NATS server {access.hidden(server)} ({self._settings.source('nats_server')}) "
                        f"refused us: {said}; set NATS_AUTH_USERNAME and NATS_AUTH_PASSWORD, "
                        "NATS_AUTH_TOKEN, NATS_AUTH_NKEY or NATS_AUTH_CREDENTIALS_FILE to what it knows"
                    ) from error
            if isinstance(error, nats.errors.NoServersError) and seen:
                raise OSError(str(seen[0]) or type(seen[0]).__name__) from error
            raise
        self._lost = lost
        return client

    async def _renew(self, client: Client, one: Subscription) -> None:
        async def receive(message: Msg) -> None:
            one.receive(message)

        one.live = await client.subscribe(
            one.subject, one.queue, cb=receive, pending_msgs_limit=0, pending_bytes_limit=0
        )

    async def _heard(self, client: Client) -> None:
        """Wait until the server has read all that we said: nats-py's ping overtakes what is not written."""
        await client._flush_pending(force_flush=True)
        await client.flush(self._patience)

    async def _keep(self, client: Client) -> None:
        """Announce each connection, watch it, and replace it when it is lost."""
        while True:
            self._client, self.problem = client, None
            try:
                if self.on_up is not None:
                    self.on_up()
                await self._watch(client)
            finally:
                self._client = None
                await self._leave(client)
            self.problem = UnavailableError(f"the connection to NATS at {self.shown} was lost")
            client = await self._connect_patiently()

    async def _watch(self, client: Client) -> None:
        """Return when the connection is lost, or its server is silent."""
        interval_s = self._settings.keepalive_s / 3
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._lost.wait()
            if self._lost.is_set() or not client.is_connected:
                return
            try:
                await client.rtt(self._settings.keepalive_s)  # type: ignore[arg-type]
            except (nats.errors.Error, OSError, TimeoutError):
                return

    async def _leave(self, client: Client) -> None:
        """Close it, in bounded time: with a full socket nats-py would wait for ever."""
        with contextlib.suppress(TimeoutError, nats.errors.Error, OSError):
            async with asyncio.timeout(CLOSE_S):
                await client.close()
        self._abort(client)

    @staticmethod
    def _abort(client: Client) -> None:
        """Close its socket now."""
        transport: Any = client._transport
        writer = getattr(transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
