"""Which service of a deployment gets which port."""

from __future__ import annotations

import pytest

pytest.importorskip("msgspec", reason="the extra services is not installed")
pytest.importorskip("click", reason="the extra cli is not installed")

from dynamo.cli.http_ports import http_ports
from dynamo.runtime import ConfigError, ServiceGraph, api, depends, endpoint, service


@service
class Store:
    @api
    async def look(self) -> int:
        return 1


@service
class Engine:
    store = depends(Store)

    @endpoint
    async def run(self) -> int:
        return 1


@service
class Shop:
    engine = depends(Engine)

    @api
    async def buy(self) -> int:
        return 1


def test_callers_come_first_and_those_without_routes_have_none() -> None:
    graph = ServiceGraph.of(Shop)
    assert http_ports(graph, 8000) == {"Shop": 8000, "Store": 8001}
    assert http_ports([graph["Store"]], 8000) == {"Store": 8000}
    assert http_ports([graph["Engine"]], 8000) == {}
    assert http_ports(graph, 0) == {"Shop": 0, "Store": 0}


def test_there_are_no_ports_above_the_last() -> None:
    assert http_ports(ServiceGraph.of(Store), 65535) == {"Store": 65535}
    with pytest.raises(ConfigError, match="--http-port 65535: Shop, Store need ports up to 65536"):
        http_ports(ServiceGraph.of(Shop), 65535)
