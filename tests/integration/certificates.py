"""A folder of PEM files, and TLS and token settings in short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trustme


def issue(folder: Path) -> None:
    """Two authorities, ``ours`` and ``theirs``, and what they signed."""
    ours, theirs = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(folder / "ours.pem")
    theirs.cert_pem.write_to_path(folder / "theirs.pem")
    for name, authority, host in (
        ("worker", ours, "127.0.0.1"),
        ("elsewhere", ours, "worker.example"),
        ("caller", ours, "caller.example"),
        ("stranger", theirs, "caller.example"),
    ):
        issued = authority.issue_cert(host)
        (folder / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / "nonsense.pem").write_text("no certificate")


def options(folder: Path, short: str) -> dict[str, Any]:
    """Settings from ``token=t cert=worker ca=ours client=caller client_ca=ours name=host``, any of them."""
    made: dict[str, Any] = {}
    for key, _, value in (part.partition("=") for part in short.split()):
        pem, private = folder / f"{value}.pem", folder / f"{value}.key"
        known: dict[str, dict[str, Any]] = {
            "token": {"auth_token": value},
            "cert": {"tls_cert_path": pem, "tls_key_path": private},
            "ca": {"tls_ca_cert_path": pem},
            "client": {"tls_client_cert_path": pem, "tls_client_key_path": private},
            "client_ca": {"tls_client_ca_cert_path": pem},
            "name": {"tls_server_name": value},
        }
        made |= known[key]
    return made
