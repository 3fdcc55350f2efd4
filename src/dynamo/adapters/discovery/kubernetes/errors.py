"""What the API server and the way there say, in our words."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
from attrs import frozen

from dynamo.core.errors import AuthError, ConfigError, DynamoError, UnavailableError

CRD = "dynamoworkermetadatas.nvidia.com"
LONGEST_REST_S = 60.0
TOO_LARGE = ("request is too large", "larger than max")  # etcd's words, and those of its client
APPLY_CRD = "dynamo manifests kubernetes --only crd | kubectl apply -f -"
TERMINATING = "because it is being terminated"
FORBIDDEN, USER = " is forbidden: ", 'User "'  # RBAC goes on with the user, admission does not
DENIED = re.compile(r"cannot (?P<verb>\w+) resource")


@frozen
class Resource:
    """A kind of objects of a namespace, as requests and RBAC rules name it."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str, name: str | None = None) -> str:
        path = f"/apis/{self.group}/{self.version}/namespaces/{namespace}/{self.plural}"
        return path if name is None else f"{path}/{name}"


RECORDS = Resource("nvidia.com", "v1alpha1", "dynamoworkermetadatas")
SLICES = Resource("discovery.k8s.io", "v1", "endpointslices")


class RefusedError(DynamoError):
    """The server answered, and the answer is no: there is no such object (404), it is not as we took it to
    be (409), or that history is gone (410).
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class BusyError(UnavailableError):
    """The server asks to come back in ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def translated(
    status: int,
    answer: Mapping[str, Any],
    *,
    where: str,
    verb: str,
    resource: Resource,
    namespace: str,
    retry_after: str | None = None,
) -> DynamoError:
    """An HTTP status and the Status object that came with it, as one error of ours."""
    said = str(answer.get("message") or answer.get("reason") or f"HTTP {status}")
    details = answer.get("details")
    details = details if isinstance(details, dict) else {}
    if status == 401:
        return AuthError(f"the API server at {where} refused our credentials: {said}")
    if status == 403 and TERMINATING in said:
        return ConfigError(f"namespace {namespace!r} of the cluster at {where} is being deleted: {said}")
    if status == 403 and FORBIDDEN in said and USER not in said:  # a quota or a policy, for everybody
        return ConfigError(f"the API server at {where} refuses our record: {said}")
    if status == 403:
        if (denied := DENIED.search(said)) is not None:
            verb = denied["verb"]  # what applies an object that is not there also needs to create
        return AuthError(
            f"the API server at {where} does not let us {verb} {resource.plural} in namespace "
            f"{namespace!r}: the Role of our service account lacks the rule {{apiGroups: "
            f'["{resource.group}"], resources: ["{resource.plural}"], verbs: ["{verb}"]}}; apply one that '
            f"has it (dynamo manifests kubernetes --only rbac --namespace {namespace} | kubectl apply -f -); "
            f"the server says: {said}"
        )
    if status == 404 and details.get("kind") == "namespaces":
        return ConfigError(
            f"the cluster at {where} has no namespace {namespace!r} (POD_NAMESPACE): create it, or name "
            "another"
        )
    if status == 404 and answer.get("kind") == "Status" and resource is RECORDS and not details.get("name"):
        return ConfigError(
            f"the cluster at {where} has no CustomResourceDefinition {CRD}: apply it ({APPLY_CRD})"
        )
    if status in (413, 422) or (status == 500 and any(sign in said for sign in TOO_LARGE)):
        return ConfigError(f"the API server at {where} refuses our record: {said}")
    if status in (409, 410) or (status == 404 and details):
        return RefusedError(f"{where}: {said}", status)
    if status == 429:
        return BusyError(
            f"the API server at {where} is busy: {said}",
            rest_s(retry_after, details.get("retryAfterSeconds")),
        )
    if status >= 500:
        return UnavailableError(f"the API server at {where} fails: {said}")
    return ConfigError(f"what answers at {where} refuses to {verb} {resource.plural}: {said}")


def pause_s(error: DynamoError, delay_s: float) -> float:
    """How long to wait after it: ``delay_s``, or longer where the server asks for that."""
    return max(delay_s, error.retry_after_s) if isinstance(error, BusyError) else delay_s


def rest_s(*said: Any) -> float:
    """How long a busy server asks to be left alone, within reason; the first of these that is a number."""
    for text in said:
        try:
            seconds = float(text)
        except (TypeError, ValueError):
            continue
        if not math.isnan(seconds):
            return min(max(seconds, 0.0), LONGEST_REST_S)
    return 1.0


def unreachable(error: Exception, where: str) -> DynamoError:
    """What aiohttp or the system say of the way there; a certificate does not get better by waiting."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
        return ConfigError(
            f"the certificate of the Kubernetes API server at {where} is refused: {reason}; check the "
            "certificate-authority that goes with it"
        )
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return UnavailableError(
            f"no Kubernetes API server at {where}: what answers there fails at TLS: {error.os_error}"
        )
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    number = getattr(cause, "errno", None) or 0
    if number in errno.errorcode:  # asyncio's own words for it are longer
        reason = os.strerror(number)
    else:
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return UnavailableError(f"no Kubernetes API server at {where}: {reason}")
