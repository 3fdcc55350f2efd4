"""The program that a kubeconfig names for credentials: what it is told, what it may answer, how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

from dynamo.adapters.discovery.kubernetes.program import Credential, Programs

pytestmark = pytest.mark.anyio
VERSION = "client.authentication.k8s.io/v1"
HERE = Path(__file__).parent
LONG_AGO, FAR_OFF = "2001-09-09T01:46:40Z", "2999-01-01T00:00:00Z"


def program(code: str, **fields: Any) -> dict[str, Any]:
    """One that is written in Python, as the section ``exec`` of a kubeconfig."""
    return {"apiVersion": VERSION, "command": sys.executable, "args": ["-c", code], **fields}


def printing(**status: Any) -> str:
    return f'print("""{json.dumps({"apiVersion": VERSION, "status": status})}""")'


async def asked(
    spec: dict[str, Any], cluster: dict[str, Any] | None = None, folder: Path = HERE
) -> Credential:
    return await Programs().credential(spec, cluster or {}, folder)


async def test_what_it_gives_stands_in_the_section_of_the_user() -> None:
    given = await asked(
        program(
            printing(token="t", clientCertificateData="c", clientKeyData="k", expirationTimestamp=LONG_AGO)
        )
    )
    assert given == Credential(token="t", certificate="c", key="k", expires=1e9)
    assert given.of_user() == {"token": "t", "client-certificate-data": "Yw==", "client-key-data": "aw=="}
    assert (await asked(program(printing(token="t")))).of_user() == {"token": "t"}


async def test_it_is_told_what_the_kubeconfig_and_its_kind_say(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("authority")
    told = tmp_path / "told"
    code = (
        f"import os; open({str(told)!r}, 'w').write(os.environ['KUBERNETES_EXEC_INFO'] + os.environ['WHO'])"
    )
    spec = program(f"{code}; {printing(token='t')}", env=[{"name": "WHO", "value": "me"}])
    cluster = {
        "server": "https://10.0.0.1",
        "certificate-authority": "ca.pem",
        "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}],
    }
    await asked(spec, cluster, tmp_path)
    request = {"apiVersion": VERSION, "kind": "ExecCredential", "spec": {"interactive": False}}
    assert told.read_text() == f"{json.dumps(request)}me"
    await asked({**spec, "provideClusterInfo": True}, cluster, tmp_path)
    assert json.loads(told.read_text().removesuffix("me"))["spec"]["cluster"] == {
        "server": "https://10.0.0.1",
        "certificate-authority-data": "YXV0aG9yaXR5",
        "config": {"audience": "a"},
    }


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")
async def test_its_path_is_seen_from_the_folder_of_the_kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "plugin"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{printing(token='t')}'")
    script.chmod(0o700)
    spec = {"apiVersion": VERSION, "command": "./plugin"}
    assert (await asked(spec, folder=tmp_path)).token == "t"
    monkeypatch.chdir(tmp_path)
    assert (await asked(spec, folder=Path())).token == "t"


async def test_one_that_complains_at_length_is_listened_to() -> None:
    code = f"import sys; sys.stderr.write('x' * 1_000_000); {printing(token='t')}"
    assert (await asked(program(code))).token == "t"


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in the file system")
async def test_one_that_nobody_waits_for_any_more_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    asking = asyncio.create_task(asked(program(code)))
    child = int(await anyio.Path(pid).read_text())
    asking.cancel()
    await asyncio.wait((asking,))
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.parametrize(
    "spec, expected",
    [
        (program("import sys; sys.exit('no\\n  network')"), " gave no credentials: exit code 1: no network"),
        (program("import sys; sys.exit('x' * 999)"), f" gave no credentials: exit code 1: ...{'x' * 300}"),
        (program("import os; os._exit(3)"), " gave no credentials: exit code 3"),
        (program("print('hello')"), " printed no ExecCredential"),
        (program("print('[]')"), " printed no ExecCredential"),
        (program(f'print(\'{{"apiVersion": "{VERSION}", "status": null}}\')'), " printed no ExecCredential"),
        (program(printing(token="t", expirationTimestamp="soon")), " printed no ExecCredential"),
        (program(printing()), " gave no credentials"),
        (
            program(printing(clientCertificateData="c")),
            " gave a certificate without a key, or a key without one",
        ),
        (program(printing(token="t"), apiVersion="v9"), f" speaks {VERSION}, not v9"),
        (
            program("", interactiveMode="Always"),
            " asks questions (interactiveMode: Always), and here is nobody",
        ),
        (
            program("", command="no-such-plugin", installHint="get it\nfrom the vendor"),
            " cannot be started: No such file or directory: get it from the vendor",
        ),
    ],
)
async def test_what_is_wrong_with_it_is_one_line(spec: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError) as told:
        await asked(spec)
    assert str(told.value) == f"its program {spec['command']}{expected}"


@pytest.mark.parametrize("expires, runs", [(FAR_OFF, 1), (None, 1), (LONG_AGO, 2)])
async def test_an_answer_holds_until_it_expires(tmp_path: Path, expires: str | None, runs: int) -> None:
    count = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    status = {"token": "t"} if expires is None else {"token": "t", "expirationTimestamp": expires}
    spec, programs = program(f"{count}; {printing(**status)}"), Programs()
    for _ in range(2):
        assert (await programs.credential(spec, {}, HERE)).token == "t"
    assert (tmp_path / "runs").read_text() == "x" * runs
    programs.forget()
    await programs.credential(spec, {}, HERE)
    assert (tmp_path / "runs").read_text() == "x" * (runs + 1), "it was refused"
    await programs.credential({**spec, "env": []}, {}, HERE)
    assert (tmp_path / "runs").read_text() == "x" * (runs + 2), "another program"
