"""Why a member cannot be reached, found out by going there step by step: gRPC says little."""

from __future__ import annotations

import asyncio
import socket
import ssl

from dynamo.adapters.discovery.etcd.configuration import Endpoint, EtcdConfig, tls_context
from dynamo.core.errors import ConfigError, DynamoError, UnavailableError


async def diagnose(endpoint: Endpoint, config: EtcdConfig, bound_s: float) -> DynamoError | None:
    """A ConfigError for what waiting does not mend, an UnavailableError for what it may; None: no idea."""
    where = f"{endpoint} ({config.source})"
    try:
        async with asyncio.timeout(bound_s):
            return await _go(endpoint, config, where)
    except TimeoutError:
        return UnavailableError(f"no etcd at {where}: no connection within {bound_s:g} s")
    except socket.gaierror as error:
        return UnavailableError(
            f"no etcd at {where}: the name {endpoint.host!r} is unknown: {error.strerror}"
        )
    except OSError as error:
        return UnavailableError(f"no etcd at {where}: {error.strerror or error}")


async def _go(endpoint: Endpoint, config: EtcdConfig, where: str) -> DynamoError | None:
    if not endpoint.tls:
        if await _speaks_tls(endpoint):
            return ConfigError(f"{where}: the server there speaks TLS; write https://")
        return None
    try:
        await _hang_up(endpoint, tls_context(config))
    except ssl.SSLCertVerificationError as error:
        return ConfigError(
            f"{where}: its certificate is refused: {error.verify_message}; "
            f"check the server's certificate, and {config.ca_source} ({config.ca or 'not set'})"
        )
    except (ssl.SSLError, ConnectionError) as error:
        if not await _speaks_tls(endpoint):
            return ConfigError(f"{where}: the server there does not speak TLS; write http://")
        return UnavailableError(f"no etcd at {where}: TLS failed: {error}")
    return None


async def _hang_up(endpoint: Endpoint, context: ssl.SSLContext | None) -> None:
    _, writer = await asyncio.open_connection(
        endpoint.host, endpoint.port, ssl=context, server_hostname=endpoint.host if context else None
    )
    writer.transport.abort()


async def _speaks_tls(endpoint: Endpoint) -> bool:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    try:
        await _hang_up(endpoint, trusting)
    except (ssl.SSLError, ConnectionResetError):
        return False
    return True
