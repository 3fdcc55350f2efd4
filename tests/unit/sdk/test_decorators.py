"""What the decorators refuse, and that a class stays an ordinary class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest

from dynamo.core.errors import ConfigError
from dynamo.runtime import (
    Context,
    ServiceGraph,
    api,
    configured,
    current_context,
    depends,
    endpoint,
    on_shutdown,
    on_start,
    service,
    using,
)
from dynamo.sdk import ServiceSpec

pytestmark = pytest.mark.anyio


@attrs.define
class Options:
    depth: int = 3


@service(namespace="demo", name="Words")
class Backend:
    """Splits."""

    @endpoint(idempotent=True, max_inflight=4, queue=2)
    async def generate(self, prompt: str, max_tokens: int = 16) -> AsyncIterator[str]:
        for word in prompt.split()[:max_tokens]:
            yield word

    @api(path="/v1/count")
    @endpoint(name="count")
    async def count_words(self, prompt: str) -> int:
        """How many words."""
        return len(prompt.split())


@service
class Middle:
    backend = depends(Backend)
    options = configured(Options)

    @endpoint
    async def generate(self, prompt: str) -> AsyncIterator[str]:
        async for word in using(self.backend, timeout_s=1).generate(prompt, self.options.depth):
            yield word.upper()


async def test_a_method_is_called_directly_without_a_runtime() -> None:
    backend = Backend()
    assert [word async for word in backend.generate("a b c", max_tokens=2)] == ["a", "b"]
    assert await backend.count_words("a b c") == 3
    assert current_context() is None


async def test_a_plain_instance_takes_an_ordinary_object_for_what_it_depends_on() -> None:
    middle = Middle()
    middle.backend = Backend()
    assert [word async for word in middle.generate("a b c d")] == ["A", "B", "C"]
    middle.options = Options(depth=1)
    assert [word async for word in middle.generate("a b c d")] == ["A"]


def test_a_dependency_of_a_plain_instance_says_how_to_get_one() -> None:
    with pytest.raises(
        ConfigError, match=r"Middle.backend calls .* not in __init__.*middle.backend = Backend\(\)"
    ):
        _ = Middle().backend


def test_what_a_class_declares_can_be_read() -> None:
    spec = ServiceSpec.of(Backend)
    assert (spec.name, spec.mark.namespace, spec.mark.workers, spec.dependencies) == ("Words", "demo", 1, ())
    generate, count = spec.methods
    assert (generate.name, generate.streaming, generate.item_type, generate.route) == (
        "generate",
        True,
        str,
        None,
    )
    assert (generate.mark.idempotent, generate.mark.max_inflight, generate.mark.queue) == (True, 4, 2)
    assert {name: (one.type, one.required) for name, one in generate.parameters.items()} == {
        "prompt": (str, True),
        "max_tokens": (int, False),
    }
    assert (count.name, count.attribute, count.streaming, count.item_type) == (
        "count",
        "count_words",
        False,
        int,
    )
    assert count.route is not None
    assert (count.route.path, count.description) == ("/v1/count", "How many words.")
    assert ServiceSpec.of(Middle).dependencies == (Backend,)


def test_slots_of_attrs_make_another_class_which_is_the_service() -> None:
    @attrs.define
    @service
    class Slotted:
        size: int = 1

        @endpoint
        async def ask(self) -> int:
            return self.size

    assert ServiceSpec.of(Slotted).cls is Slotted


def sync_method() -> Any:
    @service
    class Wrong:
        @endpoint
        def generate(self, prompt: str) -> str:
            return prompt


def sync_api() -> Any:
    class Wrong:
        @api
        def generate(self, prompt: str) -> str:
            return prompt


def one_name_twice() -> Any:
    @service
    class Wrong:
        @endpoint
        async def generate(self) -> str:
            return ""

        @endpoint(name="generate")
        async def other(self) -> str:
            return ""


def bad_endpoint_name() -> Any:
    class Wrong:
        @endpoint(name="gen.erate")
        async def generate(self) -> str:
            return ""


def bad_service_name() -> Any:
    @service(name="a/b")
    class Wrong:
        pass


def bad_namespace() -> Any:
    @service(namespace="")
    class Wrong:
        pass


def bad_workers() -> Any:
    @service(workers=-1)
    class Wrong:
        pass


def bad_bound() -> Any:
    class Wrong:
        @endpoint(max_inflight=0)
        async def generate(self) -> str:
            return ""


def queue_without_a_bound() -> Any:
    class Wrong:
        @endpoint(queue=3)
        async def generate(self) -> str:
            return ""


def bad_path() -> Any:
    class Wrong:
        @api(path="generate")
        async def generate(self) -> str:
            return ""


def no_self() -> Any:
    class Wrong:
        @endpoint
        async def generate() -> str:  # type: ignore[misc]
            return ""


def static_method() -> Any:
    @service
    class Wrong:
        @staticmethod
        @endpoint
        async def generate(prompt) -> Any:  # type: ignore[no-untyped-def]
            return prompt


def forgotten_self() -> Any:
    class Wrong:
        @endpoint
        async def generate(prompt: str) -> str:  # type: ignore[misc]
            return prompt


def one_path_twice() -> Any:
    @service
    class Wrong:
        @api
        async def generate(self) -> str:
            return ""

        @api(path="/generate")
        async def other(self) -> str:
            return ""


def static_method_inside() -> Any:
    class Wrong:
        @endpoint
        @staticmethod
        async def generate(prompt: str) -> str:
            return prompt


def sync_hook() -> Any:
    class Wrong:
        @on_start  # type: ignore[type-var]
        def load(self) -> None:
            pass


def hook_with_arguments() -> Any:
    class Wrong:
        @on_shutdown  # type: ignore[type-var]
        async def close(self, timeout_s: float) -> None:
            pass


def undecorated_override() -> Any:
    @service
    class Wrong(Backend):
        async def count_words(self, prompt: str) -> int:
            return 0


def service_of_a_function() -> Any:
    service(sync_method)  # type: ignore[call-overload]


def depends_on_an_instance() -> Any:
    depends(Backend())  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "declare, says",
    [
        (sync_method, r"Wrong.generate: @endpoint takes an async method: write 'async def generate'"),
        (sync_api, r"Wrong.generate: @api takes an async method"),
        (one_name_twice, r"Wrong: generate and other are both endpoint 'generate'"),
        (bad_endpoint_name, r"Wrong.generate: bad endpoint name 'gen.erate'"),
        (bad_service_name, r"Wrong: bad service name 'a/b'"),
        (bad_namespace, r"Wrong: bad namespace name ''"),
        (bad_workers, r"Wrong: workers=-1: expected"),
        (bad_bound, r"Wrong.generate: max_inflight=0: expected"),
        (queue_without_a_bound, r"Wrong.generate: queue=3: expected 0 or more, beside max_inflight"),
        (bad_path, r"Wrong.generate: path='generate': expected a path such as"),
        (no_self, r"Wrong.generate: a method takes self first"),
        (forgotten_self, r"Wrong.generate: a method takes self first, before 'prompt'"),
        (one_path_twice, r"Wrong.other: /generate is the path of generate already"),
        (static_method, r"Wrong.generate: a staticmethod can't be"),
        (static_method_inside, r"Wrong.generate: a staticmethod can't be"),
        (sync_hook, r"Wrong.load: @on_start takes a method that is 'async def'"),
        (hook_with_arguments, r"Wrong.close: a method with @on_shutdown takes nothing but self"),
        (undecorated_override, r"Wrong.count_words overrides a decorated method"),
        (service_of_a_function, r"@service takes a class"),
        (depends_on_an_instance, r"depends takes a class"),
    ],
)
def test_a_mistake_is_one_line_where_it_is_made(declare: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        declare()
    assert "\n" not in str(raised.value)


@service
class Unresolved:
    @endpoint
    async def generate(self, prompt: Nowhere) -> str:  # type: ignore[name-defined] # noqa: F821
        return ""


@service
class Unbuildable:
    @endpoint
    async def generate(self, prompt: Callable[[], int]) -> str:
        return ""


@service
class NotAStream:
    @endpoint
    async def generate(self, prompt: str) -> str:  # type: ignore[misc]
        yield prompt


@service
class ReturnsAStream:
    @endpoint
    async def generate(self, prompt: str) -> AsyncIterator[str]:
        return Backend().generate(prompt)


@service
class Variadic:
    @endpoint
    async def generate(self, *prompts: str) -> int:
        return len(prompts)


@service
class NeedsAPlainClass:
    options = depends(Options)


@service
class NeedsNobody:
    other = depends("dynamo.runtime:Nobody")


@service
class First:
    second = depends("Second")


@service
class Second:
    first = depends(First)


@service(name="Words")
class Namesake:
    backend = depends(Backend)


@pytest.mark.parametrize(
    "declared, says",
    [
        (Options, r"Options is not a service: put @service on a class"),
        (Unresolved, r"Unresolved.generate: the annotation 'Nowhere' cannot be resolved"),
        (Unbuildable, r"Unbuildable.generate: parameter prompt: nothing is known that makes a "),
        (NotAStream, r"NotAStream.generate yields items: annotate it '-> AsyncIterator\[str\]'"),
        (ReturnsAStream, r"ReturnsAStream.generate is to stream: let it 'yield' its items"),
        (Variadic, r"Variadic.generate: parameter \*prompts: arguments come by name"),
        (NeedsAPlainClass, r"NeedsAPlainClass.options depends on Options, which is not a service"),
        (NeedsNobody, r"NeedsNobody.other: depends\('dynamo.runtime:Nobody'\): .*has no attribute"),
        (First, r"in a circle: First -> Second -> First"),
        (Namesake, r"two services are named 'Words': .*Backend and .*Namesake"),
    ],
)
def test_a_mistake_that_shows_later_is_one_line_too(declared: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        ServiceGraph.of(declared)
    assert "\n" not in str(raised.value)


def test_a_graph_lists_dependencies_first_and_each_once() -> None:
    @service
    class Front:
        middle = depends(Middle)
        backend = depends(Backend)

    graph = ServiceGraph.of(Front)
    assert [planned.name for planned in graph] == ["Words", "Middle", "Front"]
    with pytest.raises(ConfigError, match="unknown service 'Midle'; did you mean 'Middle'"):
        _ = graph["Midle"]


def test_a_context_is_no_part_of_the_payload() -> None:
    @service
    class Watched:
        @endpoint
        async def by_name(self, context: Any) -> str:
            return ""

        @endpoint
        async def by_type(self, text: str, request: Context | None = None) -> str:
            return ""

        @endpoint
        async def a_text_of_that_name(self, context: str) -> str:
            return context

    by_name, by_type, text = ServiceSpec.of(Watched).methods
    assert (by_type.signature.context_name, list(by_type.parameters)) == ("request", ["text"])
    assert (by_name.signature.context_name, list(by_name.parameters)) == ("context", [])
    assert (text.signature.context_name, list(text.parameters)) == (None, ["context"])
