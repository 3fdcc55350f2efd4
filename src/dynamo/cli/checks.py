"""What ``dynamo doctor`` looks at. A check returns findings and raises nothing."""

from __future__ import annotations

import difflib
import importlib.util
import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import attrs

from dynamo.adapters.request_plane.tcp import tls
from dynamo.cli.findings import Finding, Level
from dynamo.cli.options import given
from dynamo.cli.reaching import backends
from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, DynamoError, MissingExtraError
from dynamo.core.files import other_than_file
from dynamo.core.model import shown
from dynamo.core.opening import SERVERLESS, scheme_of, without_password

DISTRIBUTION = "dynamo-runtime-py"
NEIGHBOURS = ("ai-dynamo-runtime", "ai-dynamo")
ALWAYS_SHOWN = ("discovery_backend", "request_plane", "namespace")
FILES = re.compile(r"tls_.*_path|static_file")
LIKENESS = 0.85  # of a variable nobody reads to one that is read: one or two letters in a dozen
REQUIREMENT = re.compile(r"(?P<package>[A-Za-z0-9._-]+).*extra == ['\"](?P<extra>[\w-]+)['\"]")


async def examine(discovery: str | None, request_plane: str | None, *, timeout_s: float) -> list[Finding]:
    """Everything, in the order in which one mends it."""
    findings = [*installation(), *neighbours(metadata_of(NEIGHBOURS))]
    try:
        settings = Settings.from_env(**given(discovery, request_plane))
    except ConfigError as error:
        findings.append(
            Finding(topic="settings", level="wrong", text=str(error), remedy="set it right, or unset it")
        )
        return findings + [*misspelt(os.environ), *adapters(None)]
    named = list(configured(settings))
    findings += named
    if all(one.level == "ok" for one in named):
        findings += certificates(settings)
    findings += [*misspelt(os.environ), *adapters(settings)]
    if scheme_of(settings.discovery_backend) == "kubernetes":
        findings += await _cluster(settings, timeout_s)
    return findings + await backends(settings, timeout_s)


async def _cluster(settings: Settings, timeout_s: float) -> list[Finding]:
    try:
        from dynamo.cli.cluster import cluster

        return await cluster(settings, timeout_s)
    except ModuleNotFoundError:  # its extra is not installed: the adapters' findings have it
        return []


def installation() -> Iterator[Finding]:
    """Versions, and the packages of each extra that are not there."""
    topic = "installation"
    python = f"Python {platform.python_version()} on {platform.system()}"
    yield Finding(topic=topic, level="ok", text=f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}, {python}")
    extras: dict[str, list[str]] = {}
    for line in metadata.requires(DISTRIBUTION) or ():
        found = REQUIREMENT.match(line)
        if found is None or found["package"] == DISTRIBUTION or ("win32" in line and os.name == "nt"):
            continue
        if not _is_installed(found["package"]):
            extras.setdefault(found["extra"], []).append(found["package"])
    for extra in sorted(extras.keys() - {"all"}):
        yield Finding(
            topic=topic,
            level="note",
            text=f"extra {extra!r} is not complete: {', '.join(sorted(extras[extra]))} missing",
            remedy=f"where you need it: pip install '{DISTRIBUTION}[{extra}]'",
        )


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def metadata_of(distributions: tuple[str, ...]) -> list[str]:
    return [f"{name} {metadata.version(name)}" for name in distributions if _is_installed(name)]


def neighbours(installed: list[str]) -> Iterator[Finding]:
    """Others that ship a ``dynamo`` package: NVIDIA's wheel overwrites files of ours, and we of it."""
    native = importlib.util.find_spec("dynamo._core")
    if native is None and not installed:
        yield Finding(topic="conflicts", level="ok", text="no other package ships a dynamo/runtime here")
        return
    what = " and ".join(installed) or "NVIDIA's ai-dynamo-runtime"
    where = f" ({native.origin})" if native is not None else ""
    yield Finding(
        topic="conflicts",
        level="wrong",
        text=f"{what}{where} is installed in this environment too: both ship a dynamo/runtime",
        remedy="keep each in a virtual environment of its own, or pip uninstall ai-dynamo-runtime ai-dynamo "
        f"and then pip install --force-reinstall {DISTRIBUTION}",
    )


