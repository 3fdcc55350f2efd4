"""Runs the program that a kubeconfig names for credentials (``exec``), and keeps what it said.

``kubernetes`` runs one too, but leaves it behind when nobody waits for it any more, waits for ever for one
that complains at length, logs what went wrong in place of raising it, and asks again each time. Here it is
done as client-go does it: the answer holds until it expires or is refused.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, TypeAlias

import anyio
from anyio.abc import ByteReceiveStream
from attrs import frozen

Node: TypeAlias = Mapping[str, Any]

EARLY_S = 60.0  # an answer is asked for anew so long before it expires
SHOWN = 300  # characters of what it complained of
EXTENSION = "client.authentication.k8s.io/exec"
TOLD_OF_CLUSTER = ("server", "tls-server-name", "insecure-skip-tls-verify", "proxy-url")


@frozen(kw_only=True)
class Credential:
    """What a program gave: a token, a certificate with its key (PEM), or both; ``expires`` in Unix time."""

    token: str | None
    certificate: str | None
    key: str | None
    expires: float | None

    @property
    def expires_soon(self) -> bool:
        return self.expires is not None and time.time() > self.expires - EARLY_S

    def of_user(self) -> dict[str, str]:
        """As a kubeconfig has it in the section of a user."""
        given = {
            "token": self.token,
            "client-certificate-data": self.certificate and _in_base64(self.certificate.encode()),
            "client-key-data": self.key and _in_base64(self.key.encode()),
        }
        return {name: value for name, value in given.items() if value}


class Programs:
    """What was said by the program that was asked last."""

    def __init__(self) -> None:
        self._asked: object = None
        self._credential: Credential | None = None

    def forget(self) -> None:
        """The server has refused it."""
        self._credential = None

    async def credential(self, spec: Node, cluster: Node, folder: Path) -> Credential:
        """Of the program in ``spec``; relative paths begin at ``folder``, that of the kubeconfig.

        Waits until it has ended; it is killed where the waiting ends before. Raises ValueError, OSError.
        """
        asked = json.dumps((spec, cluster, str(folder)), sort_keys=True, default=str)
        if asked != self._asked or self._credential is None or self._credential.expires_soon:
            self._credential = None
            self._credential, self._asked = _read(await _said(spec, cluster, folder), spec), asked
        return self._credential


async def _said(spec: Node, cluster: Node, folder: Path) -> bytes:
    name = str(spec["command"])
    mode = spec.get("interactiveMode") or "IfAvailable"
    at_terminal = mode != "Never" and sys.stdin is not None and sys.stdin.isatty()
    if mode == "Always" and not at_terminal:
        raise ValueError(f"its program {name} asks questions (interactiveMode: Always), and here is nobody")
    info: dict[str, Any] = {"interactive": at_terminal}
    if spec.get("provideClusterInfo"):
        info["cluster"] = _told(cluster, folder)
    request = {"apiVersion": spec["apiVersion"], "kind": "ExecCredential", "spec": info}
    own = {str(one["name"]): str(one["value"]) for one in spec.get("env") or ()}
    command = os.path.join(folder, name) if os.path.dirname(name) else name
    try:
        process = await anyio.open_process(
            [command, *map(str, spec.get("args") or ())],
            stdin=None if at_terminal else DEVNULL,
            stderr=None if at_terminal else PIPE,
            env={**os.environ, **own, "KUBERNETES_EXEC_INFO": json.dumps(request)},
        )
    except OSError as error:
        hint = " ".join(str(spec.get("installHint") or "").split())
        why = f"{error.strerror or error}{hint and ': '}{hint}"
        raise ValueError(f"its program {name} cannot be started: {why}") from error
    async with process:
        try:
            said, complaint = await asyncio.gather(_all(process.stdout), _all(process.stderr))
            code = await process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                process.kill()  # else it would be waited for
            raise
    if code:
        words = " ".join(complaint.decode(errors="replace").split())
        words = words if len(words) <= SHOWN else f"...{words[-SHOWN:]}"
        raise ValueError(f"its program {name} gave no credentials: exit code {code}{words and ': '}{words}")
    return said


async def _all(stream: ByteReceiveStream | None) -> bytes:
    return b"" if stream is None else b"".join([chunk async for chunk in stream])


def _told(cluster: Node, folder: Path) -> dict[str, Any]:
    """The cluster for a program with ``provideClusterInfo``: with the authority itself, not its file."""
    told = {name: cluster[name] for name in TOLD_OF_CLUSTER if name in cluster}
    authority = cluster.get("certificate-authority-data")
    if not authority and (file := cluster.get("certificate-authority")):
        authority = _in_base64((folder / file).read_bytes())
    if authority:
        told["certificate-authority-data"] = authority
    for extension in cluster.get("extensions") or ():
        if extension["name"] == EXTENSION:
            told["config"] = extension["extension"]
    return told


def _read(said: bytes, spec: Node) -> Credential:
    name = spec["command"]
    try:
        answer = json.loads(said)
        version, status = answer["apiVersion"], answer["status"]
        expires = status.get("expirationTimestamp")
        credential = Credential(
            token=status.get("token"),
            certificate=status.get("clientCertificateData"),
            key=status.get("clientKeyData"),
            expires=None if expires is None else datetime.fromisoformat(expires).timestamp(),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"its program {name} printed no ExecCredential") from error
    if version != spec["apiVersion"]:
        raise ValueError(f"its program {name} speaks {version}, not {spec['apiVersion']}")
    if bool(credential.certificate) != bool(credential.key):
        raise ValueError(f"its program {name} gave a certificate without a key, or a key without one")
    if not credential.token and not credential.certificate:
        raise ValueError(f"its program {name} gave no credentials")
    return credential


def _in_base64(content: bytes) -> str:
    return base64.standard_b64encode(content).decode()
