"""h2load, nghttp2's load generator, with 100 connections of 100 streams each: no request fails."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from integration.http2_worker import PATH, working

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.optional_tool,
    pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load (nghttp2-client) is not installed"),
]


@pytest.mark.parametrize(
    "amount",
    [
        pytest.param(("-n", "10000"), id="10,000 requests"),
        pytest.param(("-D", "20"), id="20 s", marks=(pytest.mark.soak, pytest.mark.timeout(120))),
    ],
)
async def test_no_request_fails(amount: tuple[str, str], tmp_path: Path) -> None:
    (body := tmp_path / "body").write_text('{"name": "you"}')
    async with working() as worker:
        process = await asyncio.create_subprocess_exec(
            *("h2load", "-c", "100", "-m", "100", *amount, "-d", body),
            *("-H", "content-type: application/json", worker.address + PATH),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        said = output.decode()
        print(
            "\n"
            + "\n".join(re.findall(r"^(?:finished|requests|status codes|time for request).*", said, re.M))
        )
        counts = {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", _line(said, "requests: "))}
        assert counts["failed"] == counts["errored"] == counts["timeout"] == 0
        assert counts["succeeded"] == counts["done"] >= 10_000
        assert _line(said, "status codes: ").endswith(" 2xx, 0 3xx, 0 4xx, 0 5xx")


def _line(said: str, start: str) -> str:
    return next(line for line in said.splitlines() if line.startswith(start))