def configured(settings: Settings) -> Iterator[Finding]:
    """What is set and by what, and files that are named but cannot be read."""
    for field in attrs.fields(Settings):
        name = field.name
        if name not in Settings.options() or not (settings.is_set(name) or name in ALWAYS_SHOWN):
            continue
        value = getattr(settings, name)
        told = _told(value, secret=field.metadata["secret"])
        by = (
            settings.source(name)
            if settings.is_set(name)
            else f"the default; {settings.source(name)} sets it"
        )
        level: Level = "ok"
        remedy = ""
        if isinstance(value, str) and FILES.fullmatch(name):
            if (other := other_than_file(value)) is not None:
                level, told = "wrong", f"{told}, which is {other}, not a file"
                remedy = f"change {settings.source(name)}"
            elif not os.access(value, os.R_OK):
                level, told = "wrong", f"{told}, which cannot be read"
                remedy = f"make the file readable, or change {settings.source(name)}"
        yield Finding(topic="settings", level=level, text=f"{name} = {told} ({by})", remedy=remedy)


def certificates(settings: Settings) -> Iterator[Finding]:
    """Files of TLS that are there, and are not what they should be."""
    for make in (tls.server_context, tls.client_context):
        try:
            make(settings)
        except DynamoError as error:
            yield Finding(topic="settings", level="wrong", text=str(error))


def _told(value: Any, *, secret: bool) -> str:
    if secret:
        return "(hidden)"
    if not isinstance(value, str):
        return str(value)
    try:
        return shown(without_password(value)).strip("'")
    except ValueError:  # no URL
        return "(hidden: not a URL)" if "@" in value else shown(value)


def misspelt(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that nobody reads and that look much like one that is read."""
    known = [name for field in attrs.fields(Settings) for name in field.metadata.get("variables", ())]
    for name in sorted(environ):
        if not name.startswith("DYN") or name in known:
            continue
        if close := difflib.get_close_matches(name, known, n=1, cutoff=LIKENESS):
            text = f"{name} is set, and nothing reads it"
            yield Finding(topic="settings", level="note", text=text, remedy=f"did you mean {close[0]}?")


def adapters(settings: Settings | None) -> Iterator[Finding]:
    """What is known for each port and whether it loads; wrong is only what is chosen and does not."""
    ports: list[tuple[str, registry.Factories[Any], str | None]] = [
        ("discovery", registry.discovery, settings.discovery_backend if settings else None),
        ("request plane", registry.request_plane, settings.request_plane if settings else None),
        ("telemetry", registry.telemetry, settings.telemetry if settings else None),
        ("status server", registry.status_server, None),
    ]
    for port, factories, url in ports:
        chosen = scheme_of(url) if url else None
        for scheme in factories.schemes():
            wanted = scheme == chosen or (
                port == "status server" and settings is not None and settings.system_port is not None
            )
            yield _loaded(f"{port} {scheme}", factories, scheme, wanted)
        if chosen is not None and chosen not in factories.schemes():
            try:
                factories.factory(chosen)
            except ConfigError as error:
                yield Finding(
                    topic="adapters",
                    level="wrong",
                    text=f"{port} {chosen}: {error}",
                    remedy=f"without a server there are {SERVERLESS}" if port == "discovery" else "",
                )


def _loaded(what: str, factories: registry.Factories[Any], scheme: str, wanted: bool) -> Finding:
    try:
        factories.factory(scheme)
    except ConfigError as error:
        missing = isinstance(error, MissingExtraError)
        text, _, remedy = str(error).rpartition(": ") if missing else (str(error), "", "")
        return Finding(
            topic="adapters",
            level="wrong" if wanted or not missing else "note",
            text=f"{what}: {text}",
            remedy=remedy,
        )
    return Finding(topic="adapters", level="ok", text=f"{what}: installed{', chosen' if wanted else ''}")
