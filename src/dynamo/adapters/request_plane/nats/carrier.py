"""One connection of nats-py, used once, whose messages come and go without its queues and tasks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, Self, TypeAlias

import nats.errors
from nats.aio.client import Client

from dynamo.adapters.request_plane.nats import access
from dynamo.core.config import Settings
from dynamo.core.errors import AuthError

Receive: TypeAlias = Callable[[str, str, bytes, bool], None]
"""Called with subject, reply subject, data, and whether NATS says that nobody took a message of ours."""

CLOSE_S: Final = 1.0
HIGH_WATER_BYTES: Final = 256 * 1024  # unwritten: from here on what is to be sent waits in its sessions
INBOX: Final = "_INBOX.dyn"
NO_RESPONDERS: Final = b"NATS/1.0 503"
ABOUT_A_CALL: Final = "permissions violation for publish"
FORBIDDEN: Final = re.compile(rb"""-ERR\s+'permissions violation for publish to "([^"]+)""", re.IGNORECASE)
REFUSALS: Final = ("authorization violation", "authentication", "nkey", "permissions violation")


class Carrier(Client):
    """Connected by ``open``; ``lost`` is set when it is gone. ``receivers`` are found by subscription.

    ``on_forbidden`` is called with the subject of a message that the server did not let us publish.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self.receivers: dict[str, Receive] = {}
        self.on_forbidden: Callable[[str], None] | None = None
        self._said: Exception | None = None  # the last that the server complained of

    @classmethod
    async def open(cls, server: str, settings: Settings, options: dict[str, Any], **more: Any) -> Self:
        """Connect to one server. Raises AuthError, and what nats-py raises, OSError among it."""
        carrier = cls()
        patience: Any = settings.connect_timeout_s  # nats-py says int, and takes any number
        try:
            async with asyncio.timeout(patience):
                await carrier.connect(
                    server,
                    error_cb=carrier._told,
                    closed_cb=carrier._gone,
                    allow_reconnect=False,
                    connect_timeout=patience,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    name=f"dynamo {os.getpid()}",
                    ping_interval=3600,
                    flush_timeout=patience,
                    inbox_prefix=INBOX,
                    **options,
                    **more,
                )
        except BaseException as error:
            await carrier.leave(error)
            refusal = carrier._refusal(error) or carrier._refusal(carrier._said)
            if refusal is None and isinstance(error, ConnectionError) and "tls" in options:
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(patience):
                        refusal = carrier._refusal(await access.alert(server, options["tls"]))
            if refusal is not None:
                raise _refused(server, settings, refusal) from error
            if isinstance(error, nats.errors.NoServersError) and carrier._said is not None:
                raise OSError(str(carrier._said) or type(carrier._said).__name__) from error
            raise
        carrier._writer.transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        return carrier

    async def subscribe_to(self, subject: str, queue: str, receive: Receive) -> int:
        """Call ``receive`` with all that comes from now on; answers what ``unsubscribe_from`` takes."""
        self.receivers[subject] = receive
        return (await self.subscribe(subject, queue))._id

    def unsubscribe_from(self, number: int) -> None:
        """Ask for no more, before all that is sent from now on; what is on its way still comes."""
        if self._takes_words:
            self._writer.write(b"UNSUB %d\r\n" % number)

    def forget(self, number: int) -> None:
        """Throw away what still comes."""
        if (subscription := self._subs.pop(number, None)) is not None:
            self.receivers.pop(subscription.subject, None)

    async def heard(self, settings: Settings) -> None:
        """Wait until the server has read all that we said, and we what it had for us by then.

        Raises AuthError where it did not allow a subscription.
        """
        await self._flush_pending(force_flush=True)  # nats-py's ping overtakes what is not written
        await self.flush(settings.connect_timeout_s)  # type: ignore[arg-type]
        if (refusal := self._refusal(self._said)) is not None:
            raise _refused(access.hidden(self._url), settings, refusal)

    def send(self, parts: Iterable[bytes | memoryview]) -> None:
        """Write whole commands."""
        if self._takes_words:
            self._writer.writelines(parts)

    @property
    def _takes_words(self) -> bool:
        """It stands; nats-py hears of a loss later than its transport, where uvloop raises."""
        return self.is_connected and not self._writer.transport.is_closing()

    @property
    def writable(self) -> bool:
        return bool(self._writer.transport.get_write_buffer_size() <= HIGH_WATER_BYTES)

    async def drained(self) -> None:
        """Wait until most of what was sent is written, or the connection is lost."""
        with contextlib.suppress(OSError):
            await self._writer.drain()
        if not self.writable:
            await asyncio.sleep(0)

    async def leave(self, why: BaseException | None = None) -> None:
        """Close it, in bounded time: with a full socket nats-py would wait for ever."""
        # For the end of what TLS replaced it waits for ever too.
        if not isinstance(why, ssl.SSLCertVerificationError):
            with contextlib.suppress(Exception):  # it is gone for us in any case
                async with asyncio.timeout(CLOSE_S):
                    await self.close()
        self.abort()

    def abort(self) -> None:
        """Close its socket now."""
        if (writer := getattr(self._transport, "_io_writer", None)) is not None:
            writer.transport.abort()

    @property
    def _writer(self) -> Any:
        return self._transport._io_writer  # type: ignore[union-attr]

    @property
    def _url(self) -> str:
        return "" if self.connected_url is None else self.connected_url.geturl()

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        if (subscription := self._subs.get(sid)) is None:
            return
        if (receive := self.receivers.get(subscription.subject)) is None:
            await super()._process_msg(sid, subject, reply, data, headers)  # type: ignore[arg-type]
        else:
            nobody = headers is not None and headers.startswith(NO_RESPONDERS)
            try:
                names = subject.decode(), reply.decode()
            except UnicodeDecodeError:  # none of ours are such
                return
            try:
                receive(*names, data, nobody)
            except Exception as error:  # nats-py would read no more, and say nothing
                about = {"message": f"a message to {subject!r} was not taken", "exception": error}
                asyncio.get_running_loop().call_exception_handler(about)

    async def _process_err(self, err_msg: str) -> None:
        # Subjects know upper case, and what we are given does not: the line itself is still there.
        found = FORBIDDEN.match(self._ps.buf)
        if found is not None and self.on_forbidden is not None:
            self.on_forbidden(found[1].decode())
        await super()._process_err(err_msg)

    async def _told(self, error: Exception) -> None:
        if ABOUT_A_CALL not in str(error).lower():
            self._said = error

    async def _gone(self) -> None:
        self.lost.set()

    @staticmethod
    def _refusal(error: BaseException | None) -> BaseException | None:
        if isinstance(error, ssl.SSLError) and _is_about_certificates(error):
            return error
        return error if any(word in str(error).lower() for word in REFUSALS) else None


def _is_about_certificates(error: ssl.SSLError) -> bool:
    """Theirs, which we do not trust, or ours, as an alert of theirs says."""
    reason = error.reason or ""
    return "CERTIFICATE" in reason or "UNKNOWN_CA" in reason


def _refused(server: str, settings: Settings, why: BaseException) -> AuthError:
    where = f"the NATS server {access.hidden(server)} ({settings.source('nats_server')})"
    if isinstance(why, ssl.SSLCertVerificationError):
        return AuthError(
            f"{where} has a certificate that we do not trust: {why.verify_message or why}; set "
            "NATS_TLS_CA_CERT_PATH to the file of the authority that signed it"
        )
    if isinstance(why, ssl.SSLError):
        return AuthError(
            f"{where} wants a certificate of ours that it trusts: {why.reason}; set "
            "NATS_TLS_CLIENT_CERT_PATH and NATS_TLS_CLIENT_KEY_PATH to one"
        )
    return AuthError(
        f"{where} refused us: {why}; set NATS_AUTH_USERNAME and NATS_AUTH_PASSWORD, NATS_AUTH_TOKEN, "
        "NATS_AUTH_NKEY or NATS_AUTH_CREDENTIALS_FILE to what it knows"
    )
