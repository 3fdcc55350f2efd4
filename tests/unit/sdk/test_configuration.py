"""Configuration: where values come from, what is refused, and what a service gets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import attrs
import pytest
from pydantic import BaseModel

from dynamo.core.errors import ConfigError
from dynamo.runtime import ServiceGraph, configured, depends, read_config, service


@attrs.frozen
class Options:
    depth: int = 3
    ratio: float = 0.5
    labels: dict[str, str] = attrs.field(factory=dict)


class Limits(BaseModel):
    tokens: int = 8


@service(workers=2, resources={"gpu": 1})
class Backend:
    options = configured(Options)
    limits = configured(Limits)

    def __init__(self, model: str, block_size: int = 16) -> None:
        self.model, self.block_size = model, block_size


@service
class Middle:
    backend = depends(Backend)

    def __init__(self, model: str = "small", debug: bool = False, **others: Any) -> None:
        self.model, self.debug, self.others = model, debug, others


@service
@attrs.define
class Fields:
    size: int
    tags: list[str] = attrs.field(factory=list)


@service
@dataclasses.dataclass
class Data:
    size: int


@service
class Plain:
    fields = depends(Fields)
    data = depends(Data)


CONFIG = """
Common:
  model: llama
  block-size: 64
Backend:
  block-size: 32
  depth: 5
  workers: 4
Middle:
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_the_own_section_wins_over_common_and_the_command_line_over_both(tmp_path: Path) -> None:
    raw = read_config(
        written(tmp_path, CONFIG),
        ["--Backend.ratio=0.25", "--Backend.labels.zone=eu", "--Backend.labels.rack=7", "--Common.model=big",
         "Backend.resources={gpu: 2}", "--Backend.tokens=9"],
    )  # fmt: skip
    planned = ServiceGraph.of(Middle, config=raw)["Backend"]
    assert (planned.workers, planned.resources) == (4, {"gpu": 2})
    backend = planned.make()
    assert (backend.model, backend.block_size) == ("big", 32)
    assert backend.options == Options(depth=5, ratio=0.25, labels={"zone": "eu", "rack": "7"})
    assert backend.limits == Limits(tokens=9)


def test_common_reaches_each_service_that_knows_the_key() -> None:
    graph = ServiceGraph.of(Plain, config={"Common": {"size": 3}, "Fields": {"tags": ["a"]}})
    assert graph["Fields"].make() == Fields(3, ["a"])
    assert graph["Data"].make() == Data(3)
    graph.check()


def test_a_class_that_takes_any_key_gets_all(tmp_path: Path) -> None:
    graph = ServiceGraph.of(Middle, config=read_config(written(tmp_path, CONFIG), ["--Middle.debug=true"]))
    middle = graph["Middle"].make()
    assert (middle.model, middle.debug, middle.others) == ("llama", True, {"block_size": 64})


def test_without_configuration_the_decorator_and_defaults_hold() -> None:
    graph = ServiceGraph.of(Middle)
    assert [(one.name, one.workers, one.namespace) for one in graph] == [
        ("Backend", 2, None),
        ("Middle", 1, None),
    ]
    graph = ServiceGraph.of(Middle, config={"Common": {"namespace": "other", "workers": 3}})
    assert [(one.workers, one.namespace) for one in graph] == [(3, "other"), (3, "other")]


@pytest.mark.parametrize(
    "override, says",
    [
        ("--Backend.model", "expected --Service.key=value"),
        ("--Backend=5", "expected --Service.key=value"),
        ("--Backend..x=5", "expected --Service.key=value"),
        ("--Backend.model=[1", "--Backend.model=.*"),
        ("--Bakend.model=x", "unknown service 'Bakend' in the configuration; did you mean 'Backend'"),
        ("--Backend.modle=x", "unknown key 'modle' in Backend; did you mean 'model'"),
        ("--Common.colour=x", "unknown key 'colour' in Common; known: model"),
        ("--Backend.block_size=big", "configuration of Backend.block_size: expected int, got str 'big'"),
        ("--Backend.workers=many", "configuration of Backend.workers: expected int, got str 'many'"),
        ("--Backend.workers=-1", "configuration of Backend.workers: expected 0 or more, got -1"),
        ("--Backend.namespace=a.b", "bad namespace name 'a.b'"),
        ("--Backend.depth=x", "configuration of Backend: depth: expected int, got str"),
        ("--Backend.tokens=x", "configuration of Backend: tokens: Input should be a valid integer"),
    ],
)
def test_a_mistake_is_one_line(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        ServiceGraph.of(Backend, config=read_config(None, ["--Backend.model=m", override])).check()
    assert "\n" not in str(raised.value)


def test_a_key_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="'model' is 'm', which has no keys"):
        read_config(None, ["--Backend.model=m", "--Backend.model.size=3"])


def test_a_missing_value_names_the_ways_to_give_it() -> None:
    graph = ServiceGraph.of(Backend)
    with pytest.raises(
        ConfigError, match=r"Backend: its constructor needs 'model': .* or by --Backend.model=\.\.\."
    ):
        graph.check()


@pytest.mark.parametrize(
    "text, says",
    [
        ("Backend: 5", "config.yaml: Backend: expected 'key: value' lines below it, got 5"),
        ("- Backend", "config.yaml: expected sections"),
        ("Backend:\n  a: [1\n", "config.yaml, line 3: "),
        ("a: 1\n b: 2", "config.yaml, line 2: not YAML: mapping values are not allowed here"),
    ],
)
def test_a_broken_file_is_told_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        read_config(written(tmp_path, text))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*nowhere.yaml: .*No such file"):
        read_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"cannot read the configuration a\0b: embedded null byte"):
        read_config("a\0b")


def test_an_empty_file_is_no_configuration(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, "")) == {}
