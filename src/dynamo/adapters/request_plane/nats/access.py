"""How to get into the NATS servers: which ones, as whom, over what."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import Any
from urllib.parse import urlsplit

from dynamo.core.config import Settings
from dynamo.core.errors import AuthError, ConfigError
from dynamo.core.files import check_file

_SCHEMES = ("nats", "tls")


def servers(settings: Settings) -> list[str]:
    """The servers of NATS_SERVER, separated by commas. Raises ConfigError."""
    source = settings.source("nats_server")
    found: list[str] = []
    for part in settings.nats_server.split(","):
        if not (one := part.strip()):
            continue
        url = one if "://" in one else f"nats://{one}"
        try:
            parts = urlsplit(url)
            has_port = parts.port is not None
            valid = parts.scheme in _SCHEMES and bool(parts.hostname) and not parts.path.strip("/")
        except ValueError:  # a port that is none
            valid = has_port = False
        if not valid:
            raise ConfigError(
                f"{source}: bad server {hidden(one)!r}: expected nats://host:port or tls://host:port"
            )
        found.append(url if has_port else f"{url.rstrip('/')}:4222")
    if not found:
        raise ConfigError(f"{source}: no server in it; expected nats://host:port")
    return found


def hidden(url: str) -> str:
    """The URL without the password in it."""
    head, separator, host = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{host}" if separator else url


def forbidden(server: str, settings: Settings, subject: str, all_subjects: str) -> AuthError:
    """The server lets us in, and not publish to ``subject``; ``all_subjects`` is the pattern that we need."""
    who = "the user in that URL" if "@" in settings.nats_server else "clients without a user"
    for field in ("nats_auth_credentials_file", "nats_auth_nkey", "nats_auth_token"):
        if getattr(settings, field) is not None:
            who = f"the user of {settings.source(field)}"
    if settings.nats_auth_username is not None:
        who = f"user {settings.nats_auth_username!r} ({settings.source('nats_auth_username')})"
    return AuthError(
        f"the NATS server {server} ({settings.source('nats_server')}) does not let {who} publish to "
        f"{subject}: add that, or {all_subjects}, to the permissions there"
    )


async def alert(server: str, context: ssl.SSLContext) -> ssl.SSLError | None:
    """What it says, if anything, where a connection ends once TLS stands: who wrote to it before it read that
    does not learn it, so this one only reads. Raises OSError.
    """
    url = urlsplit(server)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        await reader.readline()  # before TLS it tells who it is
        await writer.start_tls(context, server_hostname=url.hostname)
        await reader.read(1)
    except ssl.SSLError as error:
        return error
    finally:
        writer.transport.abort()
    return None


def options(settings: Settings) -> dict[str, Any]:
    """What nats-py takes to authenticate. Raises ConfigError."""
    chosen: dict[str, Any] = {}
    if settings.nats_auth_username is not None:
        chosen["user"] = settings.nats_auth_username
        chosen["password"] = settings.nats_auth_password
    if settings.nats_auth_token is not None:
        chosen["token"] = settings.nats_auth_token
    if (seed := settings.nats_auth_nkey) is not None:
        _check_seed(seed, settings.source("nats_auth_nkey"))
        chosen["nkeys_seed_str"] = seed
    if (path := settings.nats_auth_credentials_file) is not None:
        shown = f"{settings.source('nats_auth_credentials_file')}={path!r}"
        check_file(path, shown)
        if not os.path.exists(path):
            raise ConfigError(f"{shown}: no such file")
        chosen["user_credentials"] = path
    context = _tls(settings)
    if context is not None:
        chosen["tls"] = context
    return chosen


def _check_seed(seed: str, source: str) -> None:
    import nkeys  # its cryptography takes a while to load, and few need it

    try:
        nkeys.from_seed(bytearray(seed.encode()))
    except (nkeys.NkeysError, ValueError) as error:
        raise ConfigError(f"{source}=(hidden): no seed of an nkey; those of users begin with SU") from error


def _tls(settings: Settings) -> ssl.SSLContext | None:
    wants = any(one.startswith("tls://") for one in servers(settings))
    ca, cert, key = settings.nats_tls_ca, settings.nats_tls_client_cert, settings.nats_tls_client_key
    if not wants and ca is None and cert is None:
        return None
    named = {
        f"{settings.source(field)}={path!r}": path
        for field, path in (
            ("nats_tls_ca", ca),
            ("nats_tls_client_cert", cert),
            ("nats_tls_client_key", key),
        )
        if path
    }
    for shown, path in named.items():
        check_file(path, shown)
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{', '.join(named)}: not PEM files that can be read: {error}") from error
    return context
