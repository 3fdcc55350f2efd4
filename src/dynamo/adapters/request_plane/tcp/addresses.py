"""Where a worker listens and what others dial: parsing, and finding this host's own address."""

from __future__ import annotations

import socket
from typing import ClassVar
from urllib.parse import urlsplit

from attrs import frozen

from dynamo.core.errors import ConfigError

ANY_HOST = ("0.0.0.0", "::", "*", "")  # bindable, but nothing that anyone could dial


@frozen
class HostPort:
    """A TCP address; ``tls`` is announced by the scheme."""

    host: str
    port: int
    tls: bool = False

    SCHEMES: ClassVar[tuple[str, str]] = ("tcp", "tcps")  # plain, and with TLS

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.SCHEMES[self.tls]}://{host}:{self.port}"


@frozen
class UnixPath:
    """A socket file of the host that booted as ``boot_id``."""

    boot_id: str
    path: str

    def __str__(self) -> str:
        return f"unix://{self.boot_id}{self.path}"


def parse(address: str) -> HostPort | UnixPath:
    """Read ``tcp://host:port``, ``tcps://host:port`` or ``unix://boot-id/path``. Raises ConfigError."""
    try:
        parts = urlsplit(address)
        if parts.scheme == "unix" and parts.netloc and len(parts.path) > 1:
            return UnixPath(parts.netloc, parts.path)
        if parts.scheme in ("tcp", "tcps") and parts.hostname and parts.port and not parts.path.strip("/"):
            return HostPort(parts.hostname, parts.port, parts.scheme == "tcps")
    except ValueError:
        pass  # a port that is none, or a bad IPv6 literal
    raise ConfigError(
        f"bad address {address!r}: expected tcp://host:port, tcps://host:port or unix://boot-id/path"
    )


def own_address() -> str:
    """The address by which other hosts reach this one: that of the interface of the default route.

    Connecting a datagram socket sends nothing, it only asks the routing table (the targets are from the
    blocks that RFC 5737 and RFC 3849 keep for documentation). Without a route, what the host's own name
    resolves to; else loopback.
    """
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")
