"""What ``dynamo ls`` makes of discovery's words, without a process."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

from rich.console import Console

from dynamo.cli.listing import Table, counted, described, line, picture, scope_of, tree
from dynamo.core.errors import ConfigError
from dynamo.core.model import EndpointId, Instance, Phase, Scope
from dynamo.core.ports.discovery import Put, Removed, Snapshot, Stale


def an_instance(
    number: int = 1, *, path: str = "demo.backend.generate", name: str | None = None, **fields: object
) -> Instance:
    addresses = ("unix://boot/tmp/a.sock", "tcp://127.0.0.1:4000")
    return Instance(
        endpoint_id=EndpointId.parse(path),
        instance_id=number,
        incarnation=2**64 - 1,
        name=name,
        **{"addresses": addresses, **fields},  # type: ignore[arg-type]
    )


def drawn(what: object, width: int = 80) -> str:
    out = Console(width=width, force_terminal=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    out.print(what)
    text = out.export_text()
    out.file.close()
    return text


@pytest.mark.parametrize(
    "path,scope",
    [
        (None, Scope()),
        ("demo", Scope(namespace="demo")),
        ("demo.backend", Scope(namespace="demo", component="backend")),
        ("demo.*.generate", Scope(namespace="demo", name="generate")),
        ("dyn://a.b.c", Scope(namespace="a", component="b", name="c")),
    ],
)
def test_a_path_narrows_from_the_left_and_stars_match_any(path: str | None, scope: Scope) -> None:
    assert scope_of(path) == scope


@pytest.mark.parametrize("path", ["a.b.c.d", "a..c", "a b", "-a"])
def test_a_path_that_names_nothing_is_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        scope_of(path)


def test_a_table_tells_what_came_changed_and_went() -> None:
    table, one, two = Table(), an_instance(1), an_instance(2)
    assert table.apply(Stale(reason="away")) == []
    assert not table.synced
    assert table.apply(Snapshot(instances=(one, two))) == [("+", one), ("+", two)]
    draining = an_instance(1, phase=Phase.DRAINING)
    assert table.apply(Put(instance=draining)) == [("~", draining)]
    assert table.apply(Put(instance=draining)) == []
    assert table.apply(Removed(endpoint_id=two.endpoint_id, instance_id=2)) == [("-", two)]
    assert table.apply(Snapshot(instances=(two,))) == [("-", draining), ("+", two)]
    assert table.instances() == [two]


def test_an_outage_keeps_the_table_and_its_end_clears_the_reason() -> None:
    table, one = Table(), an_instance()
    table.apply(Snapshot(instances=(one,)))
    table.apply(Stale(reason="no answer"))
    assert (table.stale, table.instances()) == ("no answer", [one])
    assert "this is what was last seen: no answer" in drawn(picture(table, "x"))
    table.apply(Snapshot(instances=(one,)))
    assert table.stale is None


def test_a_line_has_five_fields_for_a_program() -> None:
    fields = line(an_instance(7, name="worker-1")).split("\t")
    addresses = "unix://boot/tmp/a.sock,tcp://127.0.0.1:4000"
    assert fields == ["demo.backend.generate", "7", "ready", "worker-1", addresses]
    assert line(an_instance(7, addresses=())).split("\t")[3:] == ["-", "-"]


def test_what_others_registered_moves_no_cursor() -> None:
    nasty = an_instance(name="\x1b[2Jgone\r\n", addresses=("tcp://\x1b]0;title\x07:1",))
    for text in (line(nasty), drawn(tree([nasty]))):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\r" not in text


def test_json_keeps_every_field_and_an_incarnation_past_2_to_53() -> None:
    shown = json.loads(json.dumps(described(an_instance(3, metadata={"device_type": "gpu"}))))
    assert shown["incarnation"] == "f" * 16
    assert shown["metadata"] == {"device_type": "gpu"}
    assert shown["addresses"] == ["unix://boot/tmp/a.sock", "tcp://127.0.0.1:4000"]


def test_the_tree_groups_by_name_and_says_unix_in_a_word() -> None:
    table = Table()
    mine = [an_instance(1, name="w1"), an_instance(22, path="demo.other.run"), an_instance(3, path="b.c.d")]
    table.apply(Snapshot(instances=tuple(mine)))
    assert drawn(tree(table.instances())).splitlines() == [
        "b",
        "└── c",
        "    └── d",
        "        └── ready         3   tcp://127.0.0.1:4000 (unix)",
        "demo",
        "├── backend",
        "│   └── generate",
        "│       └── ready     w1  1   tcp://127.0.0.1:4000 (unix)",
        "└── other",
        "    └── run",
        "        └── ready         22  tcp://127.0.0.1:4000 (unix)",
    ]


def test_counts_are_in_words() -> None:
    assert counted([an_instance()]) == "1 endpoint, 1 instance"
    two = [an_instance(1), an_instance(2, phase=Phase.DRAINING)]
    assert counted(two) == "1 endpoint, 2 instances, 1 draining"
