"""What ``dynamo manifests kubernetes`` prints is run as a kubelet would, and updated under load."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("kubernetes", reason="the extra kubernetes is not installed")

import control_plane
from kubernetes_namespace import NODE, Namespace, Pod, fresh_namespace

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]
BOUND_S = 30
PROBE_S = 0.1  # the manifests' 2 s are for clusters
AT_ONCE = 4  # callers over HTTP
HELLO = """
import asyncio
from collections.abc import AsyncIterator
from dynamo.runtime import api, depends, endpoint, service

@service(workers=2)
class Backend:
    @endpoint
    async def generate(self, prompt: str) -> AsyncIterator[str]:
        for word in prompt.split():
            await asyncio.sleep(0.05)
            yield word

@service
class Frontend:
    backend = depends(Backend)

    @api
    async def shout(self, prompt: str) -> AsyncIterator[str]:
        async for word in self.backend.generate(prompt):
            yield word.upper()
"""


class Running:
    """A pod's only container. In place of a network namespace it has a loopback address of its own."""

    def __init__(
        self, namespace: Namespace, pod: Pod, spec: dict[str, Any], host: str, env: dict[str, str]
    ) -> None:
        self.pod, self.host = pod, host
        (self._container,) = spec["containers"]
        self._grace_s = spec["terminationGracePeriodSeconds"]
        self._namespace, self._env = namespace, env
        self._process: asyncio.subprocess.Process | None = None
        self._probing: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    async def start(self, folder: Path) -> None:
        """Run the command, and probe it from now on."""
        command = [str(Path(sys.executable).parent / "dynamo"), *self._container["command"][1:]]
        if "--http-port" in command:
            command += ["--http-host", self.host]
        self._process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=self._env)
        self._probing = asyncio.create_task(self._probe())

    async def ready(self) -> None:
        async with asyncio.timeout(BOUND_S):
            await self._ready.wait()

    async def _probe(self) -> None:
        port = {one["name"]: one["containerPort"] for one in self._container["ports"]}
        probe = self._container["readinessProbe"]["httpGet"]
        url = f"http://{self.host}:{port[probe['port']]}{probe['path']}"
        async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
            while True:
                try:
                    ready = (await client.get(url)).is_success
                except httpx.TransportError:
                    ready = False
                if ready != self._ready.is_set():
                    await self._namespace.kubelet.set_ready(self.pod, ready)
                    (self._ready.set if ready else self._ready.clear)()
                await asyncio.sleep(PROBE_S)

    async def delete(self) -> int:
        """As ``kubectl delete pod``: it terminates, gets SIGTERM, and is gone with its process."""
        assert self._process is not None
        await self._namespace.kubelet.delete(self.pod, grace_s=self._grace_s)
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(BOUND_S):
            code = await self._process.wait()
        self._stop_probing()
        await self._namespace.kubelet.delete(self.pod)
        return code

    def _stop_probing(self) -> None:
        if self._probing is not None:
            self._probing.cancel()

    async def clear(self) -> None:
        self._stop_probing()
        if self._process is not None and self._process.returncode is None:
            for number in (signal.SIGTERM, signal.SIGINT):  # the second one cuts the drain short
                self._process.send_signal(number)
            async with asyncio.timeout(BOUND_S):
                await self._process.wait()


class Cluster:
    """Does what the controllers of Deployments and the kubelets do."""

    def __init__(self, namespace: Namespace, kubeconfig: Path, folder: Path, stack: AsyncExitStack) -> None:
        self._namespace, self._kubeconfig, self._folder, self._stack = namespace, kubeconfig, folder, stack

    async def run(self, deployment: str, name: str) -> Running:
        """One pod of it, on its way."""
        found = await self._namespace.call("GET", f"apps/v1/deployments/{deployment}")
        template = found["spec"]["template"]
        template["metadata"]["name"] = name
        template["spec"]["nodeName"] = NODE
        pod = await self._namespace.kubelet.run(template, ready=False)
        host = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(2, 254)}"
        env = self._environment(template["spec"]["containers"][0]["env"], pod, host)
        running = Running(self._namespace, pod, template["spec"], host, env)
        self._stack.push_async_callback(running.clear)
        await running.start(self._folder)
        return running

    def _environment(self, declared: list[dict[str, Any]], pod: Pod, host: str) -> dict[str, str]:
        fields = {
            "metadata.name": pod.name,
            "metadata.uid": pod.uid,
            "metadata.namespace": pod.namespace,
            "status.podIP": host,
        }
        env = {name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "POD_"))}
        for one in declared:
            if "value" in one:
                env[one["name"]] = one["value"]
            elif "fieldRef" in one["valueFrom"]:
                env[one["name"]] = fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
            else:
                assert one["valueFrom"]["secretKeyRef"]["optional"]
        return {**env, "KUBECONFIG": str(self._kubeconfig), "DYN_SYSTEM_HOST": host}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    plane = control_plane.shared()
    (tmp_path / "hello.py").write_text(HELLO)
    async with fresh_namespace(plane) as namespace, AsyncExitStack() as stack:
        printed = subprocess.run(
            [
                *(sys.executable, "-m", "dynamo.cli", "manifests", "kubernetes", "hello:Frontend"),
                *("--worker", "Backend", "--image", "none", "--namespace", namespace.name),
            ],
            capture_output=True, text=True, timeout=BOUND_S, check=True,
        )  # fmt: skip
        plane.kubectl("apply", "-f", "-", stdin=printed.stdout)
        kubeconfig = plane.kubeconfig(await namespace.token("dynamo"), namespace=namespace.name)
        yield Cluster(namespace, kubeconfig, tmp_path, stack)


@asynccontextmanager
async def load(url: str) -> AsyncIterator[list[str]]:
    """Calls, one after the other from each caller, until the block ends; their answers."""
    answers: list[str] = []
    ending = False

    async def call(client: httpx.AsyncClient) -> None:
        while not ending:
            answer = await client.post(url, json={"prompt": "one by one"})
            answers.append(f"{answer.status_code} {answer.text.split()}")

    async with httpx.AsyncClient(timeout=BOUND_S, trust_env=False) as client:
        calls = [asyncio.create_task(call(client)) for _ in range(AT_ONCE)]
        try:
            yield answers
        finally:
            ending = True
            await asyncio.gather(*calls)


async def test_a_worker_is_replaced_and_no_call_notices(cluster: Cluster) -> None:
    frontend, old = await asyncio.gather(
        cluster.run("dynamo-frontend", "frontend-0"), cluster.run("dynamo-backend", "backend-0")
    )
    await asyncio.gather(frontend.ready(), old.ready())
    async with load(f"http://{frontend.host}:8000/shout") as answers:
        new = await cluster.run("dynamo-backend", "backend-1")
        await new.ready()
        assert await old.delete() == 0
        left = len(answers)
        async with asyncio.timeout(BOUND_S):
            while len(answers) < left + 2 * AT_ONCE:
                await asyncio.sleep(0.01)
    assert len(answers) > 4 * AT_ONCE
    assert set(answers) == {"""200 ['"ONE"', '"BY"', '"ONE"']"""}
