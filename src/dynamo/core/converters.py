"""What a setting may be: each function takes what was given, and returns the value or says what it expected.

They raise ValueError without the variable's name, which ``Settings`` adds.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from dynamo.core.errors import ConfigError
from dynamo.core.model import check_name, shown

PASSWORD = re.compile("//.*@")  # and user
URL_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text in UTF-8") from None
    if "\0" in value:  # no variable can hold one, and no host or user has one
        raise ValueError("expected text, without NUL bytes")
    return value


def path(value: Any) -> str:
    """Any bytes but NUL may be in a path; Python's ``Path`` is fine too."""
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError("expected a path")
    if "\0" in (decoded := os.fsdecode(value)):
        raise ValueError("expected a path, without NUL bytes")
    return decoded


def seconds(value: Any) -> float:
    """Seconds, 0 to one year; a unit is not part of the value."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("expected seconds, such as 2.5")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("expected seconds, such as 2.5") from None
    if not 0 <= number <= 31_536_000:
        raise ValueError("expected 0 to 31536000 seconds")
    return number


def positive_seconds(value: Any) -> float:
    if (number := seconds(value)) <= 0:
        raise ValueError("expected more than 0 seconds")
    return number


def whole_seconds(value: Any) -> int:
    """Whole seconds, 1 to one day: what etcd's leases count in."""
    try:
        number = 0 if isinstance(value, bool) or not isinstance(value, (str, int)) else int(value)
    except ValueError:
        number = 0
    if not 1 <= number <= 86_400:
        raise ValueError("expected whole seconds, 1 to 86400, such as 10")
    return number


def size_bytes(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("expected a number of bytes, such as 33554432")
    try:
        number = int(value)
    except ValueError:
        raise ValueError("expected a number of bytes, such as 33554432") from None
    if not 1024 <= number <= 2**40:
        raise ValueError("expected 1024 to 2^40 bytes")
    return number


def port(value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) or not isinstance(value, (str, int)) else int(value)
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise ValueError("expected a port, 0 to 65535")
    return number


def index(value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) or not isinstance(value, (str, int)) else int(value)
    except ValueError:
        number = -1
    if not 0 <= number <= 9999:
        raise ValueError("expected a number, 0 to 9999")
    return number


def port_or_off(value: Any) -> int | None:
    """-1 is Dynamo's way to say that there is none."""
    return None if str(value).strip() == "-1" else port(value)


def flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    match str(value).strip().lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off" | "":
            return False
    raise ValueError("expected 1, true, yes, on or 0, false, no, off")


def choice(*choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if (name := str(value).strip().lower()) not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return name

    return convert


def adapter(aliases: Mapping[str, str]) -> Callable[[Any], str]:
    """A name of any case, or a URL; whether the adapter exists is the registry's to say."""

    def convert(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError("expected an adapter's name or a URL")
        try:
            urlsplit(value)
            if "\0" in unquote(value):  # its adapter may make a path of it
                raise ValueError("expected no NUL byte in it")
        except ValueError as error:
            raise ConfigError(f"bad URL {shown(PASSWORD.sub('//***@', value))}: {error}") from None
        scheme, separator, rest = value.strip().partition("://")
        scheme = scheme.lower()
        return f"{aliases.get(scheme, scheme)}{separator}{rest}"

    return convert


def url_path(value: Any) -> str:
    if not isinstance(value, str) or URL_PATH.fullmatch(value) is None:
        raise ValueError("expected a path such as /health, of A-Z a-z 0-9 . _ ~ - and /")
    return value


def names(kind: str) -> Callable[[Any], tuple[str, ...]]:
    """A JSON list, as Dynamo's users write it, names with commas between them, or a sequence."""

    def convert(value: Any) -> tuple[str, ...]:
        try:
            if isinstance(value, str):
                text = value.strip()
                value = json.loads(text) if text.startswith("[") else map(str.strip, text.split(","))
            return tuple(check_name(kind, name) for name in value)
        except (TypeError, ValueError):
            raise ValueError(f'expected names of {kind}s, such as ["generate"]') from None

    return convert


def namespace(value: Any) -> str:
    return check_name("namespace", value)
