"""Files that settings name: what is none is told at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo.adapters.discovery.etcd import configuration
from dynamo.adapters.request_plane.nats import access
from dynamo.adapters.request_plane.tcp import tls
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError
from dynamo.core.files import check_file

PATIENCE_S = 3.0


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[str]:
    """One that nobody writes to; it ends before long, so that who reads it is not kept for ever."""
    os.mkfifo(path := tmp_path / "pipe.pem")
    with open(path, "r+b", buffering=0) as writer:
        end = threading.Timer(PATIENCE_S, writer.close)
        end.start()
        yield str(path)
        end.cancel()
        end.join()


def etcd_tls(settings: Settings) -> Any:
    return configuration.tls_context(configuration.read("etcd://", settings))


@pytest.mark.parametrize(
    "use,fields",
    [
        (tls.server_context, ["tls_cert_path"]),
        (tls.client_context, ["tls_ca_cert_path"]),
        (tls.client_context, ["tls_client_cert_path"]),
        (access.options, ["nats_tls_ca"]),
        (access.options, ["nats_tls_client_cert"]),
        (access.options, ["nats_auth_credentials_file"]),
        (etcd_tls, ["etcd_auth_ca"]),
        (etcd_tls, ["etcd_auth_client_cert", "etcd_auth_client_key"]),
    ],
)
def test_a_pipe_is_told_by_the_setting_that_names_it(
    use: Callable[[Settings], Any], fields: list[str], pipe: str
) -> None:
    given: dict[str, Any] = dict.fromkeys(fields, pipe)
    settings = Settings.from_env({"ETCD_ENDPOINTS": "https://127.0.0.1:1"}, **given)
    with pytest.raises(ConfigError, match="is a pipe, not a file") as caught:
        use(settings)
    assert pipe in str(caught.value)
    assert fields[0] in str(caught.value)


def test_files_and_what_is_not_there_pass(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("")
    (link := tmp_path / "link").symlink_to(file)
    for path in (file, link, str(file), tmp_path / "none", file / "below"):
        check_file(path, "X")


def test_a_path_that_none_can_have_is_told() -> None:
    with pytest.raises(ConfigError, match=r"^X: no path of a file: embedded null byte; do that$"):
        check_file("a\0b", "X", "; do that")
