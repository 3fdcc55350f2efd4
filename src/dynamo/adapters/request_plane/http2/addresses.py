"""``http://host:port`` and ``https://host:port``."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlsplit

from attrs import frozen

from dynamo.adapters.request_plane.tcp.addresses import HostPort
from dynamo.core.errors import ConfigError


@frozen
class HttpAddress(HostPort):
    """Where HTTP/2 is spoken; ``tls`` is announced by the scheme."""

    SCHEMES: ClassVar[tuple[str, str]] = ("http", "https")


def parse(address: str) -> HttpAddress:
    """Read ``http://host:port`` or ``https://host:port``. Raises ConfigError."""
    try:
        parts = urlsplit(address)
        if (
            parts.scheme in HttpAddress.SCHEMES
            and parts.hostname
            and parts.port
            and not parts.path.strip("/")
        ):
            return HttpAddress(parts.hostname, parts.port, parts.scheme == "https")
    except ValueError:
        pass  # a port that is none, or a bad IPv6 literal
    raise ConfigError(f"bad address {address!r}: expected http://host:port or https://host:port")
