"""Where the server listens."""

from __future__ import annotations

import errno
import socket

from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError

LOCAL_BACKENDS = ("mem", "file", "static")
LOOPBACK = "127.0.0.1"


def host_of(settings: Settings) -> str | None:
    """Loopback where discovery stays on this host, else None: all interfaces."""
    return LOOPBACK if settings.discovery_backend.partition("://")[0] in LOCAL_BACKENDS else None


def listen(host: str | None, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Bind; None is all interfaces. With ``reuse_port`` other processes that say so too get their share of
    the connections. Raises ConfigError.
    """
    where = f"{host or '*'}:{port}"
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError(f"several workers cannot share port {port} on this system: run one worker")
    try:
        if host is None and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, reuse_port=reuse_port
            )
        family = socket.getaddrinfo(host or LOOPBACK, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host or "", port), family=family, reuse_port=reuse_port)
    except (OSError, UnicodeError) as error:  # that one: it could not be asked for
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} is in use, so no HTTP server can listen on {where}: end what listens there, or "
                "choose another one with --http-port (port= of serve_http), or 0 for any that is free"
            ) from error
        raise ConfigError(
            f"no HTTP server can listen on {where} (--http-host, --http-port, or host= and port= "
            f"of serve_http): {getattr(error, 'strerror', None) or error}"
        ) from error


def url_of(listening: socket.socket) -> str:
    """What a person on this host can open."""
    host, port = listening.getsockname()[:2]
    if host in ("::", "0.0.0.0"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
