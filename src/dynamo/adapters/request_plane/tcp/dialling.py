"""From an address to a connection, or to the reason why there is none."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable

from dynamo.adapters.request_plane.tcp.addresses import HostPort, UnixPath
from dynamo.adapters.request_plane.tcp.descriptors import way_out
from dynamo.adapters.request_plane.tcp.link import Link
from dynamo.core.config import Settings
from dynamo.core.errors import AuthError, DynamoError, UnavailableError

_X509_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH of OpenSSL
_X509_WRONG_TIME = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID and _CERT_HAS_EXPIRED


async def connect(
    link: Link, target: HostPort | UnixPath, settings: Settings, context: Callable[[], ssl.SSLContext]
) -> None:
    """Give the link a transport, or tell it why there is none; bounded by ``connect_timeout_s``.

    ``context`` is asked for TLS where the address announces it. Whatever goes wrong, the link's calls hear
    of it: they wait for nothing else.
    """
    address, timeout_s = link.peer, settings.connect_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            await _open_transport(link, target, settings, context)
    except TimeoutError:
        source = settings.source("connect_timeout_s")
        link.fail(UnavailableError(f"no connection to {address} within {timeout_s:g} s ({source})"))
    except ssl.SSLCertVerificationError as error:
        problem = f"{address} has no certificate that we trust: {error.verify_message.rstrip('.')}"
        link.fail(_because(AuthError(f"{problem}; {_way_out(error, settings)}"), error))
    except (ssl.SSLError, ConnectionResetError, EOFError) as error:
        hint = ""
        if isinstance(target, HostPort) and target.tls:
            hint = f"; is it a plain {target.SCHEMES[0]}:// port, without DYN_TCP_TLS_CERT_PATH?"
        reason = str(error) or "it closed the connection during the handshake"
        link.fail(_because(UnavailableError(f"cannot connect to {address}: {reason}{hint}"), error))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        link.fail(_because(UnavailableError(f"cannot connect to {address}: {reason}{way_out(error)}"), error))
    except DynamoError as error:
        link.fail(error)
    except asyncio.CancelledError:
        link.abort()
        raise
    except Exception as error:  # such as what encodings say of host names that are none
        link.fail(_because(UnavailableError(f"cannot connect to {address}: {error}"), error))


async def _open_transport(
    link: Link, target: HostPort | UnixPath, settings: Settings, context: Callable[[], ssl.SSLContext]
) -> None:
    loop = asyncio.get_running_loop()
    if isinstance(target, UnixPath):
        await loop.create_unix_connection(lambda: link, target.path)
    elif target.tls:
        await loop.create_connection(
            lambda: link,
            target.host,
            target.port,
            ssl=context(),
            server_hostname=settings.tls_server_name or target.host,
            ssl_handshake_timeout=settings.connect_timeout_s,
        )
    else:
        await loop.create_connection(lambda: link, target.host, target.port)


def silent_hint(target: HostPort | UnixPath) -> str:
    """What it may mean that a connection was closed before a word came from the other side."""
    if isinstance(target, UnixPath):
        return "it closed the connection before it said anything"
    if target.tls:
        return (
            "it closed the connection after the TLS handshake, before it said anything; if it demands client "
            "certificates, set DYN_TCP_TLS_CLIENT_CERT_PATH and DYN_TCP_TLS_CLIENT_KEY_PATH to one it trusts"
        )
    return (
        "it closed the connection before it said anything; if it listens with TLS (DYN_TCP_TLS_CERT_PATH), "
        f"its address is {target.SCHEMES[1]}://"
    )


def _way_out(error: ssl.SSLCertVerificationError, settings: Settings) -> str:
    if error.verify_code in _X509_WRONG_NAME:
        return f"set {settings.source('tls_server_name')} to a name that is in it"
    if error.verify_code in _X509_WRONG_TIME:
        return "renew it, or set this host's clock"
    return f"set {settings.source('tls_ca_cert_path')} to its authority"


def _because(error: DynamoError, cause: BaseException) -> DynamoError:
    error.__cause__ = cause
    return error
