"""What the API server says, in our words: the class says what to do next, the message how."""

from __future__ import annotations

import re
import ssl
from typing import Any

import pytest

from dynamo.adapters.discovery.kubernetes.errors import (
    RECORDS,
    SLICES,
    BusyError,
    RefusedError,
    Resource,
    translated,
    unreachable,
)
from dynamo.core.errors import AuthError, ConfigError, DynamoError, UnavailableError

WHERE = "https://10.96.0.1:443 (KUBECONFIG)"


def told(status: int, answer: dict[str, Any], resource: Resource = RECORDS, **given: Any) -> DynamoError:
    return translated(status, answer, where=WHERE, verb="patch", resource=resource, namespace="prod", **given)


def test_a_missing_rule_is_printed_as_one_writes_it() -> None:
    error = told(403, {"message": "forbidden: User cannot patch"})
    assert isinstance(error, AuthError)
    rule = '{apiGroups: ["nvidia.com"], resources: ["dynamoworkermetadatas"], verbs: ["patch"]}'
    for part in (rule, "'prod'", WHERE, "kubectl apply", "User cannot patch"):
        assert part in str(error)
    slices = told(403, {}, SLICES)
    assert '{apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["patch"]}' in str(slices)


@pytest.mark.parametrize(
    "said, expected",
    [
        (
            "unable to create new content in namespace prod because it is being terminated",
            "namespace 'prod' .* is being deleted",
        ),
        ("exceeded quota: q, requested: x=1, used: x=5, limited: x=5", "refuses our record: .* quota: q"),
    ],
    ids=["namespace", "quota"],
)
def test_what_is_forbidden_to_everybody_is_no_missing_rule(said: str, expected: str) -> None:
    message = f'{RECORDS.plural}.nvidia.com "worker-0" is forbidden: {said}'
    error = told(403, {"message": message, "reason": "Forbidden", "details": {"name": "worker-0"}})
    assert isinstance(error, ConfigError)
    assert re.search(expected, str(error))
    assert "Role" not in str(error)


def test_a_missing_definition_is_told_from_a_missing_object_and_a_missing_namespace() -> None:
    missing = told(404, {"kind": "Status", "message": "the server could not find the requested resource"})
    assert isinstance(missing, ConfigError)
    assert "no CustomResourceDefinition dynamoworkermetadatas.nvidia.com" in str(missing)
    gone = told(404, {"details": {"name": "worker-0", "kind": "dynamoworkermetadatas"}})
    assert isinstance(gone, RefusedError)
    assert gone.status == 404
    nowhere = told(404, {"details": {"name": "prod", "kind": "namespaces"}})
    assert isinstance(nowhere, ConfigError)
    assert "no namespace 'prod' (POD_NAMESPACE)" in str(nowhere)
    elsewhere = told(404, {"message": "404 page not found"})
    assert isinstance(elsewhere, ConfigError)
    assert "refuses to patch dynamoworkermetadatas: 404 page not found" in str(elsewhere)


@pytest.mark.parametrize(
    "status, kind",
    [
        (401, AuthError),
        (409, RefusedError),
        (410, RefusedError),
        (413, ConfigError),
        (422, ConfigError),
        (429, BusyError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
def test_the_class_says_what_to_do_next(status: int, kind: type[DynamoError]) -> None:
    error = told(status, {"message": "so it is"})
    assert type(error) is kind
    assert "so it is" in str(error)
    assert WHERE in str(error)


def test_too_large_a_record_does_not_get_smaller_by_waiting() -> None:
    assert isinstance(told(500, {"message": "etcdserver: request is too large"}), ConfigError)
    assert isinstance(
        told(500, {"message": "rpc error: trying to send message larger than max"}), ConfigError
    )


@pytest.mark.parametrize(
    "header, details, seconds",
    [
        ("3", {}, 3.0),
        (None, {"retryAfterSeconds": 2}, 2.0),
        ("3", {"retryAfterSeconds": 2}, 3.0),
        (None, {}, 1.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", {"retryAfterSeconds": 2}, 2.0),
        ("86400", {}, 60.0),
        ("-1", {}, 0.0),
    ],
)
def test_a_busy_server_says_for_how_long(header: str | None, details: dict[str, Any], seconds: float) -> None:
    error = told(429, {"details": details}, retry_after=header)
    assert isinstance(error, BusyError)
    assert error.retry_after_s == seconds


def test_an_answer_without_a_status_is_quoted() -> None:
    assert "HTTP 502" in str(told(502, {}))


def test_what_the_system_says_of_the_way_there_is_an_outage() -> None:
    error = unreachable(ConnectionRefusedError(111, "Connection refused"), WHERE)
    assert isinstance(error, UnavailableError)
    assert str(error) == f"no Kubernetes API server at {WHERE}: Connection refused"
    assert isinstance(unreachable(ssl.SSLError(1, "wrong version number"), WHERE), UnavailableError)
