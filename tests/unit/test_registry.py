"""Adapters by URL scheme, ours and third parties', from real distributions; and what can be wrong."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo.core import registry
from dynamo.core.config import Settings
from dynamo.core.errors import ConfigError, MissingExtraError
from dynamo.core.registry import Registry, url_options

Install = Callable[..., None]
SETTINGS = Settings()


@pytest.fixture
def port() -> Registry[Any]:
    return Registry("dynamo.discovery", "DYN_DISCOVERY_BACKEND")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lay a distribution with one entry point where Python looks for them."""

    def lay(distribution: str, scheme: str, target: str, source: str = "") -> None:
        site = tmp_path / distribution
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dynamo.discovery]\n{scheme} = {target}\n")
        module = target.partition(":")[0]
        if source:
            (site / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    return lay


def opened(port: Registry[Any], url: str) -> object:
    """What the factory gave: those of these tests give anything but a context manager."""
    return port.open(url, SETTINGS)


def test_ours_are_known_by_their_entry_points() -> None:
    assert {"mem", "file", "static"} <= set(registry.discovery.schemes())
    assert {"mem", "tcp", "tcps", "unix", "http", "http2", "https"} <= set(registry.request_plane.schemes())


def test_a_third_partys_adapter_is_found_and_opened_with_url_and_settings(
    port: Registry[Any], install: Install
) -> None:
    install("far-away", "far", "far_adapter:open_far", "def open_far(url, settings): return url, settings")
    assert "far" in port.schemes()
    assert opened(port, "far://h:1/x?y=1") == ("far://h:1/x?y=1", SETTINGS)
    assert opened(port, "far") == ("far://", SETTINGS)


def test_nothing_is_imported_before_it_is_used(port: Registry[Any], install: Install) -> None:
    install("loud", "loud", "loud_adapter:open_loud", "raise RuntimeError('imported')")
    assert "loud" in port.schemes()
    assert "loud_adapter" not in sys.modules


@pytest.mark.parametrize("scheme", ["fil", "File", "statik"])
def test_an_unknown_scheme_is_told_with_its_variable_and_the_closest(
    port: Registry[Any], scheme: str
) -> None:
    with pytest.raises(
        ConfigError,
        match=f"^DYN_DISCOVERY_BACKEND: unknown discovery '{scheme}'; did you mean '(file|static)'",
    ):
        port.open(scheme, SETTINGS)


def test_what_chose_a_scheme_is_named_as_its_user_wrote_it(port: Registry[Any]) -> None:
    for settings, name in (
        (Settings.from_env({"DYN_DISCOVERY_BACKEND": "fil"}), "DYN_DISCOVERY_BACKEND"),
        (Settings.from_env({}, discovery_backend="fil"), "discovery_backend"),
        (
            Settings.from_env({}, discovery_backend="fil", option_names={"discovery_backend": "--discovery"}),
            "--discovery",
        ),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: unknown discovery 'fil'"):
            port.open(settings.discovery_backend, settings)


@pytest.mark.parametrize("url", ["consul", "consul://h:1", "", "://h", "/a/path", "zz:/x"])
def test_a_scheme_like_no_other_is_told_with_all_that_are_known(port: Registry[Any], url: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^DYN_DISCOVERY_BACKEND: unknown discovery '.*'; known: .*file.*mem.*static"
    ):
        port.open(url, SETTINGS)


def test_where_nothing_is_installed_it_says_so() -> None:
    with pytest.raises(ConfigError, match="unknown event plane of nobody 'zmq'; known: none"):
        Registry[Any]("dynamo.event_plane_of_nobody", "DYN_EVENT_PLANE").open("zmq", SETTINGS)


def test_two_that_claim_a_scheme_are_both_named(port: Registry[Any], install: Install) -> None:
    install("one", "twice", "one_adapter:open_it", "open_it = None")
    install("two", "twice", "two_adapter:open_it", "open_it = None")
    with pytest.raises(
        ConfigError, match="'twice' is claimed by one_adapter:open_it and two_adapter:open_it; remove one"
    ):
        port.open("twice", SETTINGS)


def test_one_that_is_found_twice_on_the_path_is_one(port: Registry[Any], install: Install) -> None:
    source = "def open_it(url, settings): return 'opened'"
    install("one", "same", "same_adapter:open_it", source)
    install("one_again", "same", "same_adapter:open_it", source)
    assert opened(port, "same") == "opened"


def test_a_package_that_is_not_installed_is_told_with_the_command_that_does(
    port: Registry[Any], install: Install
) -> None:
    install("far-away", "far", "far_adapter:open_far", "import no_such_client.inner")
    with pytest.raises(
        MissingExtraError,
        match=r"^DYN_DISCOVERY_BACKEND: 'far' needs the package 'no_such_client': .* install 'far-away\[far",
    ) as caught:
        port.open("far", SETTINGS)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_another_name_of_an_adapter_is_installed_by_the_extra_of_the_first(
    port: Registry[Any], install: Install, tmp_path: Path
) -> None:
    install("far-away", "far", "far_adapter:open_far", "import no_such_client")
    info = tmp_path / "far-away" / "far-away-1.0.dist-info"
    with (info / "METADATA").open("a") as metadata:
        metadata.write("Provides-Extra: far\n")
    with (info / "entry_points.txt").open("a") as points:
        points.write("distant = far_adapter:open_far\n")
    for scheme in ("far", "distant"):
        with pytest.raises(MissingExtraError, match=rf"{scheme!r} needs .* install 'far-away\[far\]'"):
            port.open(scheme, SETTINGS)


@pytest.mark.parametrize(
    "source,words",
    [
        ("", "ModuleNotFoundError: No module named 'far_adapter'"),
        ("import far_adapter.inner", "ModuleNotFoundError: .*far_adapter"),
        ("def open_near(): ...", "AttributeError: .*open_far"),
        ("from os import no_such_name", "ImportError: cannot import name 'no_such_name'"),
        ("def (", "SyntaxError: "),
        ("raise RuntimeError('libfar.so.3 is too old')", "RuntimeError: libfar.so.3 is too old"),
    ],
)
def test_an_adapter_that_does_not_load_is_told_by_name(
    port: Registry[Any], install: Install, source: str, words: str
) -> None:
    install("far-away", "far", "far_adapter:open_far", source)
    with pytest.raises(
        ConfigError,
        match=f"^DYN_DISCOVERY_BACKEND: 'far' does not load: {words}.*; "
        "install 'far-away' again, or repair 'far_adapter:open_far'",
    ) as caught:
        port.open("far", SETTINGS)
    assert not isinstance(caught.value, MissingExtraError)
    assert caught.value.__cause__ is not None


def test_a_factory_of_the_host_program_is_registered_once(port: Registry[Any]) -> None:
    port.register("mine", lambda url, settings: (url, settings))  # type: ignore[arg-type,return-value]
    assert opened(port, "mine://x") == ("mine://x", SETTINGS)
    assert "mine" in port.schemes()
    with pytest.raises(ConfigError, match=r"dynamo\.discovery: scheme 'mine' is already registered"):
        port.register("mine", lambda url, settings: None)  # type: ignore[arg-type,return-value]
    port.unregister("mine")
    port.unregister("mine")
    with pytest.raises(ConfigError, match="unknown discovery 'mine'"):
        port.open("mine", SETTINGS)


# Options in a URL


@pytest.mark.parametrize(
    "url,options",
    [
        ("file:///x", {}),
        ("file:///x?ttl_s=3&shared=1", {"ttl_s": "3", "shared": "1"}),
        ("file:///x?shared=", {"shared": ""}),
        ("file:///x?ttl_s=%33", {"ttl_s": "3"}),
    ],
)
def test_options_are_read(url: str, options: dict[str, str]) -> None:
    assert url_options(url, ("ttl_s", "shared")) == options


@pytest.mark.parametrize(
    "url,words",
    [
        ("file:///x?ttl=3", "unknown option 'ttl'; known: ttl_s"),
        ("file:///x?ttl_s=3&ttl_s=4", "option 'ttl_s' given twice"),
        ("tcp://[::1?ttl_s=3", "bad URL 'tcp://.*': .*IPv6"),
    ],
)
def test_a_bad_option_is_told_with_its_url(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        url_options(url, ("ttl_s",))
    assert url in str(caught.value)
    if "unknown" in words:
        with pytest.raises(ConfigError, match="known: none"):
            url_options(url, ())
