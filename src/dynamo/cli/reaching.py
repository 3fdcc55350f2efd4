"""Whether what is configured can be reached: discovery, the request plane, and the instances found there."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from dynamo.cli.drawing import counted
from dynamo.cli.findings import Finding, Level
from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.errors import DynamoError, UnavailableError
from dynamo.core.health import Status
from dynamo.core.model import EndpointId, Instance, Phase, Scope
from dynamo.core.opening import SERVERLESS, scheme_of, without_password
from dynamo.core.ports.discovery import Discovery, Snapshot
from dynamo.core.ports.request_plane import RequestPlane

AT_A_TIME = 50
UNREACHABLE = "see whether its process lives, can be reached from here, and is set up as this side is"


async def backends(settings: Settings, timeout_s: float) -> list[Finding]:
    """Whether discovery answers, what it lists, and whether the request plane opens."""
    findings: list[Finding] = []
    url, variable = without_password(settings.discovery_backend), settings.source("discovery_backend")
    other = f"set {variable} to one that needs no server: {SERVERLESS}"
    change = f"start it, or {other}"
    topic = "discovery"
    try:
        async with (
            asyncio.timeout(2 * timeout_s),
            registry.discovery.open(settings.discovery_backend, settings) as discovery,
        ):
            async with asyncio.timeout(timeout_s):
                health = await discovery.check()
            level: Level = "ok" if health.status is Status.UP else "wrong"
            detail = f": {health.detail}" if health.detail else ""
            text = f"{url} is {health.status.value}{detail}"
            findings.append(
                Finding(topic=topic, level=level, text=text, remedy="" if level == "ok" else change)
            )
            if level == "ok":
                async with asyncio.timeout(timeout_s):
                    listed = await _listed(discovery)
                findings += await _reached(listed, url, settings, timeout_s)
    except TimeoutError:
        text = f"{url} ({variable}) did not answer in {timeout_s:g} s"
        findings.append(Finding(topic=topic, level="wrong", text=text, remedy=change))
    except DynamoError as error:
        if scheme_of(url) in registry.discovery.schemes():  # else the adapters' findings have it
            remedy = change if isinstance(error, UnavailableError) else f"or {other}"
            findings.append(
                Finding(topic=topic, level="wrong", text=f"{url} ({variable}): {error}", remedy=remedy)
            )
    findings += await _request_plane(settings, timeout_s)
    return findings


async def _listed(discovery: Discovery) -> tuple[Instance, ...] | None:
    """What other processes registered; None where they cannot."""
    if not discovery.capability.cross_process:
        return None
    async with discovery.watch(Scope()) as watch:
        while not isinstance(change := await watch.receive(), Snapshot):
            pass
    return change.instances


async def _reached(
    listed: tuple[Instance, ...] | None, url: str, settings: Settings, timeout_s: float
) -> list[Finding]:
    """What is registered, and whether one instance of each endpoint takes our connection."""
    topic = "discovery"
    if listed is None:
        text = f"{url} is known within one process only: nothing of other processes can be found there"
        remedy = "file is for many processes on one host"
        return [Finding(topic=topic, level="note", text=text, remedy=remedy)]
    findings = [Finding(topic=topic, level="ok", text=f"{url} lists {counted(listed)}")]
    chosen: dict[EndpointId, Instance] = {}
    for one in sorted(listed, key=lambda one: one.phase is not Phase.READY):
        chosen.setdefault(one.endpoint_id, one)
    async with AsyncExitStack() as stack:
        planes = Planes(settings, stack)
        slots = asyncio.Semaphore(AT_A_TIME)

        async def dial(one: Instance) -> str | None:
            async with slots:
                return await _trouble(one, planes, timeout_s)

        troubles = await asyncio.gather(*map(dial, chosen.values()))
    for one, trouble in zip(chosen.values(), troubles, strict=True):
        if trouble is not None:
            text = f"{one.endpoint_id}: instance {one.instance_id} cannot be called: {trouble}"
            findings.append(Finding(topic="instances", level="wrong", text=text, remedy=UNREACHABLE))
    if answered := len(chosen) - (len(findings) - 1):
        text = f"an instance of {answered} of {len(chosen)} endpoints takes calls from here"
        findings.append(Finding(topic="instances", level="ok", text=text))
    return findings


class Planes:
    """Those that dial, by the scheme of an address; opened when first needed, closed with ``stack``."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self._settings, self._stack = settings, stack
        self._opened: dict[str, RequestPlane] = {}
        self._opening = asyncio.Lock()

    async def of(self, address: str) -> RequestPlane | None:
        """None where no adapter is known. Raises ConfigError, and what opening raises."""
        scheme = scheme_of(address)
        async with self._opening:
            for plane in self._opened.values():
                if scheme in plane.capability.schemes:
                    return plane
            if scheme not in registry.request_plane.schemes():
                return None
            same = scheme == scheme_of(self._settings.request_plane)
            url = self._settings.request_plane if same else scheme
            opening = registry.request_plane.open(url, self._settings)
            plane = self._opened[scheme] = await self._stack.enter_async_context(opening)
            return plane


async def _trouble(one: Instance, planes: Planes, timeout_s: float) -> str | None:
    """Why none of its addresses can be dialled, in the words of the last; None if one can."""
    troubles: list[str] = []
    try:
        async with asyncio.timeout(timeout_s):
            for address in one.addresses:
                try:
                    plane = await planes.of(address)
                except DynamoError as error:
                    troubles.append(str(error))
                    continue
                if plane is None:
                    troubles.append(f"no adapter here dials {address}")
                    continue
                health = await plane.check(address)
                if health.status is Status.UP:
                    return None
                troubles.append(health.detail)
    except TimeoutError:
        troubles.append(f"no answer in {timeout_s:g} s from {', '.join(one.addresses)}")
    return troubles[-1] if troubles else "its record has no address"


async def _request_plane(settings: Settings, timeout_s: float) -> list[Finding]:
    url, variable = without_password(settings.request_plane), settings.source("request_plane")
    topic, change = "request plane", f"start it, or set {variable}=tcp, which needs no server"
    try:
        async with (
            asyncio.timeout(timeout_s),
            registry.request_plane.open(settings.request_plane, settings) as plane,
        ):
            schemes = ", ".join(plane.capability.schemes)
            return [Finding(topic=topic, level="ok", text=f"{url} opens and dials {schemes}")]
    except TimeoutError:
        text = f"{url} ({variable}) did not open in {timeout_s:g} s"
        return [Finding(topic=topic, level="wrong", text=text, remedy=change)]
    except DynamoError as error:
        if scheme_of(url) not in registry.request_plane.schemes():
            return []  # the adapters' findings have it
        remedy = change if isinstance(error, UnavailableError) else ""
        return [Finding(topic=topic, level="wrong", text=f"{url} ({variable}): {error}", remedy=remedy)]
