"""A real Kubernetes control plane on ephemeral ports: kube-apiserver, its etcd, and the controllers we need.

There is no kubelet: ``kubernetes_namespace`` makes pods and tells their status in its place.
"""

from __future__ import annotations

import asyncio
import atexit
import csv
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Self

import httpx
import trustme

from control_plane_part import HOST, Part, program
from etcd_server import EtcdServer

KUBECTL_S = 30
MEMORY = Path("/dev/shm")
CRD = Path(__file__).parent.parent / "deploy/kubernetes/crd.yaml"  # the kind that is ours
CONTROLLERS = (
    "endpointslice-controller",
    "garbage-collector-controller",
    "serviceaccount-controller",
    "namespace-controller",
)


class ControlPlane:
    """One control plane, with an authority of its own; ``apiserver`` can be killed and frozen by itself.

    ``manifests`` are applied before the controllers start, as the garbage collector learns of new kinds only
    every 30 seconds. Start it from the main thread: what it starts dies with the thread that started it.
    """

    def __init__(self, *manifests: Path) -> None:
        program()  # before anything is held that a skipped test would leave
        self._stack = ExitStack()
        self._manifests = manifests
        self.folder = Path(tempfile.mkdtemp(prefix="kube-", dir=MEMORY if MEMORY.is_dir() else None))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.etcd = EtcdServer()
        self._stack.callback(self.etcd.close)
        self.apiserver = Part("kube-apiserver", self.folder, self._stack)
        self._stack.callback(self.apiserver.kill)
        self.controllers = Part("kube-controller-manager", self.folder, self._stack)
        self._stack.callback(self.controllers.kill)
        self.admin_token = "admin-token"
        self.ca_path = self.folder / "ca.pem"
        self._issue()
        self.tls = ssl.create_default_context(cafile=str(self.ca_path))
        self._client = self._stack.enter_context(
            httpx.Client(verify=self.tls, headers=self.headers(), timeout=2.0, trust_env=False)
        )

    def _issue(self) -> None:
        """The certificate of all servers, the key that signs ServiceAccounts' tokens, and who is admin."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_path)
        issued = authority.issue_cert(HOST, "localhost", "kubernetes.default.svc")
        (self.folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(self.folder / "server.key")
        authority.issue_cert(HOST).private_key_pem.write_to_path(self.folder / "sa.key")
        with (self.folder / "tokens.csv").open("w") as tokens:
            csv.writer(tokens).writerow((self.admin_token, "admin", "uid-admin", "system:masters"))

    @property
    def url(self) -> str:
        return self.apiserver.url

    def headers(self, token: str | None = None) -> dict[str, str]:
        """How a request proves who it is from; the admin without ``token``."""
        return {"Authorization": f"Bearer {token or self.admin_token}"}

    # Its life.

    def start(self) -> Self:
        """Start all parts, and wait until they are ready."""
        self.etcd.start()
        self.launch()
        self._wait()
        for manifest in self._manifests:
            self.kubectl("apply", "-f", str(manifest))
            self.kubectl("wait", "--for=condition=Established", "-f", str(manifest))
        self._launch_controllers()
        self.controllers.wait(self._client, "/healthz")
        return self

    def kill(self) -> None:
        """kill -9 of the API server and of the controllers.

        Controllers that have lost their API server wait longer and longer, in vain for minutes after it is
        back; those of a cluster lose their leader's lease after ten seconds, and are started again.
        """
        self.controllers.kill()
        self.apiserver.kill()

    def launch(self) -> None:
        """Start the API server, and return at once."""
        folder = self.folder
        self.apiserver.launch(
            f"--etcd-servers={self.etcd.url}",
            *(
                f"--secure-port={self.apiserver.port}",
                f"--bind-address={HOST}",
                f"--advertise-address={HOST}",
            ),
            *(f"--tls-cert-file={folder / 'server.pem'}", f"--tls-private-key-file={folder / 'server.key'}"),
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'sa.key'}",
            f"--service-account-signing-key-file={folder / 'sa.key'}",
            *(f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC"),
            *("--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none"),
            "--disable-admission-plugins=ServiceAccount",
        )

    def _launch_controllers(self) -> None:
        folder = self.folder
        self.controllers.launch(
            *(f"--kubeconfig={self.kubeconfig()}", f"--controllers={','.join(CONTROLLERS)}"),
            *("--leader-elect=false", f"--bind-address={HOST}", f"--secure-port={self.controllers.port}"),
            *(f"--tls-cert-file={folder / 'server.pem'}", f"--tls-private-key-file={folder / 'server.key'}"),
            f"--service-account-private-key-file={folder / 'sa.key'}",
        )

    def _wait(self) -> None:
        self.apiserver.wait(self._client, "/readyz")

    async def ready(self) -> None:
        """Until the API server is ready; the controllers are started where they were killed."""
        await asyncio.to_thread(self._wait)
        if not self.controllers.runs:
            self._launch_controllers()

    def compact(self) -> None:
        """Forget all history; the API server serves what it remembers of it until it is started again."""
        self.etcd.compact()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    # Ways in.

    def kubeconfig(
        self, token: str | Path | None = None, *, namespace: str = "default", server: str | None = None
    ) -> Path:
        """A file for ``KUBECONFIG``: with this token, or with the file that holds it; the admin's without.

        ``server`` is the URL of another way there, such as a proxy on 127.0.0.1.
        """
        user = {"tokenFile": str(token)} if isinstance(token, Path) else {"token": token or self.admin_token}
        name = "tests"
        content: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": name,
                    "cluster": {"server": server or self.url, "certificate-authority": str(self.ca_path)},
                }
            ],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
            "current-context": name,
        }
        handle, path = tempfile.mkstemp(prefix="kubeconfig-", suffix=".json", dir=self.folder)
        with os.fdopen(handle, "w") as file:
            json.dump(content, file)
        return Path(path)

    def service_account_folder(self, token: str, namespace: str) -> Path:
        """What is mounted at /var/run/secrets/kubernetes.io/serviceaccount in a pod."""
        folder = Path(tempfile.mkdtemp(prefix="serviceaccount-", dir=self.folder))
        (folder / "token").write_text(token)
        (folder / "namespace").write_text(namespace)
        shutil.copy(self.ca_path, folder / "ca.crt")
        return folder

    def kubectl(
        self, *arguments: str, namespace: str = "default", token: str | None = None, stdin: str | None = None
    ) -> str:
        """What the real kubectl prints; it must end well."""
        done = subprocess.run(
            [program(), "kubectl", f"--kubeconfig={self.kubeconfig(token, namespace=namespace)}", *arguments],
            env={**os.environ, "HOME": str(self.folder)},
            input=stdin, capture_output=True, text=True, timeout=KUBECTL_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout


@cache
def shared() -> ControlPlane:
    """One for all tests of this process that keep it running; each takes a namespace of its own."""
    plane = ControlPlane(CRD)
    atexit.register(plane.close)
    return plane.start()
