"""The configuration of services: a YAML file, ``--Service.key=value`` over it, and what classes take."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from dynamo.core.errors import ConfigError, MissingExtraError
from dynamo.core.model import shown
from dynamo.core.typed import converter, did_you_mean
from dynamo.sdk.marks import title
from dynamo.sdk.signature import resolved
from dynamo.sdk.spec import ServiceSpec

RawConfig: TypeAlias = Mapping[str, Mapping[str, Any]]
"""``{"Common": {key: value}, service name: {key: value}}``, as a file has it."""

COMMON: Final = "Common"
OWN_KEYS: Final[Mapping[str, Any]] = {"workers": int, "resources": dict[str, Any], "namespace": str}
"""Keys that every service has: they are for who runs it, not for the class."""


def read_config(
    path: str | os.PathLike[str] | None = None, overrides: Iterable[str] = ()
) -> dict[str, dict[str, Any]]:
    """A YAML file and what the command line sets over it: ``--Service.key=value``, ``--Common.key.x=value``.

    A value that begins with ``[`` or ``{`` is YAML, any other is text, which becomes what the key's type is.
    Whether services and keys exist is checked with the services. Raises ConfigError.
    """
    config = {} if path is None else _file(Path(path))
    for override in overrides:
        name, separator, value = override.removeprefix("--").partition("=")
        section, *keys = name.split(".")
        if not separator or not section or not keys or not all(keys):
            raise ConfigError(f"{override!r}: expected --Service.key=value")
        place: dict[str, Any] = config.setdefault(section, {})
        for key in keys[:-1]:
            step = place.setdefault(_attribute(key), {})
            if not isinstance(step, dict):
                raise ConfigError(f"{override!r}: {key!r} is {shown(step)}, which has no keys")
            place = step
        place[_attribute(keys[-1])] = _value(override, value)
    return config


def _file(path: Path) -> dict[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # not UTF-8, or a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from error
    sections = _yaml(text, str(path))
    if sections is None:
        return {}
    if not isinstance(sections, dict):
        raise ConfigError(f"{path}: expected sections, 'Service: {{key: value}}', got {shown(sections)}")
    return {str(name): _section(f"{path}: ", name, section) for name, section in sections.items()}


def _section(where: str, name: Any, section: Any) -> dict[str, Any]:
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}{name}: expected 'key: value' lines below it, got {shown(section)}")
    return {_attribute(str(key)): value for key, value in section.items()}


def _attribute(key: str) -> str:
    return key.replace("-", "_")


def _value(override: str, text: str) -> Any:
    return _yaml(text, override) if text[:1] in ("[", "{") else text


def _yaml(text: str, where: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{where}: reading YAML needs PyYAML: pip install 'dynamo-runtime-py[services]'"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not YAML"
        line = f", line {mark.line + 1}" if mark is not None else ""
        context = getattr(error, "context", None)
        while_at = f" {context}" if context else ""
        raise ConfigError(
            f"{where}{line}: not YAML: {problem}{while_at}; mend it there or just before"
        ) from error


class Taken:
    """What the class of a service takes from the configuration, by key and type."""

    def __init__(self, spec: ServiceSpec) -> None:
        self._spec, self._where = spec, title(spec.cls)
        fields = hasattr(spec.cls, "__attrs_attrs__") or hasattr(spec.cls, "__dataclass_fields__")
        annotated = spec.cls if fields else spec.cls.__init__  # a made __init__ can't resolve its annotations
        parameters = list(inspect.signature(spec.cls).parameters.values())
        hints = resolved(annotated, spec.cls, f"{self._where}.__init__") if parameters else {}
        self.any_key = any(one.kind is one.VAR_KEYWORD for one in parameters)
        self._arguments = {
            one.name: (hints.get(one.name, Any), one.default)
            for one in parameters
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        }
        self._models = {one.attribute: (one.model, _fields(one.model)) for one in spec.configured}

    @property
    def keys(self) -> tuple[str, ...]:
        """Every key that may stand in its section."""
        fields = (field for _, fields in self._models.values() for field in fields)
        return tuple(dict.fromkeys((*self._arguments, *fields, *OWN_KEYS)))

    def own(self, options: Mapping[str, Any], key: str) -> Any:
        """The value of one of ``OWN_KEYS``."""
        return self._built(key, OWN_KEYS[key], options[key])

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """For the constructor. Raises ConfigError for what is missing or of the wrong type."""
        given = {
            name: self._built(name, kind, options[name])
            for name, (kind, _) in self._arguments.items()
            if name in options
        }
        for name, (_, default) in self._arguments.items():
            if name not in given and default is inspect.Parameter.empty:
                raise ConfigError(
                    f"{self._where}: its constructor needs {name!r}: set it in the configuration under "
                    f"{self._spec.name!r}, or by --{self._spec.name}.{name}=..."
                )
        if self.any_key:
            others = {*self._arguments, *OWN_KEYS}
            given |= {key: value for key, value in options.items() if key not in others}
        return given

    def configured(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """For each ``configured`` attribute its value. Raises ConfigError."""
        return {
            attribute: self._built(None, model, {name: options[name] for name in fields if name in options})
            for attribute, (model, fields) in self._models.items()
        }

    def _built(self, key: str | None, kind: Any, value: Any) -> Any:
        name = self._spec.name
        try:
            return converter(kind)(value, lax=True)
        except ConfigError as error:
            raise ConfigError(f"{self._where}: {error}") from error
        except (ValueError, TypeError) as error:
            place = name if key is None else f"{name}.{key}"
            raise ConfigError(f"configuration of {place}: {error}") from error


def _fields(model: Any) -> tuple[str, ...]:
    for mark in ("model_fields", "__dataclass_fields__", "__struct_fields__"):
        if (found := getattr(model, mark, None)) is not None:
            return tuple(found)
    if (attributes := getattr(model, "__attrs_attrs__", None)) is not None:
        return tuple(one.name for one in attributes if one.init)
    return tuple(getattr(model, "__annotations__", ()))


def merged(raw: RawConfig | None, takers: Mapping[str, Taken]) -> dict[str, dict[str, Any]]:
    """For each service its options: what ``Common`` says and it knows, then its own. Raises ConfigError."""
    sections = {str(name): _section("configuration: ", name, each) for name, each in (raw or {}).items()}
    for name in sections:
        if name != COMMON and name not in takers:
            raise ConfigError(
                f"unknown service {name!r} in the configuration; {did_you_mean(name, (*takers, COMMON))}"
            )
    common = sections.get(COMMON, {})
    everything = {key: None for taker in takers.values() for key in taker.keys}
    if not any(taker.any_key for taker in takers.values()):
        _check_keys(COMMON, common, everything)
    result: dict[str, dict[str, Any]] = {}
    for name, taker in takers.items():
        own = sections.get(name, {})
        if not taker.any_key:
            _check_keys(name, own, taker.keys)
        shared = {key: value for key, value in common.items() if taker.any_key or key in taker.keys}
        result[name] = {**shared, **own}
    return result


def _check_keys(section: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = tuple(known)
    for key in given:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {section}; {did_you_mean(key, known)}")
