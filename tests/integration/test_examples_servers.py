"""The compose file of etcd and NATS fits the defaults of the variables that lead there.

That its containers start is not tested: it takes a container engine.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from dynamo.core.config import Settings
from integration.examples import EXAMPLES

DEFAULTS = Settings.from_env({})
PORTS = {"etcd": urlsplit(DEFAULTS.etcd_endpoints).port, "nats": urlsplit(DEFAULTS.nats_server).port}


@pytest.fixture
def compose() -> Any:
    return yaml.safe_load((EXAMPLES / "servers" / "compose.yaml").read_text())


def test_each_server_is_where_its_variable_looks_by_default_and_nowhere_else(compose: Any) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items()}
    assert published == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PORTS.items()}
    for name, service in compose["services"].items():
        assert re.search(
            rf"port={PORTS[name]}$|-client-urls=\S+:{PORTS[name]}$", "\n".join(service["command"]), re.M
        )


def test_images_are_pinned_and_every_server_has_a_health_check(compose: Any) -> None:
    for service in compose["services"].values():
        assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", service["image"]), service["image"]
        assert service["healthcheck"]["test"][0] == "CMD"


def test_no_path_of_the_host_is_mounted(compose: Any) -> None:
    for service in compose["services"].values():
        for source, target in (volume.split(":") for volume in service.get("volumes", ())):
            assert source in compose["volumes"]
            assert PurePosixPath(target).is_absolute()
