"""Names of objects, the ids that follow from them, and who of a pod takes which."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.adapters.discovery.kubernetes.configuration import Pod
from dynamo.adapters.discovery.kubernetes.naming import Seats, instance_id_of, object_name, siphash13
from dynamo.core.model import MAX_INSTANCE_ID


def a_pod(container: str | None = None, uid: str = "uid-of-unit-tests") -> Pod:
    return Pod(name="worker-0", uid=uid, container=container)


@pytest.mark.parametrize(
    "name, instance_id",
    [("worker-0", 0x43710F49C0CFF), ("vllm-decode-7d9f8b6c5-x2x4z", 0xBD0A43560327D)],
)
def test_ids_are_those_of_dynamo(name: str, instance_id: int) -> None:
    """What a worker of ai-dynamo-runtime 1.6.1 registered as in a pod of that name."""
    assert instance_id_of(name) == instance_id


@given(st.text())
def test_an_id_is_one(name: str) -> None:
    assert 1 <= instance_id_of(name) <= MAX_INSTANCE_ID


def test_the_hash_takes_any_length() -> None:
    assert len({siphash13(b"a" * length) for length in range(64)}) == 64


def test_names_are_valid_and_tell_workers_apart() -> None:
    names = [object_name(pod, index) for pod in (a_pod(), a_pod("main")) for index in range(3)]
    assert names == [
        "worker-0",
        "worker-0-1",
        "worker-0-2",
        "worker-0-main",
        "worker-0-main-1",
        "worker-0-main-2",
    ]
    assert all(re.fullmatch("[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in names)


def test_each_client_gets_the_next_free_seat_until_it_is_left() -> None:
    one, two = Seats(a_pod()), Seats(a_pod())
    try:
        assert one.take(None) == (0, "worker-0")
        assert two.take(None) == (1, "worker-0-1")
        assert two.take(7) == (7, "worker-0-7")
        assert two.take(7) == (7, "worker-0-7-r1")
        assert two.take(0) == (0, "worker-0-r1")
        one.release()
        assert two.take(None) == (0, "worker-0")
    finally:
        one.release()
        two.release()


def test_another_pod_of_the_name_has_seats_of_its_own() -> None:
    one, other = Seats(a_pod(uid="uid-1")), Seats(a_pod(uid="uid-2"))
    try:
        assert one.take(None) == (0, "worker-0")
        assert other.take(None) == (0, "worker-0")
    finally:
        one.release()
        other.release()
