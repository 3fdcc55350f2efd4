"""Every block of code of the README and of the documentation is run, or says why not and is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from docs.pages import Block, Page, check, commands, pages, read
from docs.running import Reader, expect

PAGES = pages()


def blocks(*, alone: bool) -> list[object]:
    return [
        pytest.param(block, id=block.place)
        for page in PAGES
        for block in page.blocks
        if not alone or (block.runs and not page.is_story)
    ]


@pytest.mark.parametrize("block", blocks(alone=False))
def test_it_is_valid(block: Block) -> None:
    check(block)


@pytest.mark.parametrize("block", blocks(alone=True))
def test_it_runs(block: Block, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        reader.take(block)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if page.is_story])
def test_the_page_runs_from_top_to_bottom(page: Page, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        for block in page.blocks:
            reader.take(block)


STORY = """
<!-- file: hello.py -->
```python
print("hello from port 8000")
```

```sh
python hello.py | tr a-z A-Z
```

<!-- prints -->
```text
HELLO FROM PORT ...
```

```console
$ echo one \\
    two
one two
$ ls
hello.py
```

<!-- background -->
```sh
sleep 60
```

<!-- not run: it needs a cluster -->
```sh
kubectl get pods
```
"""


def test_a_story_shares_a_folder_and_shows_what_is_printed(tmp_path: Path) -> None:
    page = read("page", STORY)
    assert page.is_story
    with Reader(tmp_path) as reader:
        for block in page.blocks:
            check(block)
            reader.take(block)
    assert "8000" not in (tmp_path / "hello.py").read_text(), "two runs at a time would share the port"


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("```sh\nexit 3\n```", "page:1 ended with 3"),
        ("```python\nimport warnings; warnings.warn('old')\n```", "old"),
        ("```console\n$ echo one\ntwo\n```", "shows\ntwo"),
        ("<!-- background -->\n```sh\nfalse\n```\n```sh\nsleep 0.2\n```", "ended with 1"),
        ("```sh\necho one\n```\n<!-- prints -->\n```text\ntwo\n```", "shows\ntwo"),
    ],
)
def test_a_page_that_is_wrong_fails(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failure, Reader(tmp_path) as reader:
        for block in read("page", text).blocks:
            reader.take(block)
    assert complaint in str(failure.value)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- not run -->\n```sh\nls\n```",
        "<!-- not run because -->\n```sh\nls\n```",
        "<!-- file -->\n```sh\nls\n```",
        "```fortran\nstop\n```",
        "```sh\npip install something\n```",
    ],
)
def test_a_mark_that_says_too_little_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^page:"):
        read("page", text)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- not run: needs a GPU -->\n```python\nasync with runtime\n```",
        "<!-- not run: needs a GPU -->\n```sh\nif true\n```",
        "```console\nls\n```",
        "```json\n{one: 1}\n```",
        "```yaml\n{one: [}\n```",
        "```toml\none\n```",
    ],
)
def test_what_is_not_run_must_be_valid_too(text: str) -> None:
    (block,) = read("page", text).blocks
    with pytest.raises((SyntaxError, ValueError, yaml.YAMLError)):
        check(block)


def test_directives_are_no_blocks_and_fragments_may_await() -> None:
    assert read("page", "```{toctree}\nindex\n```").blocks == ()
    (block,) = read("page", "<!-- not run: a fragment -->\n```python\nawait client.call(1)\n```").blocks
    check(block)
    assert not block.runs


def test_a_console_block_has_commands_and_their_output() -> None:
    assert commands("$ a\nx\ny\n$ b \\\n c\n$ d") == [("a", "x\ny\n"), ("b \\\n c", ""), ("d", "")]
    expect("page", "a ... c", "a 1\n2 c\n")
