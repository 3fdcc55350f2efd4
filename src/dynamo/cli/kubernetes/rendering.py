"""What ``dynamo manifests kubernetes`` prints: the templates beside this file, with names filled in.

The files in ``deploy/kubernetes`` are these templates, rendered; a test compares the two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from string import Template

from attrs import frozen

from dynamo.cli.kubernetes import PARTS
from dynamo.core.errors import ConfigError

LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")  # RFC 1035, as a Service's name must be
LONGEST = 46  # of a Deployment's name: its pods have 17 characters more, and 63 at most
NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123
CLOSING_S = 25  # what `dynamo serve` takes at most after grace and calls, and a little more
WORKER_GRACE_S = 1  # DYN_DRAIN_GRACE_S: its callers are told by itself
FRONTEND_GRACE_S = 5  # its callers come through a Service, and every node's proxy has to learn of it
HTTP_PORT = 8000


@frozen(kw_only=True)
class Workload:
    """One service of the target in ``replicas`` pods, with one worker in each."""

    service: str
    replicas: int = 1

    @property
    def component(self) -> str:
        """What Kubernetes calls it."""
        return self.service.lower().replace("_", "-")


@frozen(kw_only=True)
class Manifests:
    """What is to run, under which names. ``arguments`` go to every ``dynamo serve``."""

    name: str
    namespace: str
    image: str | None = None
    target: str | None = None
    workers: tuple[Workload, ...] = ()
    frontend: Workload | None = None
    finish_s: int = 30
    arguments: tuple[str, ...] = ()

    def documents(self, parts: tuple[str, ...] = PARTS) -> dict[str, str]:
        """YAML by the name of a file, in the order in which to apply them. Raises ConfigError."""
        self._check()
        named = {"name": self.name, "namespace": self.namespace}
        made = {"crd": text("crd")} if "crd" in parts else {}
        made |= {part: template(part).substitute(named) for part in ("rbac", "discovery") if part in parts}
        if "worker" in parts:
            made |= {one.component: self._deployment(one, http=False) for one in self.workers}
        if "frontend" in parts and self.frontend is not None:
            one = self.frontend
            service = template("service").substitute(named, component=one.component)
            made[one.component] = f"{self._deployment(one, http=True)}---\n{service}"
        return made

    def _deployment(self, one: Workload, *, http: bool) -> str:
        grace_s = FRONTEND_GRACE_S if http else WORKER_GRACE_S
        command = ["dynamo", "serve", str(self.target), "--service-name", one.service]
        command += [f"--{one.service}.workers=1", *self.arguments]
        if http:
            command += ["--http-port", str(HTTP_PORT)]
        return template("deployment").substitute(
            name=self.name,
            namespace=self.namespace,
            purpose="Answers HTTP." if http else "Is called by other pods. Scale it by its replicas.",
            component=one.component,
            replicas=one.replicas,
            image=json.dumps(self.image),
            command=json.dumps(command, ensure_ascii=False),
            grace_s=grace_s,
            finish_s=self.finish_s,
            termination_s=grace_s + self.finish_s + CLOSING_S,
            http_port=f"\n            - name: http\n              containerPort: {HTTP_PORT}" if http else "",
        )

    def _check(self) -> None:
        if not LABEL.fullmatch(self.name) or len(self.name) > LONGEST:
            raise ConfigError(
                f"--name {self.name!r}: expected at most {LONGEST} lower-case letters, digits and -, "
                "a letter first, such as hello"
            )
        if not NAMESPACE.fullmatch(self.namespace):
            raise ConfigError(
                f"--namespace {self.namespace!r}: expected at most 63 lower-case letters, digits and -"
            )
        seen = set[str]()
        for one in (*self.workers, *([self.frontend] if self.frontend else [])):
            whole = f"{self.name}-{one.component}"
            if not LABEL.fullmatch(whole) or len(whole) > LONGEST:
                raise ConfigError(
                    f"{one.service}: {whole!r} cannot be a Deployment's name: expected at most {LONGEST} "
                    "letters, digits and -, a letter or digit last"
                )
            if one.component in (*PARTS[:3], *seen):
                why = "is given twice" if one.component in seen else "is the name of another file"
                raise ConfigError(f"{one.service}: {one.component!r} {why}")
            seen.add(one.component)


def text(name: str) -> str:
    """One of the files beside this one."""
    return (files("dynamo.cli.kubernetes") / f"{name}.yaml").read_text("utf-8")


def template(name: str) -> Template:
    """One of them, with names to be filled in."""
    return Template(text(name))


def rules(name: str = "dynamo", namespace: str = "default") -> Iterator[tuple[str, str, str]]:
    """What the Role allows: group, resource and verb, one by one."""
    import yaml

    for document in yaml.safe_load_all(template("rbac").substitute(name=name, namespace=namespace)):
        for rule in document.get("rules", ()):
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    yield from ((group, resource, verb) for verb in rule["verbs"])
