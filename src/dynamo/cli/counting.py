"""How many requests instances have had, as their processes' status servers tell."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeAlias
from urllib.parse import urlsplit

from attrs import frozen

from dynamo.core.model import EndpointId, Instance

ASK_S = 1.0  # for all of them together: who has not told by then is unknown
AT_A_TIME = 200
MAX_BYTES = 2**22
FAMILIES = ("dynamo_component_requests_total", "dynamo_component_inflight_requests")
SAMPLE = re.compile(rf"^({'|'.join(FAMILIES)})\{{(.*)\}} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'dynamo_(namespace|component|endpoint)="([^"]*)"')


@frozen
class Requests:
    """``total`` since the process began, ``inflight`` now."""

    total: int = 0
    inflight: int = 0


Key: TypeAlias = tuple[str, EndpointId]


class Counts:
    """What was told last."""

    def __init__(self) -> None:
        self._told: dict[Key, Requests] = {}

    def of(self, one: Instance) -> Requests | None:
        return self._told.get((one.status_url, one.endpoint_id)) if one.status_url else None

    async def ask(self, instances: Iterable[Instance]) -> None:
        """Ask the servers of all of them at once, bounded; what does not answer is unknown afterwards."""
        told: dict[Key, Requests] = {}
        slots = asyncio.Semaphore(AT_A_TIME)

        async def ask(url: str) -> None:
            async with slots:
                with suppress(OSError, ValueError, OverflowError):  # nobody there, or somebody else
                    text = await _metrics(url)
                    told.update({(url, path): seen for path, seen in requests_in(text).items()})

        urls = {one.status_url for one in instances if one.status_url}
        with suppress(TimeoutError):
            async with asyncio.timeout(ASK_S):
                await asyncio.gather(*map(ask, urls))
        self._told = told


async def _metrics(url: str) -> str:
    """HTTP/1.0, whose answer ends with the connection: an HTTP client takes longer to import than to ask."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url}: expected http://host:port")
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        writer.write(f"GET /metrics HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        text = b""
        while len(text) <= MAX_BYTES and (part := await reader.read(65536)):
            text += part
        return text.decode(errors="replace")
    finally:
        writer.close()


def requests_in(text: str) -> dict[EndpointId, Requests]:
    """By endpoint, whatever other labels split them. Raises ValueError, OverflowError."""
    counted: dict[EndpointId, dict[str, int]] = {}
    for family, labels, value in SAMPLE.findall(text.replace("\r\n", "\n")):
        names = dict(LABEL.findall(labels))
        path = EndpointId.parse(
            ".".join(names.get(key, "") for key in ("namespace", "component", "endpoint"))
        )
        of_it = counted.setdefault(path, dict.fromkeys(FAMILIES, 0))
        of_it[family] += int(float(value))
    return {path: Requests(*of_it.values()) for path, of_it in counted.items()}
