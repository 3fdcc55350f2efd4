"""The adapters of one runtime: each opened when first needed, in a task of its own, and all closed at its
end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from attrs import evolve

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.errors import ClosedError, ConfigError, DynamoError, MissingExtraError, UnavailableError
from dynamo.core.health import Health, Status
from dynamo.core.late import OpeningPlane
from dynamo.core.lifetime import Held, Wait, backoff, patiently
from dynamo.core.ports.discovery import Discovery
from dynamo.core.ports.request_plane import RequestPlane

logger = logging.getLogger("dynamo.runtime")

T = TypeVar("T")
P = TypeVar("P")

NEED_NO_SERVER = ("mem", "file", "static")
SERVERLESS = "mem (one process), file (one host) or static (fixed addresses)"
LOOPBACK = "127.0.0.1"
CLOSE_S = 5.0  # for each adapter


def scheme_of(url: str) -> str:
    return url.partition("://")[0]


def without_password(url: str) -> str:
    """The URL as a message may show it."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


def check_adapters(settings: Settings) -> None:
    """Load the adapters that were chosen. Raises ConfigError, MissingExtraError that say what chose them."""
    scheme = scheme_of(settings.discovery_backend)
    try:
        registry.discovery.factory(scheme, settings)
    except ConfigError as error:
        if scheme in registry.discovery.schemes() and not isinstance(error, MissingExtraError):
            raise
        kind = MissingExtraError if isinstance(error, MissingExtraError) else ConfigError
        default = "" if settings.is_set("discovery_backend") else f"{scheme!r} is the default; "
        raise kind(f"{error}; {default}without a server there are {SERVERLESS}") from error
    registry.request_plane.factory(scheme_of(settings.request_plane), settings)


