"""Names, endpoints, instances, scopes: what is let in, and how it is shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.core.errors import ConfigError
from dynamo.core.model import (
    MAX_INSTANCE_ID,
    EndpointId,
    Instance,
    Scope,
    Transport,
    check_name,
    random_incarnation,
    random_instance_id,
    shown,
)

ENDPOINT = EndpointId(namespace="n", component="c", name="e")


def an_instance(**changes: Any) -> Instance:
    given: dict[str, Any] = {"endpoint_id": ENDPOINT, "instance_id": 7, "incarnation": 1}
    return Instance(**(given | {"addresses": ("tcp://h:1",)} | changes))


# Names


@pytest.mark.parametrize("name", ["a", "A", "0", "_", "__init__", "a-b", "a_b", "9-", "x" * 128])
def test_a_name_is_let_in(name: str) -> None:
    assert check_name("component", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        ".",
        "..",
        "a.b",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "\na",
        "a\0",
        "ä",
        "\u0660",
        "\uff41",
        "a:b",
        "a*",
    ]
    + ["x" * 129, None, 1, b"a", ["a"]],
)
def test_anything_else_is_refused_and_shown(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"^bad component name .*1 to 128 of A-Z a-z 0-9 _ -") as caught:
        check_name("component", name)
    assert repr(name)[:30] in str(caught.value)


def test_a_huge_name_is_shown_in_a_line() -> None:
    for give in (lambda: check_name("namespace", "x" * 10**6), lambda: EndpointId.parse("x" * 10**6)):
        with pytest.raises(ConfigError) as caught:
            give()
        assert len(str(caught.value)) < 250


@given(st.text())
def test_no_name_can_leave_its_place_in_a_key_a_path_or_a_subject(name: str) -> None:
    try:
        check_name("endpoint", name)
    except ConfigError:
        return
    assert not set(name) & set("./\\*> \0\n\r\t:$")
    assert name.isascii()


def test_shown_is_one_short_line_whatever_it_is_given() -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in (Hostile(), "x" * 10**6, list(range(10**5)), {"a": {"b": "c" * 10**5}}):
        assert len(shown(value)) < 500


# Endpoints


@pytest.mark.parametrize("path", ["n.c.e", "dyn://n.c.e"])
def test_an_endpoint_is_read_from_its_path(path: str) -> None:
    assert EndpointId.parse(path) == ENDPOINT
    assert str(EndpointId.parse(path)) == "n.c.e"


@pytest.mark.parametrize(
    "path", ["", "n", "n.c", "n.c.e.x", "dyn://", "dyn://n.c", "n/c/e", None, 1, b"n.c.e", ["n", "c", "e"]]
)
def test_a_path_of_another_shape_is_told_what_is_expected(path: Any) -> None:
    with pytest.raises(ConfigError, match=r"bad endpoint path .*'namespace\.component\.endpoint'"):
        EndpointId.parse(path)


@pytest.mark.parametrize(
    "path,kind",
    [
        (".c.e", "namespace"),
        ("n..e", "component"),
        ("n.c.", "endpoint"),
        ("n.c.e ", "endpoint"),
        ("dyn:/n.c.e", "namespace"),
        ("DYN://n.c.e", "namespace"),
        ("dyn://dyn://n.c.e", "namespace"),
    ],
)
def test_a_path_with_a_bad_part_is_told_which(path: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"^bad {kind} name"):
        EndpointId.parse(path)


def test_parts_are_checked_however_they_come() -> None:
    with pytest.raises(ConfigError, match="bad namespace name 'a/b'"):
        EndpointId(namespace="a/b", component="c", name="e")


# Instances


def test_an_instance_shows_itself_as_users_of_the_field_know_it() -> None:
    instance = an_instance(metadata={"device_type": "cuda"})
    assert str(instance) == "n/c/e/7"
    assert (instance.namespace, instance.component, instance.endpoint) == ("n", "c", "e")
    assert instance.device_type == "cuda"
    assert instance.key == (ENDPOINT, 7)
    assert an_instance().device_type is None


@pytest.mark.parametrize(
    "addresses,kind,address",
    [
        (("tcp://h:1", "unix://b/p"), "tcp", "tcp://h:1"),
        (("tcps://[::1]:1",), "tcps", "tcps://[::1]:1"),
        (("http2://h:1",), "http2", "http2://h:1"),
        (("tcp://[::1",), "tcp", "tcp://[::1"),  # somebody else's mistake must not break who lists instances
        (("nonsense",), "", "nonsense"),
        ((), "", ""),
    ],
)
def test_the_transport_is_the_preferred_address(addresses: tuple[str, ...], kind: str, address: str) -> None:
    assert an_instance(addresses=addresses).transport == Transport(kind=kind, address=address)


def test_random_identities_are_never_the_any_of_the_wire() -> None:
    for _ in range(1000):
        assert 0 < random_instance_id() <= MAX_INSTANCE_ID
        assert 0 < random_incarnation() < 2**64


# Scopes


def test_a_scope_matches_whole_names() -> None:
    gen = EndpointId(namespace="n", component="c", name="gen")
    gen_2 = EndpointId(namespace="n", component="c", name="gen-2")
    assert Scope.of(gen).covers(gen)
    assert not Scope.of(gen).covers(gen_2)
    assert not Scope.of(gen_2).covers(gen)
    assert not Scope(namespace="N").covers(gen)


@pytest.mark.parametrize(
    "scope,text",
    [
        (Scope(), "*.*.*"),
        (Scope(namespace="n"), "n.*.*"),
        (Scope(component="c"), "*.c.*"),
        (Scope(name="e"), "*.*.e"),
    ],
)
def test_what_a_scope_leaves_open_matches_any(scope: Scope, text: str) -> None:
    assert scope.covers(ENDPOINT)
    assert str(scope) == text
    assert not scope.covers(EndpointId(namespace="x", component="x", name="x")) or scope == Scope()
