"""Static mode: no discovery service, fixed addresses, declared once for the whole deployment.

``DYN_STATIC_INSTANCES`` declares them in one line::

    demo.backend.generate=tcp://10.0.0.1:7000,tcp://10.0.0.2:7000#7;demo.prefill.generate=tcp://10.0.0.3:7000

or ``DYN_STATIC_FILE`` (or the URL, ``static:///etc/dynamo.yaml``) names a YAML file (extra ``static``), or
a ``.json``::

    demo.backend.generate:
      - tcp://10.0.0.1:7000
      - tcp://10.0.0.2:7000#7
    demo.prefill.generate: tcp://10.0.0.3:7000

One address is one process: an endpoint's instances are its addresses, and an address under several
endpoints is one process that serves them all. ``#7`` gives its instance id; else that is the first 53 bits
of the SHA-256 of the address as it is declared, host in lower case.

Workers run unchanged: one takes on the first address, of those declared for the endpoint that it serves
first, that it can bind; ``DYN_TCP_RPC_HOST`` and ``DYN_TCP_RPC_PORT`` narrow them down where they are set.
What else it serves must be declared for that address too. A caller needs no address.

=============  =============================================================================
capability
=============  =============================================================================
liveness       none: who is declared is listed, alive or not; calls find out
dynamic        no: one snapshot, no change
cross_process  yes
cross_host     yes
=============  =============================================================================

Errors: ConfigError for whatever is wrong with the declaration or does not agree with it; MissingExtraError.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dynamo.adapters.discovery.static.client import CAPABILITY, StaticDiscovery
from dynamo.adapters.discovery.static.declaration import (
    EXAMPLE,
    Declaration,
    from_file,
    from_text,
    instance_id_of,
)
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.registry import url_options

__all__ = ["CAPABILITY", "StaticDiscovery", "instance_id_of", "open_static"]


def open_static(url: str, settings: Settings) -> AbstractAsyncContextManager[StaticDiscovery]:
    """``static://``, or ``static:///path`` of a file. Raises ConfigError; a file is read on entering."""
    parts = urlsplit(url)
    url_options(url, ())
    text, file = settings.static_instances, settings.static_file
    if parts.netloc or parts.fragment:
        raise ConfigError(f"{url}: expected static:// or static:///path/to/file.yaml")
    if parts.path.strip("/"):
        return _open(lambda: from_file(Path(unquote(parts.path)), "the URL"), settings)
    if text and file:
        both = f"{settings.source('static_instances')} and {settings.source('static_file')}"
        raise ConfigError(f"{both} are both set; which instances there are must be said in one place")
    if file:
        return _open(lambda: from_file(Path(file), settings.source("static_file")), settings)
    if text:
        declaration = from_text(text, settings.source("static_instances"))
        return _open(lambda: declaration, settings)
    raise ConfigError(f"static discovery needs DYN_STATIC_INSTANCES, such as {EXAMPLE}, or DYN_STATIC_FILE")


@asynccontextmanager
async def _open(read: Callable[[], Declaration], settings: Settings) -> AsyncIterator[StaticDiscovery]:
    discovery = StaticDiscovery(await asyncio.to_thread(read), settings)
    try:
        yield discovery
    finally:
        discovery.close()