class Adapters:
    """Opens on first use; a backend that is not there yet is tried again for as long as somebody waits for
    it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._discovery: Held[Discovery] | None = None
        self._planes: dict[str, Held[RequestPlane]] = {}
        self._closed = False
        self._waiting, self._said = 0, set[str]()
        self._serving_scheme = scheme_of(settings.request_plane)
        check_adapters(settings)

    @property
    def trouble(self) -> DynamoError | None:
        """What keeps discovery, or the plane that we serve on, from opening."""
        for held in (self._discovery, self._planes.get(self._serving_scheme)):
            if held is not None and held.trouble is not None:
                return held.trouble
        return None

    def links(self) -> dict[str, Health]:
        """How the adapters stand that were asked for: UP once open, DOWN while they are being opened."""
        held = {
            "discovery": (self.settings.discovery_backend, self._discovery),
            "request_plane": (self.settings.request_plane, self._planes.get(self._serving_scheme)),
        }
        return {
            name: Health(
                status=Status.DOWN if one.value is None else Status.UP,
                detail=str(one.trouble or without_password(url)),
            )
            for name, (url, one) in held.items()
            if one is not None
        }

    async def discovery(self) -> Discovery:
        """The open discovery adapter; waits for its backend for as long as it takes. Raises ConfigError."""
        held = self._discovery
        if held is None or held.failed:
            url = self.settings.discovery_backend
            held = self._discovery = self._hold(
                f"discovery {without_password(url)}", lambda: registry.discovery.open(url, self.settings)
            )
        return await held.get()

    async def serving_plane(self) -> RequestPlane:
        """The request plane that this runtime serves on, which it may dial by too."""
        return await self.plane(self._serving_scheme)

    async def plane(self, scheme: str) -> RequestPlane:
        """The request plane that dials addresses of this scheme. Raises ConfigError if there is no adapter
        for it.
        """
        if (plane := self.plane_nowait(scheme)) is not None:
            return plane
        held = self._planes.get(scheme)
        if held is None or held.failed:
            url = self.settings.request_plane if scheme == self._serving_scheme else scheme
            registry.request_plane.factory(scheme)
            held = self._planes[scheme] = self._hold(
                f"request plane {without_password(url)}", lambda: self._open_plane(url)
            )
        return await held.get()

    @asynccontextmanager
    async def _open_plane(self, url: str) -> AsyncIterator[RequestPlane]:
        """Where discovery stays on this host the plane does too, unless an address was given."""
        settings, discovery = self.settings, await self.discovery()
        if settings.tcp_host is None and not discovery.capability.cross_host:
            settings = evolve(settings, tcp_host=LOOPBACK)
        async with registry.request_plane.open(url, settings) as plane:
            yield plane

    def plane_nowait(self, scheme: str) -> RequestPlane | None:
        """An open plane that dials this scheme, or None."""
        if (held := self._planes.get(scheme)) is not None and (plane := held.value) is not None:
            return plane
        for held in self._planes.values():  # one adapter may speak several: tcp, tcps and unix
            if (plane := held.value) is not None and scheme in plane.capability.schemes:
                return plane
        return None

    def dial(self, address: str) -> RequestPlane | None:
        """The plane for an address by its scheme; None where no adapter is known that dials it.

        The first call by a scheme may find its adapter still opening: such a call waits for that, and is
        then turned away, SAFE, to be sent again. Raises ConfigError for an adapter that cannot be used,
        MissingExtraError too.
        """
        scheme = scheme_of(address)
        if (plane := self.plane_nowait(scheme)) is not None:
            return plane
        if scheme not in registry.request_plane.schemes():
            return None
        registry.request_plane.factory(scheme)
        return OpeningPlane(
            scheme, asyncio.ensure_future(self.plane(scheme)), self.settings.connect_timeout_s
        )

    async def patiently(self, opening: Awaitable[T], trouble: Callable[[], DynamoError | None]) -> T:
        """Bound a wait for the backends by ``startup_timeout_s``; ``trouble`` is the caller's, after ours."""
        settings = self.settings

        def wait() -> Wait:
            plane = self._planes.get(self._serving_scheme)
            if plane is not None and plane.value is None:  # discovery comes first, so that is open
                variable, url = settings.source("request_plane"), without_password(settings.request_plane)
                way_out = f"start it, or set {variable}=tcp, which needs no server"
                return Wait(what=f"{url} ({variable})", trouble=plane.trouble, way_out=way_out)
            variable, url = settings.source("discovery_backend"), without_password(settings.discovery_backend)
            way_out = f"start it, or set {variable} to one that needs no server: {SERVERLESS}"
            if scheme_of(settings.discovery_backend) in NEED_NO_SERVER:
                way_out = f"or set {variable} to another"
            return Wait(
                what=f"discovery {url} ({variable})", trouble=self.trouble or trouble(), way_out=way_out
            )

        bound = settings.source("startup_timeout_s")
        self._waiting += 1
        try:
            return await patiently(
                opening, timeout_s=settings.startup_timeout_s, bound=bound, wait=wait, say=self._say
            )
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._said.clear()

    def _say(self, text: str) -> None:
        """Once for all who wait for the same."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)

    def _hold(self, name: str, make: Callable[[], AbstractAsyncContextManager[P]]) -> Held[P]:
        if self._closed:
            raise ClosedError("this runtime is closed")

        async def enter(stack: AsyncExitStack, held: Held[P]) -> P:
            delays = backoff()
            while True:
                try:
                    value = await stack.enter_async_context(make())
                    held.trouble = None
                    return value
                except UnavailableError as error:
                    held.trouble = error
                await asyncio.sleep(next(delays))

        return Held(asyncio.get_running_loop(), name, enter)

    async def close(self) -> None:
        """Close the planes, then discovery; each bounded. Nothing opens after it."""
        self._closed = True
        planes, self._planes = list(self._planes.values()), {}
        await asyncio.gather(*(held.close(CLOSE_S) for held in planes))
        discovery, self._discovery = self._discovery, None
        if discovery is not None:
            await discovery.close(CLOSE_S)
