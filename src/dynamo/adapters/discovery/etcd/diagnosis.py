"""Why a member cannot be reached, found out by going there step by step: gRPC says little."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl

from dynamo.adapters.discovery.etcd.configuration import Endpoint, EtcdConfig, tls_context
from dynamo.core.errors import ConfigError, DynamoError, UnavailableError

ALERT_S = 0.1  # a server that refuses our certificate says so after the handshake, in TLS 1.3
NO_TLS = re.compile(r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|UNEXPECTED_EOF|HTTP_REQUEST|PACKET_LENGTH")


async def diagnose(endpoint: Endpoint, config: EtcdConfig, bound_s: float) -> DynamoError | None:
    """A ConfigError for what waiting does not mend, an UnavailableError for what it may; None: no idea."""
    where = f"{endpoint} ({config.source})"
    try:
        async with asyncio.timeout(bound_s):
            return await (_over_tls if endpoint.tls else _plain)(endpoint, config, where)
    except TimeoutError:
        return UnavailableError(f"no etcd at {where}: no connection within {bound_s:g} s")
    except socket.gaierror as error:
        return UnavailableError(
            f"no etcd at {where}: the name {endpoint.host!r} is unknown: {error.strerror}"
        )
    except OSError as error:
        return UnavailableError(f"no etcd at {where}: {_reason(error)}")


def _reason(error: OSError) -> str:
    """The system's words, also where asyncio tried several addresses and quotes all errors."""
    number = error.errno
    if number is None and (quoted := re.search(r"\[Errno (\d+)\]", str(error))):
        number = int(quoted[1])
    return os.strerror(number) if number else str(error)


async def _plain(endpoint: Endpoint, config: EtcdConfig, where: str) -> DynamoError | None:
    if await _speaks_tls(endpoint):
        return ConfigError(f"{where}: the server there speaks TLS; write https://")
    return None


async def _over_tls(endpoint: Endpoint, config: EtcdConfig, where: str) -> DynamoError | None:
    try:
        await _shake_hands(endpoint, tls_context(config))
    except ssl.SSLCertVerificationError as error:
        return ConfigError(
            f"{where}: its certificate is refused: {error.verify_message}; "
            f"check the server's certificate, and {config.ca_source} ({config.ca or 'not set'})"
        )
    except (ssl.SSLError, ConnectionResetError) as error:
        if "ALERT" in str(error).upper():
            ours = config.client_cert or "none"
            return ConfigError(
                f"{where}: the server refused our client certificate ({config.cert_source}: {ours}): "
                f"{getattr(error, 'reason', error)}"
            )
        if not await _speaks_tls(endpoint):
            return ConfigError(f"{where}: the server there does not speak TLS; write http://")
        return UnavailableError(f"no etcd at {where}: TLS failed: {error}")
    return None


async def _shake_hands(endpoint: Endpoint, context: ssl.SSLContext) -> None:
    reader, writer = await asyncio.open_connection(
        endpoint.host, endpoint.port, ssl=context, server_hostname=endpoint.host
    )
    try:
        async with asyncio.timeout(ALERT_S):
            await reader.read(1)
    except TimeoutError:
        pass
    finally:
        writer.transport.abort()


async def _speaks_tls(endpoint: Endpoint) -> bool:
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    try:
        await _shake_hands(endpoint, trusting)
    except ssl.SSLError as error:
        return NO_TLS.search(str(error).upper().replace(" ", "_")) is None
    except ConnectionResetError:
        return False
    return True
