"""Keys of etcd: what is written can be read, belongs to its scope, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.adapters.discovery.etcd.keys import KeyRange, decode, key_of, parse, range_of
from dynamo.core.codec import encode_instance
from dynamo.core.errors import BadPayloadError
from dynamo.core.model import MAX_INSTANCE_ID, EndpointId, Scope
from dynamo.testing.discovery import an_instance

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,5}", fullmatch=True)
ENDPOINTS = st.builds(EndpointId, namespace=NAMES, component=NAMES, name=NAMES)
IDS = st.integers(1, MAX_INSTANCE_ID)


def holds(within: KeyRange, key: bytes) -> bool:
    return within.key <= key < within.end


@given(ENDPOINTS, IDS)
def test_a_key_is_read_as_it_was_written(endpoint_id: EndpointId, instance_id: int) -> None:
    key = key_of(endpoint_id, instance_id)
    assert parse(key) == (endpoint_id, instance_id)
    assert key.decode().endswith(f"-{instance_id:x}")


@given(ENDPOINTS, IDS, ENDPOINTS)
def test_a_scope_has_every_key_that_it_covers(
    endpoint_id: EndpointId, instance_id: int, other: EndpointId
) -> None:
    key = key_of(endpoint_id, instance_id)
    for scope in (
        Scope(),
        Scope(namespace=endpoint_id.namespace),
        Scope(namespace=endpoint_id.namespace, component=endpoint_id.component),
        Scope.of(endpoint_id),
        Scope(component=endpoint_id.component),
        Scope(namespace=endpoint_id.namespace, name=endpoint_id.name),
    ):
        assert holds(range_of(scope), key)
    if not other.namespace.startswith(endpoint_id.namespace):
        assert not holds(range_of(Scope(namespace=endpoint_id.namespace)), key_of(other, instance_id))
    assert holds(range_of(Scope.of(endpoint_id)), key_of(other, instance_id)) == (
        f"{other.name}-".startswith(f"{endpoint_id.name}-")
        and (other.namespace, other.component) == (endpoint_id.namespace, endpoint_id.component)
    )


@pytest.mark.parametrize(
    "key",
    [
        *("/services/", "/services/a/b", "/services/a/b/c", "/services/a/b/c-", "/services/a/b/c-xyz"),
        *("/services/a/b/-1", "/services/a.b/c/d-1", "/services/a/b/c/d-1", "/service/a/b/c-1", "a/b/c-1"),
        *("/services/a/b/c-1\n", "/services/a/b/c-123456789abcdef", "/services/-a/b/c-1"),
    ],
)
def test_what_is_nobodys_key(key: str) -> None:
    assert parse(key.encode()) is None
    assert parse(key.encode() + b"\xff") is None


def test_a_record_must_be_that_of_its_key() -> None:
    one = an_instance(1)
    key = key_of(one.endpoint_id, 1)
    assert decode(key, encode_instance(one)) == one
    for wrong in (encode_instance(an_instance(2)), b"", b"{}", b"\xff"):
        with pytest.raises(BadPayloadError):
            decode(key, wrong)
