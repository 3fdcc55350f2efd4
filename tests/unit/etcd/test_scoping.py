"""What a watch makes of keys and values."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from etcd3aio._protobuf import kv_pb2

from dynamo.adapters.discovery.etcd.keys import key_of
from dynamo.adapters.discovery.etcd.scoping import Scoped
from dynamo.core.watching import ConflatingWatch
from dynamo.testing.discovery import ENDPOINT, SCOPE


def unreadable(instance_id: int) -> Any:
    return kv_pb2.KeyValue(key=key_of(ENDPOINT, instance_id), value=b"?")


def test_what_cannot_be_read_is_told_once_for_as_long_as_it_lies_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And is forgotten with its key: workers of another version come and go."""

    def told() -> list[str]:
        keys = [record.getMessage().split()[0] for record in caplog.records]
        caplog.clear()
        return keys

    one, two = unreadable(1), unreadable(2)
    scoped = Scoped(SCOPE, ConflatingWatch())
    with caplog.at_level(logging.WARNING):
        scoped.reset({kv.key: kv for kv in (one, two)})
        assert told() == [one.key.decode(), two.key.decode()]
        scoped.changed(one.key, one)
        scoped.reset({kv.key: kv for kv in (one, two)})
        assert told() == []
        scoped.changed(one.key, None)
        scoped.changed(one.key, one)
        assert told() == [one.key.decode()]
        scoped.reset({one.key: one})
        scoped.changed(two.key, two)
        assert told() == [two.key.decode()]
