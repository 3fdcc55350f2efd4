"""Which service of a deployment answers over HTTP, on which port, and whether its ports are free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, ConflictError
from dynamo.sdk import PlannedService

LAST_PORT = 65535


def http_ports(planned: Iterable[PlannedService], first: int) -> dict[str, int]:
    """The port of each service that has ``@api`` routes, callers first: ``first``, the next one, and so on;
    0 for all if ``first`` is 0. Raises ConfigError.
    """
    callers_first = reversed(list(planned))
    names = [one.name for one in callers_first if any(method.route for method in one.service.methods)]
    if first + len(names) - 1 > LAST_PORT and first:
        raise ConfigError(
            f"--http-port {first}: {', '.join(names)} need ports up to {first + len(names) - 1}"
        )
    return {name: first and first + number for number, name in enumerate(names)}


def check_free(ports: Mapping[str, int], host: str | None, settings: Settings) -> None:
    """Raise ConfigError for a port that is in use, before any worker starts: those of one service share
    theirs, and would share it with another deployment's too.
    """
    if ports:
        from dynamo.adapters.http.listening import host_of, listen

        for port in filter(None, ports.values()):
            listen(host_of(settings) if host is None else host, port).close()


def check_status_ports(workers: int, settings: Settings) -> None:
    """Raise ConfigError for a port in use that a worker's status server is to have: each takes the next."""
    if first := settings.system_port:
        from dynamo.adapters.telemetry.status_server import bind

        for port in range(first, first + workers):
            try:
                bind(attrs.evolve(settings, system_port=port)).close()
            except ConflictError as error:
                raise ConfigError(str(error)) from error
