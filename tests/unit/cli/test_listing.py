"""What ``dynamo ls`` makes of discovery's words, without a process."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

pytest.importorskip("click", reason="the extra cli is not installed")
pytest.importorskip("rich", reason="the extra cli is not installed")

from rich.console import Console

from dynamo.cli.counting import Counts, Requests
from dynamo.cli.drawing import brief_age, brief_requests, counted, picture, tree
from dynamo.cli.listing import Table, described, line, scope_of
from dynamo.core.errors import ConfigError
from dynamo.core.model import EndpointId, Instance, Phase, Scope
from dynamo.core.ports.discovery import Put, Removed, Snapshot, Stale


def an_instance(
    number: int = 1, *, path: str = "demo.backend.generate", name: str | None = None, **fields: Any
) -> Instance:
    addresses = ("unix://boot/tmp/a.sock", "tcp://127.0.0.1:4000")
    return Instance(
        endpoint_id=EndpointId.parse(path),
        instance_id=number,
        incarnation=2**64 - 1,
        name=name,
        **{"addresses": addresses, **fields},
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
    assert "this is what was last seen: no answer" in drawn(picture(table, Counts(), "x"))
    table.apply(Snapshot(instances=(one,)))
    assert table.stale is None


def test_a_line_has_seven_fields_for_a_program() -> None:
    now = int(time.time())
    fields = line(an_instance(7, name="worker-1", started=now - 3600), Requests(12, 1)).split("\t")
    addresses = "unix://boot/tmp/a.sock,tcp://127.0.0.1:4000"
    assert fields[:5] == ["demo.backend.generate", "7", "ready", "worker-1", addresses]
    assert (3600 <= int(fields[5]) < 3660, fields[6]) == (True, "12")
    assert line(an_instance(7, addresses=())).split("\t")[3:] == ["-", "-", "-", "-"]
    assert line(an_instance(started=now + 100)).split("\t")[5] == "0"  # its host's clock is ahead of ours


def test_what_others_registered_moves_no_cursor() -> None:
    nasty = an_instance(name="\x1b[2Jgone\r\n", addresses=("tcp://\x1b]0;title\x07:1",))
    for text in (line(nasty), drawn(tree([nasty], Counts()))):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\r" not in text


def test_json_keeps_every_field_and_an_incarnation_past_2_to_53() -> None:
    shown = json.loads(json.dumps(described(an_instance(3, metadata={"device_type": "gpu"}))))
    assert shown["incarnation"] == "f" * 16
    assert shown["metadata"] == {"device_type": "gpu"}
    assert shown["addresses"] == ["unix://boot/tmp/a.sock", "tcp://127.0.0.1:4000"]
    assert list(shown.items())[-3:] == [("started", None), ("requests", None), ("inflight_requests", None)]
    assert list(described(an_instance(started=5), Requests(7, 2)).values())[-3:] == [5, 7, 2]


def test_the_tree_groups_by_name_and_leaves_unix_sockets_out() -> None:
    table = Table()
    mine = [an_instance(1, name="w1"), an_instance(22, path="demo.other.run"), an_instance(3, path="b.c.d")]
    table.apply(Snapshot(instances=tuple(mine)))
    assert drawn(tree(table.instances(), Counts())).splitlines() == [
        "b",
        "└── c",
        "    └── d",
        "        └── ready      3   tcp://127.0.0.1:4000",
        "demo",
        "├── backend",
        "│   └── generate",
        "│       └── ready  w1  1   tcp://127.0.0.1:4000",
        "└── other",
        "    └── run",
        "        └── ready      22  tcp://127.0.0.1:4000",
    ]


def test_counts_are_in_words() -> None:
    assert counted([an_instance()]) == "1 endpoint, 1 instance"
    two = [an_instance(1), an_instance(2, phase=Phase.DRAINING)]
    assert counted(two) == "1 endpoint, 2 instances, 1 draining"


class Told(Counts):
    """What somebody's status server would have told."""

    def of(self, one: Instance) -> Requests | None:
        return {1: Requests(1204, 3), 3: Requests(0, 0)}.get(one.instance_id)


def test_ages_and_requests_are_columns_where_anybody_tells_them() -> None:
    now = int(time.time())
    listed = [an_instance(1, started=now - 7200 - 30), an_instance(22), an_instance(3, started=now + 9)]
    assert [row.strip("│├└─ ") for row in drawn(tree(listed, Told())).splitlines()[3:]] == [
        "ready  1   2h  1,204 req +3  tcp://127.0.0.1:4000",
        "ready  22                    tcp://127.0.0.1:4000",
        "ready  3   0s         0 req  tcp://127.0.0.1:4000",
    ]


@pytest.mark.parametrize(
    "seconds,shown",
    [(None, ""), (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172800, "2d")],
)
def test_an_age_is_short(seconds: int | None, shown: str) -> None:
    assert brief_age(seconds) == shown


def test_requests_are_short_and_say_how_many_run_only_where_some_do() -> None:
    assert brief_requests(None) == ""
    counts = [Requests(5, 0), Requests(5, 1), Requests(9_999), Requests(10_999), Requests(12_345_678)]
    shown = [brief_requests(one) for one in counts]
    assert shown == ["5 req", "5 req +1", "9,999 req", "10k req", "12,345k req"]
