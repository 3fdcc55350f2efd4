"""What commands have in common: where to look, and how a payload and an instance are given."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from dynamo.core.config import Settings
    from dynamo.core.distributed import DistributedRuntime

F = TypeVar("F", bound=Callable[..., Any])

OPTION_NAMES = {
    "discovery_backend": "--discovery",
    "request_plane": "--request-plane",
    "startup_timeout_s": "DYN_STARTUP_TIMEOUT_S",
    "instance_wait_s": "DYN_INSTANCE_WAIT_S",
}
TRY = "try --discovery file"
BOUNDS = ("startup_timeout_s", "instance_wait_s")
WAIT_S = 3.0  # for a backend, and for an instance: a person waits. The variables say otherwise


def where(command: F) -> F:
    """``--discovery`` and ``--request-plane``."""
    command = click.option(
        "--request-plane",
        metavar="NAME",
        help="How instances are called, such as tcp. Default: DYN_REQUEST_PLANE.",
    )(command)
    return click.option(
        "--discovery",
        metavar="URL",
        help="Where instances are found, such as file:///path or etcd://host:2379. "
        "Default: DYN_DISCOVERY_BACKEND.",
    )(command)


def payload_source(command: F) -> F:
    """``[JSON]`` and ``--file``; ``payload`` reads what they say."""
    command = click.option(
        "--file",
        "-f",
        "file",
        metavar="PATH",
        type=click.Path(path_type=Path),
        help="Read the JSON from a file.",
    )(command)
    return click.argument("payload", required=False, metavar="[JSON|-]")(command)


def payload(given: str | None, file: Path | None) -> Any:
    """The request, from the command line, a file or (``-``) the standard input. Raises click.UsageError."""
    if (given is None) == (file is None):
        raise click.UsageError("give the request once: as JSON, as --file PATH, or - for the standard input")
    if file is not None:
        place = str(file)
        try:
            text = file.read_text("utf-8")
        except (OSError, ValueError) as error:
            raise click.UsageError(f"--file {place}: {getattr(error, 'strerror', None) or error}") from error
    elif given == "-":
        place = "the standard input"
        try:
            text = sys.stdin.buffer.read().decode()
        except ValueError as error:
            raise click.UsageError(f"{place} is not UTF-8: {error}") from error
    else:
        place, text = "the request", given or ""
    try:
        return json.loads(text)
    except ValueError as error:
        hint = "" if given in (None, "-") else """; text is quoted twice in a shell: '"hi"'"""
        raise click.UsageError(f"{place} is not JSON: {error}{hint}") from error


def instance(text: str | None) -> int | str | None:
    """``--instance``: digits and 0x... are an id, anything else a name."""
    if text is None:
        return None
    try:
        return int(text, 16 if text[:2].lower() == "0x" else 10)
    except ValueError:
        return text


def settings(discovery: str | None, request_plane: str | None) -> Settings:
    """The environment's, with the options over it, and adapters that load. Raises ConfigError."""
    from dynamo.core.config import Settings
    from dynamo.core.errors import ConfigError
    from dynamo.core.opening import check_adapters

    chosen = Settings.from_env(**given(discovery, request_plane))
    try:
        check_adapters(chosen)
    except ConfigError as error:
        if chosen.is_set("discovery_backend"):
            raise
        raise type(error)(f"{error}; {TRY}") from error
    return chosen


def runtime(discovery: str | None, request_plane: str | None) -> DistributedRuntime:
    """One that only calls: it does not open the status server that the environment asks of workers."""
    from dynamo.core.distributed import DistributedRuntime

    chosen = settings(discovery, request_plane)
    bounds: dict[str, Any] = {name: WAIT_S for name in BOUNDS if not chosen.is_set(name)}
    if "startup_timeout_s" in bounds:
        logging.getLogger("dynamo.runtime").setLevel(logging.ERROR)  # the error soon says it all
    return DistributedRuntime(**given(discovery, request_plane), **bounds, system_port=-1)


def given(discovery: str | None, request_plane: str | None) -> dict[str, Any]:
    """What was given as an option, by the names of ``Settings``, and how messages should call it."""
    given = {"discovery_backend": discovery, "request_plane": request_plane}
    return {
        **{name: value for name, value in given.items() if value is not None},
        "option_names": OPTION_NAMES,
    }
