"""Options that the URLs of several discovery adapters take."""

from __future__ import annotations

from collections.abc import Mapping

from dynamo.core.errors import ConfigError

DEFAULT_TTL_S = 10.0  # as ETCD_LEASE_TTL, which users of the field know


def ttl_option(url: str, options: Mapping[str, str]) -> float:
    """``ttl_s`` in seconds, 0.1 to one day. Raises ConfigError."""
    text = options.get("ttl_s")
    if text is None:
        return DEFAULT_TTL_S
    try:
        ttl_s = float(text)
    except ValueError:
        ttl_s = 0.0
    if not 0.1 <= ttl_s <= 86_400:
        raise ConfigError(f"{url}: ttl_s={text}: expected 0.1 to 86400 seconds")
    return ttl_s


def flag_option(url: str, options: Mapping[str, str], name: str, default: bool) -> bool:
    """``name`` as 1, true, yes, on or 0, false, no, off. Raises ConfigError."""
    match options.get(name, "").lower():
        case "":
            return default
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
        case text:
            raise ConfigError(f"{url}: {name}={text}: expected 1, true, yes, on or 0, false, no, off")
